"""Geometry and colour of one training sample: image and integer maps together."""
