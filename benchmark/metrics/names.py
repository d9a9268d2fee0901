"""Names of the metrics that are not an attack's."""

BENIGN = ("R@1", "R@2", "mAP", "mAP@R", "mAP@10", "NMI")  # of the clean images
WORST, ERS = "Robust R@1", "ERS"  # scores that are drawn from several columns
EXTERNAL = "External"  # begins the columns of images that were handed in from outside
