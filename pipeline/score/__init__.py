"""Scores: how good a model is on a shard set.

`inference` predicts for one image, `evaluate` does so for a whole set on all ranks, and `panoptic`,
`instance`, and `semantic` turn predictions and ground truth into PQ, AP, and mIoU.

Samples and a model go in, a dictionary of scores comes out. The scores of several ranks are those
of one rank.
"""
