"""One module per layout of raw data, such as `coco`, `folder`, and `labelme`.

A source is a module with two functions: `splits` finds the splits in a folder, and `read` returns a
`Split` (see `split`), whose items know their files but have not read them. `Item.load` later reads
one sample, checks it, and returns it as a `shards.format.schema.Sample`.

COCO's formats are in the `coco_*` modules. The sources with label maps share `layout`, which finds
the files, and `map_item`, which reads a sample. `classes` loads the `classes.yaml` of `folder`.
`labelme` and `yolo` share `outlines`.

To add a source, write such a module and register it in `shards.build.options`. This package imports
`shards.raw` and `shards.format`.
"""
