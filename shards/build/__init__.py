"""Build shard sets.

`build` runs a source, `plan` assigns its samples to shards, and `writer` writes one shard, in any
process and with the same bytes every time. `upload` sends finished shards to a URL. `index_tars`
instead makes a set of third-party tar files without copying them. The other modules look after the
output folder, the room on the disk, and memory.

A build can be stopped at any time: the next run of the same command keeps the finished shards whose
inputs have not changed. This package imports `sources`, `raw`, and `format`.
"""
