"""Names of the metrics that are not an attack's."""

BENIGN = ("R@1", "R@2", "mAP", "mAP@R", "mAP@10", "NMI")  # of the clean images
WORST, ERS = "Robust R@1", "ERS"  # scores that are drawn from several columns
RECALLS = ("ES:R", "LTM", "GTM", "Top1", "Margin", "DLR", "KNN", "Shift")  # R@1 after an attack
EXTERNAL = "External"  # begins the columns of images that were handed in from outside
