"""The shard format: schema, taxonomy, manifest, index."""
