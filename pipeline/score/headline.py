"""The names of the scores that are shown first, and of those that decide the best step."""

HEADLINE = ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "AP", "AP50", "mIoU")
METRIC_OF_TASK = {"panoptic": "PQ", "instance": "AP", "semantic": "mIoU"}
