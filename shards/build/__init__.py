"""Build shard sets.

`options` says what to build. `build` runs a source, `plan` assigns its samples to shards, and
`writer` writes one shard, in any process and with the same bytes every time. `claim` checks that
the output is writable and has room, `destination` is the folder or URL of a split, and `upload`
sends one finished shard to a URL. `index_tars` instead makes a set of third-party tar files without
copying them.

A build can be stopped at any time: the next run of the same command keeps the finished shards whose
inputs have not changed. This package imports `sources`, `raw`, and `format`.
"""
