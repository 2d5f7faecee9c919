"""What a shard set holds, as tables, as an HTML page, or as a picture of one sample."""
