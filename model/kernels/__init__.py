"""Deformable attention for each kind of device: `forward` and `backward` of one signature.

`value` may be of half precision; `locations` and `weights` are float32 or float64, and sums are
kept in their dtype. What the arguments mean is told by `model.deformable_attention`.
"""
