"""Read and check raw files, whatever the data set.

`images` checks encoded images and reads panoptic PNGs, `masks` converts polygons, run lengths, and
segment ids to the maps of the shard format, and `json_entries` reads annotation files of any size
entry by entry.

Paths and annotations go in. Bytes and integer maps come out, and defects go to the doctor
(`shards.doctor`): a finding is noted, or the sample is rejected. This package imports
`shards.format` but no source.
"""
