"""Augmentation of the geometry and color of one sample, image and integer maps together."""
