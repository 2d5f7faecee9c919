"""From shards to batches, optimizer steps and scores."""
