"""Building shard sets from raw data."""
