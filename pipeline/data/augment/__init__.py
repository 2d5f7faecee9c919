"""Geometry and color of one training sample: image and integer maps together."""
