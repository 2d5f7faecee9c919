"""The run folder: everything that a training run leaves on disk.

`folder` names the files, `checkpoint` saves and restores the state of training, `track` writes the
metrics (and is the only module that imports wandb), and `quarantine` records damaged samples that
training skipped.

A run can be resumed from its folder alone, and an interrupted write leaves no partial checkpoint.
A checkpoint holds the weights, the optimizer, and the position in the data. Metrics and events are
JSON lines.
"""
