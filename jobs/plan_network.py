"""The sizes of a network that does not exist yet: parameters, state, and activations.

The network is built on the meta device, which takes no memory. Its activations are those that
autograd keeps in a forward pass with fake tensors, which have shapes and no values.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from jobs.cluster.needs import PROCESS_BYTES
from jobs.config import Config
from model import heads
from model.network import Network
from model.parts import part_of
from pipeline.data.split import split_of
from pipeline.settings import ZeroSettings

FLOAT_BYTES = 4
# What a step takes beside the network's activations, relative to them: the criterion, temporary
# tensors, and gaps of the allocator. With R50, the H200 reserves 33 GiB for 16 images of 1024x1024
# pixels (docs/gpu.md), of which the activations take 22.9 GiB, and the state takes 0.7 GiB.
STEP_OF_ACTIVATIONS = 1.4


@dataclass(frozen=True)
class Sizes:
    """The numbers of parameters of a network, and its other tensors.

    Attributes:
        trainable: Number of trained parameters by part.
        frozen: Number of frozen parameters by part.
        buffer_bytes: Size of the buffers that a checkpoint holds.
    """

    trainable: dict[str, int]
    frozen: dict[str, int]
    buffer_bytes: int

    @classmethod
    def of(cls, network: nn.Module) -> "Sizes":
        """Return the sizes of a network, by backbone, neck, pixel decoder, and masked decoder."""
        trainable: dict[str, int] = {}
        frozen: dict[str, int] = {}
        for name, parameter in network.named_parameters():
            counts = trainable if parameter.requires_grad else frozen
            part = part_of(name).name.split(".")[0]
            counts[part] = counts.get(part, 0) + parameter.numel()
        saved = network.state_dict(keep_vars=True)
        buffers = [buffer for name, buffer in network.named_buffers() if name in saved]
        return cls(trainable, frozen, sum(buffer.nbytes for buffer in buffers))

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return sum(self.trainable.values())

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return self.trained + sum(self.frozen.values())

    def checkpoint_bytes(self, ema: bool) -> int:
        """Return the size of a checkpoint: weights, buffers, both moments, and the average."""
        copies = self.parameters + (2 + ema) * self.trained
        return FLOAT_BYTES * copies + self.buffer_bytes

    def state_bytes(self, zero: ZeroSettings, workers: int, ema: bool) -> int:
        """Return what a worker keeps between two steps: weights, gradients, moments, average.

        At stages 1 and 2, DeepSpeed updates a copy of the worker's share of the weights. What is
        offloaded is in the memory of the host and is not counted.
        """
        weights = self.parameters // (workers if zero.stage == 3 else 1)
        gradients = self.trained // (workers if zero.stage >= 2 else 1)
        updated = (2 + (zero.stage > 0)) * self.trained // (workers if zero.stage >= 1 else 1)
        copies = weights + gradients + updated * (zero.offload is None) + ema * self.trained
        return FLOAT_BYTES * copies + self.buffer_bytes


def network_of(config: Config, classes: int) -> Network:
    """Return the network of a config on the meta device, for training."""
    settings = replace(config.model, weights="none", init_from="none")
    with torch.device("meta"):
        return heads.build(settings, classes).train()


def activation_bytes(config: Config, classes: int, *, bfloat16: bool) -> int:
    """Return the bytes that autograd keeps of the forward pass of one image.

    Args:
        config: The config.
        classes: Number of classes.
        bfloat16: Whether the pass is one under autocast, as on a GPU.
    """
    network = network_of(config, classes)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(storage)
        return tensor

    alive: list[torch.UntypedStorage] = []  # so that no address is used twice
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cpu")
        constants = (*network.parameters(), *network.buffers())
        with autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(torch.zeros(1, 3, *config.data.crop_size))
    for constant in constants:
        kept.pop(constant.untyped_storage()._cdata, None)
    return sum(kept.values())


@dataclass(frozen=True)
class Step:
    """An estimate of the memory of a training step in one worker, in bytes.

    Attributes:
        state: Weights, gradients, moments, and the average.
        passes: Activations, the criterion, and temporary tensors of a micro-batch.
        process: A process that has imported torch, if the memory is that of the host.
    """

    state: int
    passes: int
    process: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.state + self.passes + self.process


def step_parts(config: Config, sizes: Sizes, classes: int, workers: int, *, gpu: bool) -> Step:
    """Estimate the memory of a training step in one worker.

    Args:
        config: The config.
        sizes: The sizes of its network.
        classes: Number of classes.
        workers: Number of workers.
        gpu: Whether each worker has a GPU.
    """
    ema = config.optimizer.ema is not None
    state = sizes.state_bytes(config.zero, workers, ema)
    largest = max(split_of(config, workers).sizes)
    passes = STEP_OF_ACTIVATIONS * largest * activation_bytes(config, classes, bfloat16=gpu)
    if gpu:
        return Step(state, int(passes), 0)
    return Step(state + sizes.checkpoint_bytes(ema), int(passes), PROCESS_BYTES)
