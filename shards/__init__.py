"""Build, check, and describe shard sets: raw data goes in, tar shards with an index come out.

The packages, each of which imports only those above it:

- `format`: what a shard set is, for readers and writers: samples, taxonomy, manifest, index.
- `raw`: reading and checking raw images, masks, and large JSON files.
- `sources`: one module per layout of raw data: COCO, ADE20K, Cityscapes, Vistas, folders.
- `build`: planning and writing shards on disk or behind a URL, and indexing third-party tar files.

`verify` and `inspect` work on finished sets. `errors`, `doctor` (the numbered findings about raw
data), `files`, `jsonl`, `parallel`, `progress`, and `remote` serve all of them.

This package imports nothing from `model`, `pipeline`, or `jobs`, and neither torch nor Ray, so that
shards can be built on a machine without them.
"""
