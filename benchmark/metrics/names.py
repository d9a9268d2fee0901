"""Names of the metrics that are not an attack's."""

TRAPEZOID = "mAP-trapezoid"  # mAP as the landmark benchmarks compute it
BENIGN = ("R@1", "R@2", "mAP", "mAP@R", "mAP@10", "NMI")  # of the clean images of a set of classes
INSTANCE = (*BENIGN[:-1], TRAPEZOID)  # of a set that lists the answers of each query
OVER_STARTS = ("NMI",)  # low and high are the range over the starts of k-means, no interval
CLEAN = tuple(dict.fromkeys((*BENIGN, *INSTANCE)))  # any of them
WORST, ERS = "Robust R@1", "ERS"  # scores that are drawn from several columns
WORST_CASE = "worst case"  # what the tables name as the attack of Robust R@1
RECALLS = ("ES:R", "LTM", "GTM", "Top1", "Margin", "DLR", "KNN", "Shift")  # R@1 after an attack
CLEAN_SUFFIX = " clean"  # behind an attack's column: the same outcomes of the clean images
EXTERNAL = "External"  # begins the columns of images that were handed in from outside
