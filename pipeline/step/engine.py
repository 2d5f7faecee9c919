"""DeepSpeed behind four verbs: prepare, backward, update, state.

Written for deepspeed 0.19.8: `Engine` calls one of its private names,
`_lazy_init_hp_params_optimizer_state`, which tests/pipeline/step/test_engine.py covers.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.settings import ZeroSettings
from pipeline.step.average import MovingAverage
from pipeline.step.config import deepspeed_config
from pipeline.step.cpu_helper import import_deepspeed, load_cpu_helper
from shards.errors import UsageError

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Update:
    """The outcome of one optimizer update.

    Attributes:
        applied: False if the gradient norm was not finite, and nothing was changed.
        grad_norm: Global L2 norm of the gradients before clipping.
    """

    applied: bool
    grad_norm: float


class Engine:
    """A model, its AdamW, and its gradients, sharded over the existing process group.

    The loss of every micro-batch is its part of the global loss (a sum, not a mean), so gradients
    are summed over ranks and micro-batches.

    Args:
        model: The model, on `device`.
        groups: AdamW parameter groups with `lr` and `weight_decay`.
        zero: The ZeRO stage, and what is offloaded.
        clip: Largest global L2 norm of the gradients.
        ema: Decay of the moving average of the weights (stages 0 to 2); None: no average.
        micro_steps: Number of calls of `backward` per step, which is the same on all ranks.
        device: Where the model is.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        *,
        zero: ZeroSettings,
        clip: float,
        ema: float | None = None,
        micro_steps: int,
        device: torch.device,
    ):
        if device.type == "cpu":
            load_cpu_helper()
        self.stage = zero.stage
        self._clip = clip
        self.device = device
        self._adamw = torch.optim.AdamW(groups, fused=device.type == "cuda")
        self._base_lrs = [group["lr"] for group in self._adamw.param_groups]
        self._deepspeed = import_deepspeed()
        self._engine, *_ = self._deepspeed.initialize(
            model=model,
            optimizer=self._adamw,
            config=deepspeed_config(zero, clip, micro_steps, device),
            dist_init_required=False,
        )
        self.module: nn.Module = self._engine.module
        self._micro_steps = micro_steps
        self._sum = dist.get_world_size() * micro_steps
        if self.stage < 3:
            self._materialize_moments()
        self._average = MovingAverage(self.module, ema) if ema is not None else None

    def __call__(self, *args: Any) -> Any:
        """Run the model forward."""
        return self._engine(*args)

    def record(self, shape: tuple[int, int, int, int]) -> None:
        """Record the network as CUDA graphs for images of a shape, where that is possible.

        It takes a GPU, stage 0, which leaves the parameters in their memory, and one micro-batch
        per step: the gradients of a replay may lie in the memory that the next one writes to.
        """
        if self.device.type != "cuda" or self.stage > 0 or self._micro_steps > 1:
            return
        self.module.record(torch.zeros(shape, device=self.device))

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch.

        DeepSpeed averages over ranks and micro-batches; the factor turns the mean into a sum.
        """
        self._engine.backward(loss * self._sum)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()

    def rates(self) -> dict[str, float]:
        """Return the learning rate of each part of the network; the largest of its layers."""
        rates: dict[str, float] = {}
        for group in self._adamw.param_groups:
            part = group["name"].partition(".")[0]
            rates[part] = max(rates.get(part, 0.0), group["lr"])
        return rates

    def step(self, lr_multiplier: float) -> Update:
        """Clip and update with `lr_multiplier` times the base learning rate of each group.

        If the gradient norm is not finite, parameters and moments stay unchanged on all ranks.
        """
        for group, base in zip(self._adamw.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * lr_multiplier
        update = self._step_replicated() if self.stage == 0 else self._step_sharded()
        if self._average and update.applied:
            self._average.update()
        return update

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the network has the moving average of its weights, if any."""
        return self._average.applied() if self._average else nullcontext()

    def _step_sharded(self) -> Update:
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        return Update(applied=math.isfinite(norm), grad_norm=norm)

    def _step_replicated(self) -> Update:
        """Clip and update at stage 0, for which DeepSpeed neither measures the norm nor skips.

        On a GPU the norm is read last, because the host waits for it: AdamW's fused kernel itself
        skips the update if `found_inf` is not 0.
        """
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        nn.utils.clip_grads_with_norm_(parameters, self._clip, norm)
        if self.device.type == "cuda":
            self._adamw.found_inf = 1 - norm.isfinite().float()
        elif not norm.isfinite():
            for parameter in parameters:
                parameter.grad.zero_()
            return Update(applied=False, grad_norm=float(norm))
        self._engine.step()
        norm = float(norm)
        return Update(applied=math.isfinite(norm), grad_norm=norm)

    def state(self) -> dict[str, Tensor]:
        """Return a copy of `tensors` on the CPU. All ranks must call it."""
        return {name: tensor.cpu().clone() for name, tensor in self.tensors()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all tensors that training needs, unsharded, on the device; equal on all ranks.

        At stages 1 to 3 all ranks must take all of them, because each is gathered from all ranks.
        A tensor may be freed when the next one is taken.

        Yields:
            `model.<name>`: parameters and persistent buffers. `exp_avg.<name>` and
            `exp_avg_sq.<name>`: AdamW's moments (stages 0 to 2; at stage 3 `save_shards` writes
            them). `average.<name>`: the moving average, if there is one.
        """
        for name, buffer in self._persistent_buffers().items():
            yield f"model.{name}", buffer.detach()
        for name, parameter in self.module.named_parameters():
            # Stage 3 shards frozen parameters, too, which have no optimizer state.
            with self._deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                yield f"model.{name}", self._full_parameter(parameter)
            if self.stage < 3 and parameter.requires_grad:
                for moment in MOMENTS:
                    yield f"{moment}.{name}", self._full_moment(parameter, moment)
        if self._average:
            yield from self._average.state().items()

    def layout(self) -> dict[str, Tensor]:
        """Return the shapes and types of `tensors`; nothing is gathered."""
        layout = {f"model.{n}": buffer for n, buffer in self._persistent_buffers().items()}
        for name, parameter in self.module.named_parameters():
            shape = parameter.ds_shape if self.stage == 3 else parameter.shape
            full = torch.empty(shape, dtype=parameter.dtype, device="meta")
            for part in ("model", *MOMENTS * (self.stage < 3 and parameter.requires_grad)):
                layout[f"{part}.{name}"] = full
        return layout | (self._average.state() if self._average else {})

    def _persistent_buffers(self) -> dict[str, Tensor]:
        saved = self.module.state_dict(keep_vars=True).keys()
        return {name: buffer for name, buffer in self.module.named_buffers() if name in saved}

    def load_state(self, state: dict[str, Tensor], step: int) -> None:
        """Load what `state` returned, at any world size.

        Args:
            state: Tensors by name.
            step: Number of updates that were applied.

        Raises:
            UsageError: Tensors are missing, unknown, or of another shape; nothing is changed.
        """
        expected = {name: tensor.shape for name, tensor in self.layout().items()}
        found = {name: tensor.shape for name, tensor in state.items()}
        wrong = {name for name in expected.keys() | found.keys()
                 if expected.get(name) != found.get(name)}  # fmt: skip
        if wrong:
            names = ", ".join(sorted(wrong)[:8])
            raise UsageError(
                f"the checkpoint does not fit the model: {names}",
                fix="use the model settings that the run was started with",
            )
        for name, buffer in self.module.named_buffers():
            if f"model.{name}" in state:
                buffer.copy_(state[f"model.{name}"])
        for name, parameter in self.module.named_parameters():
            self._set_parameter(parameter, state[f"model.{name}"])
            if self.stage < 3 and parameter.requires_grad:
                for moment in MOMENTS:
                    self._set_moment(parameter, moment, state[f"{moment}.{name}"])
        for slots in self._adamw.state.values():
            slots["step"].fill_(step)
        if self._average:
            self._average.load_state(state, step)

    def save_shards(self, folder: Path) -> None:
        """Write DeepSpeed's sharded checkpoint (stage 3), which fits this world size only."""
        self._engine.save_checkpoint(str(folder), tag="shards")

    def load_shards(self, folder: Path) -> None:
        """Load what `save_shards` wrote (stage 3).

        Raises:
            UsageError: The folder has no checkpoint for this world size.
        """
        path, _ = self._engine.load_checkpoint(str(folder), tag="shards")
        if path is None:
            raise UsageError(
                f"DeepSpeed found no checkpoint for {dist.get_world_size()} workers",
                where=folder,
                fix="train with the scaling.workers of the run's start",
            )

    def _materialize_moments(self) -> None:
        """Create AdamW's moments before the first step, and link parameters to them.

        `state` saves moments before the first step too, and `load_state` overwrites them. Two
        facts stand in the way. torch creates the moments lazily, in the first `step`. And at
        stages 1 and 2 AdamW does not see the parameters: it updates one flat float32 partition
        per group, and every parameter holds links into the partitions of its group, through which
        `safe_get_full_optimizer_state` finds its moments. DeepSpeed makes the links of all groups
        at the end of the first group's first step, when the other groups have no moments yet, and
        its getters then fail for these groups. Hence the moments of all groups are made here, and
        then all the links.
        """
        zero = self._engine.optimizer
        if self.stage == 0:
            updated = [p for group in self._adamw.param_groups for p in group["params"]]
        else:
            updated = zero.single_partition_of_fp32_groups
        fused = self._adamw.defaults["fused"]
        for tensor in updated:
            count = torch.zeros((), device=tensor.device if fused else "cpu")
            moments = {moment: torch.zeros_like(tensor) for moment in MOMENTS}
            self._adamw.state[tensor] = {"step": count, **moments}
        if self.stage > 0:
            zero._lazy_init_hp_params_optimizer_state()

    def _full_parameter(self, parameter: nn.Parameter) -> Tensor:
        if self.stage in (1, 2) and parameter.requires_grad:
            return self._deepspeed.utils.safe_get_full_fp32_param(parameter)
        return parameter.detach()

    def _full_moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        if self.stage == 0:
            return self._adamw.state[parameter][moment]
        return self._deepspeed.utils.safe_get_full_optimizer_state(parameter, moment)

    def _set_parameter(self, parameter: nn.Parameter, value: Tensor) -> None:
        if self._is_sharded(parameter):
            self._deepspeed.utils.safe_set_full_fp32_param(parameter, value.to(self.device))
        if self.stage < 3:
            parameter.data.copy_(value)

    def _set_moment(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        if self.stage == 0:
            self._adamw.state[parameter][moment].copy_(value)
        else:
            value = value.to(self.device)
            self._deepspeed.utils.safe_set_full_optimizer_state(parameter, value, moment)

    def _is_sharded(self, parameter: nn.Parameter) -> bool:
        return self.stage > 0 and (self.stage == 3 or parameter.requires_grad)
