"""Training and evaluation: from shards to batches, optimizer steps, checkpoints, and scores.

- `data`: shards to batches, the same ones on any number of processes.
- `step`: the DeepSpeed engine, the optimizer, and the schedule.
- `score`: inference, and the panoptic, instance, and semantic metrics.
- `run`: the run folder with checkpoints, metrics, events, and quarantined samples.
- `pictures`: pictures of samples and predictions.

`train` combines them into the loop that every rank runs. `settings` are the settings of a run, and
`distributed` holds the communication between ranks.

This package imports `model` and, from `shards`, the format and shared helpers, but nothing from
`jobs`. It does not import Ray: `jobs` starts its processes.
"""
