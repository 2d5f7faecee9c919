"""Mask2Former in plain PyTorch: network, matching, losses and segmentation of its predictions."""
