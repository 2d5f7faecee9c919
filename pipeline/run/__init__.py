"""The run folder: everything that a training run leaves on disk.

`journal` keeps the records of a run. It uses `saver`, which writes checkpoints, `checkpoint`, which
saves and loads the state of training, `events` and `eventlog`, the typed records of events.jsonl,
`track`, which writes the metrics (and is the only module that imports wandb), and `quarantine`, the
list of damaged samples that training replaced. `folder` names the files, `restore` loads networks
from checkpoints, `restarts` draws on the starts of a run before this one, `stop` passes a request
to stop to the workers, and `warn` turns their warnings into events.

A run can be resumed from its folder alone, and an interrupted write leaves no partial checkpoint.
A checkpoint holds the weights, the optimizer, and the position in the data. Metrics and events are
JSON lines.
"""
