"""The shard format: everything that a reader of shards needs.

`schema` defines a sample and the members of a shard that store it, `codec` encodes and decodes
them. `taxonomy` is the ordered list of classes. `manifest` describes a whole set: its classes,
shards, and checksums. `index` finds samples in the tar files, also in third-party ones (see
`manifest.Foreign`), whose label maps become segments by the rules of `label_maps`.

Bytes of a tar file go in and a `Sample` comes out, and the reverse when shards are written. This
package imports only `shards.errors`, `shards.doctor`, and `shards.files`. It is the part of
`shards` that training imports.
"""
