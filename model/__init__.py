"""Mask2Former in plain PyTorch, usable without the rest of this project.

- The network: `mask2former` combines `backbone`, `pixel_decoder` (with `deformable_attention`,
  `deformable_self_attention`, and their `kernels`), and `masked_decoder`.
- The training loss: `criterion` matches queries to targets with `matcher` and compares masks at
  sampled `points`.
- The results: `segment` turns outputs into panoptic, instance, and semantic segmentations.
- `weights` loads and writes the names of official checkpoints and of transformers.

Images `float32 [B, 3, H, W]` go in. Class logits and mask logits per query come out. This package
imports nothing from `shards`, `pipeline`, or `jobs`.
"""
