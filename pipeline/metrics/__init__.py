"""Scores that ranks can merge: panoptic quality, instance AP, semantic mIoU."""
