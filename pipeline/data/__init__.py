"""Shards to micro-batches: order, storage, stream, augmentation, loader."""
