"""One optimizer step.

`step` computes the losses and gradients of a global batch, with any network that also does
backward. `engine` wraps the model in DeepSpeed, which only this package imports; `cpu_helper`
compiles the extension that DeepSpeed needs on a CPU. `optimizer` groups the parameters by learning
rate and weight decay, `schedule` gives the learning rate of every step, and `meter` measures the
speed and the time spent waiting for data.

A batch goes in, updated weights and losses come out. This package does not know where batches come
from or where results are written.
"""
