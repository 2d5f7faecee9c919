"""The names of the scores that are shown first, and that decide which step is the best."""

HEADLINE = ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "AP", "AP50", "mIoU")
METRIC_OF_TASK = {"panoptic": "PQ", "instance": "AP", "semantic": "mIoU"}
