"""Four verbs around DeepSpeed: prepare, backward, step, state. The only module that imports it.

Pinned to deepspeed 0.19.8: `Engine` touches two of its private names, `_loaded_ops` and
`_lazy_init_hp_params_optimizer_state`; tests/pipeline/step/test_engine.py covers both.
"""

import fcntl
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
CPU_HELPER = "deepspeed_shm_comm"


@dataclass
class ZeroSettings:
    """ZeRO stage: 0 replicates, 1 shards moments, 2 also gradients, 3 also parameters."""

    stage: int = 1


def _deepspeed():
    """Import DeepSpeed, which reads its accelerator and log level from the environment."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    return deepspeed


def load_cpu_helper() -> None:
    """Hand DeepSpeed its C++ helper for CPU collectives, compiling it the first time.

    DeepSpeed itself would call torch's extension loader in every worker. That loader waits
    for ever on a lock file which a killed process leaves behind. Here the wait is for a kernel
    lock, which dies with its holder, and whoever holds it may remove the stale file.
    """
    _deepspeed()
    from deepspeed.ops.op_builder.builder import OpBuilder
    from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder

    versions = [f"{name}-{importlib.metadata.version(name)}" for name in ("torch", "deepspeed")]
    default = Path(__file__).parents[2] / ".cache" / "torch_extensions"
    root = Path(os.environ.get("M2F_EXTENSIONS_DIR", default))
    root = root / f"{sys.implementation.cache_tag}-{'-'.join(versions)}"
    folder = root / CPU_HELPER
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{CPU_HELPER}.so"
    with (root / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        if not (root / "built").exists():
            os.environ["TORCH_EXTENSIONS_DIR"] = str(root)
            ShareMemCommBuilder().load(verbose=False)
            (root / "built").touch()
    if CPU_HELPER not in OpBuilder._loaded_ops:
        loader = importlib.machinery.ExtensionFileLoader(CPU_HELPER, str(library))
        spec = importlib.util.spec_from_file_location(CPU_HELPER, library, loader=loader)
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        OpBuilder._loaded_ops[CPU_HELPER] = module


@dataclass(frozen=True)
class Step:
    """What one optimizer step did. `grad_norm` is the global L2 norm before clipping."""

    applied: bool
    grad_norm: float


class Engine:
    """A model, its AdamW and its gradients, sharded over the process group that is already up.

    `groups` are AdamW parameter groups with `lr` and `weight_decay`. Every micro-batch loss is
    its part of the global loss (a sum, not a mean), so gradients are summed over ranks and
    micro-batches.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict],
        *,
        zero: ZeroSettings,
        clip: float,
        global_batch: int,
        micro_batch: int,
        device: torch.device,
    ):
        if device.type == "cpu":
            load_cpu_helper()
        self.stage = zero.stage
        self.device = device
        self.clip = clip
        optimizer = torch.optim.AdamW(groups, fused=device.type == "cuda")
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        config = {
            "train_batch_size": global_batch,
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_clipping": clip,
            "steps_per_print": 10**9,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": zero.stage,
                "reduce_bucket_size": 50_000_000,
                "allgather_bucket_size": 50_000_000,
            },
            # No module is "safe" to reduce in bf16: compute is bf16, gradients are fp32.
            "torch_autocast": {
                "enabled": bf16,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
        }
        self._engine, *_ = _deepspeed().initialize(
            model=model, optimizer=optimizer, config=config, dist_init_required=False
        )
        self.module = self._engine.module
        self._sum = dist.get_world_size() * self._engine.gradient_accumulation_steps()
        self._adamw = optimizer
        self._base_lrs = [group["lr"] for group in self._adamw.param_groups]
        if self.stage < 3:
            self._materialize_moments()

    def __call__(self, *args):
        return self._engine(*args)

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradients. DeepSpeed averages; the factor makes it a sum."""
        self._engine.backward(loss * self._sum)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()

    def step(self, lr_multiplier: float) -> Step:
        """Clip and update at `lr_multiplier` times each group's base rate.

        A non-finite gradient norm leaves parameters and moments as they were, on all ranks.
        """
        for group, base in zip(self._adamw.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * lr_multiplier
        if self.stage == 0:  # DeepSpeed neither measures nor guards here
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            if not math.isfinite(norm):
                for gradient in gradients:
                    gradient.zero_()
                return Step(applied=False, grad_norm=norm)
        self._engine.step()
        if self.stage > 0:
            norm = float(self._engine.get_global_grad_norm())
        return Step(applied=math.isfinite(norm), grad_norm=norm)

    def state(self) -> dict[str, Tensor]:
        """Everything training needs, by name, whole, on CPU: collective, equal on all ranks.

        `model.<name>`: parameters and buffers. `exp_avg.<name>`, `exp_avg_sq.<name>`: moments
        (stages 0-2; stage 3 saves its own with `save_shards`). `step.<group>`: AdamW's counts.
        """
        buffers = dict(self.module.named_buffers())
        persistent = buffers.keys() & self.module.state_dict(keep_vars=True).keys()
        state = {f"model.{name}": buffers[name].detach().cpu().clone() for name in persistent}
        for name, parameter in self.module.named_parameters():
            state[f"model.{name}"] = self._full_parameter(parameter)
            if self.stage < 3 and parameter.requires_grad:
                for moment in MOMENTS:
                    state[f"{moment}.{name}"] = self._full_moment(parameter, moment)
        return state

    def load_state(self, state: dict[str, Tensor], step: int) -> None:
        """Inverse of `state`, at any world size; `step` is the number of applied updates.

        Raises ValueError naming tensors that are missing, unknown or of another shape.
        """
        expected = {name: tensor.shape for name, tensor in self.state().items()}
        found = {name: tensor.shape for name, tensor in state.items()}
        wrong = {name for name in expected.keys() | found.keys()
                 if expected.get(name) != found.get(name)}  # fmt: skip
        if wrong:
            raise ValueError(f"checkpoint does not fit the model: {', '.join(sorted(wrong)[:8])}")
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

    def save_shards(self, folder: Path) -> None:
        """Stage 3: write DeepSpeed's own sharded checkpoint, for this world size only."""
        self._engine.save_checkpoint(str(folder), tag="shards")

    def load_shards(self, folder: Path) -> None:
        """Stage 3: inverse of `save_shards`."""
        path, _ = self._engine.load_checkpoint(str(folder), tag="shards")
        if path is None:
            raise ValueError(f"{folder}: DeepSpeed found no checkpoint for this world size")

    def _materialize_moments(self) -> None:
        """Create AdamW's state now and link every parameter's fragment to it.

        DeepSpeed links fragments after the first group's first step, when the other groups
        have no state yet; its getters then fail for them.
        """
        zero = self._engine.optimizer
        flats = [p for group in self._adamw.param_groups for p in group["params"]]
        for flat in flats if self.stage == 0 else zero.single_partition_of_fp32_groups:
            fused = self._adamw.defaults["fused"]
            count = torch.zeros((), device=flat.device if fused else "cpu")
            moments = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            self._adamw.state[flat] = {"step": count, **moments}
        if self.stage > 0:
            zero._lazy_init_hp_params_optimizer_state()

    def _full_parameter(self, parameter: nn.Parameter) -> Tensor:
        if self.stage == 3:  # shards frozen parameters too, and those have no optimizer state
            with _deepspeed().zero.GatheredParameters([parameter]):
                return parameter.detach().cpu().clone()
        full = parameter.detach()
        if self._is_sharded(parameter):
            full = _deepspeed().utils.safe_get_full_fp32_param(parameter)
        return full.cpu().clone()

    def _full_moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        if self.stage == 0:
            return self._adamw.state[parameter][moment].cpu().clone()
        return _deepspeed().utils.safe_get_full_optimizer_state(parameter, moment).cpu().clone()

    def _set_parameter(self, parameter: nn.Parameter, value: Tensor) -> None:
        if self._is_sharded(parameter):
            _deepspeed().utils.safe_set_full_fp32_param(parameter, value.to(self.device))
        if self.stage < 3:
            parameter.data.copy_(value)

    def _set_moment(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        if self.stage == 0:
            self._adamw.state[parameter][moment].copy_(value)
        else:
            value = value.to(self.device)
            _deepspeed().utils.safe_set_full_optimizer_state(parameter, value, moment)

    def _is_sharded(self, parameter: nn.Parameter) -> bool:
        return self.stage > 0 and (self.stage == 3 or parameter.requires_grad)
