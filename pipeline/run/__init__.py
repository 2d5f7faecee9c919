"""The run folder: checkpoints, events, metrics, quarantine."""
