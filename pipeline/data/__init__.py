"""From shards to batches.

`order` decides which sample comes at which position, as a pure function of the seed. `store` reads
samples of a shard set from disk or from a URL through `fetch` and `cache`. `stream` yields decoded
samples for a rank, and the functions of `stages` and the package `augment` process them one by one.
`batch` collates images and targets, and `loader` does all this in worker processes.

Randomness is keyed by seed, epoch, sample, and purpose (`keyed`), and never by rank or worker. The
batches are therefore the same for every number of processes, and also after a run is resumed.
This package imports `shards.format`, shared helpers of `shards`, and `model.targets`.
"""
