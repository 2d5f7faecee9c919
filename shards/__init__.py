"""Raw data sets in, validated tar shards and their index out."""
