"""Settings of a run that do not concern the cluster.

This module imports neither torch nor the code that it configures, so that a command reads and
checks its settings in tenths of a second. The modules that use these classes
import them from here.
"""
# ruff: noqa: RUF009 (`setting` returns a dataclasses.field, so that no default is shared)

from dataclasses import dataclass

from model.network_settings import CriterionSettings, ModelSettings, SegmentSettings
from model.settings import SettingError, Settings, setting
from pipeline.data.settings import DataSettings
from pipeline.run.settings import CheckpointSettings, GuardSettings
from shards.format.schema import TASKS


@dataclass
class BatchSettings(Settings):
    """Sizes of batches."""

    size: int = setting(16, "Images per optimizer step.", unit="images", at_least=1)
    micro: int = setting(
        2,
        "Largest number of images per forward and backward pass of one worker; auto measures which "
        "is the largest that fits (docs/plan.md).",
        unit="images",
        at_least=1,
    )
    measured_on: str | None = setting(
        None,
        "Machine and settings that batch.micro=auto was measured with, as train records them; not "
        "to be set.",
    )


@dataclass
class OptimizerSettings(Settings):
    """AdamW."""

    lr: float = setting(1e-4, "Learning rate of the decoders.", at_least=0)
    weight_decay: float = setting(
        0.05, "Weight decay of everything except norms and embeddings.", at_least=0
    )
    backbone_lr_multiplier: float = setting(
        0.1, "Learning rate of the backbone relative to that of the decoders.", at_least=0
    )
    layer_decay: float | None = setting(
        None,
        "Factor by which the backbone's learning rate falls from each of its layers to the one "
        "before, as in BEiT; a layer is a block, or a stage of a ResNet; null: none.",
        above=0,
        at_most=1,
    )
    clip: float = setting(
        0.01, "Largest joint L2 norm of all gradients; above it they are scaled down.", above=0
    )
    ema: float | None = setting(
        None,
        "Decay per step of an exponential moving average of the weights, such as 0.9998, which is "
        "evaluated and exported in their stead; null: none.",
        above=0,
        below=1,
    )


@dataclass
class ScheduleSettings(Settings):
    """Learning rate over the steps of a run."""

    name: str = setting(
        "step",
        "Shape: step multiplies by a factor at milestones; poly is (1 - t/T)^power at step t of T.",
        choices=("step", "poly"),
    )
    milestones: list[float] = setting(
        [327_778 / 368_750, 355_092 / 368_750],
        "Fractions of all steps at which the rate is multiplied by the factor (step).",
        above=0,
        at_most=1,
    )
    factor: float = setting(0.1, "Multiplier at each milestone (step).", above=0, at_most=1)
    power: float = setting(0.9, "Exponent of the decay (poly).", at_least=0)
    warmup_steps: int = setting(0, "Steps of linear rise of the rate.", unit="steps", at_least=0)


@dataclass
class TrainerSettings(Settings):
    """Length of a run."""

    steps: int = setting(368_750, "Optimizer steps of the run.", unit="steps", at_least=1)
    log_every: int = setting(20, "Interval between rows of metrics.", unit="steps", at_least=1)
    hang_timeout_s: int = setting(
        1800,
        "Time without progress after which a worker writes the stacks of its threads and ends, so "
        "that the workers are restarted.",
        unit="seconds",
        at_least=1,
    )


@dataclass
class ZeroSettings(Settings):
    """DeepSpeed's ZeRO."""

    stage: int = setting(
        0,
        "ZeRO stage: 0 replicates everything, which is fastest; 1 shards the moments, 2 also the "
        "gradients, 3 also the parameters.",
        choices=(0, 1, 2, 3),
    )
    offload: str | None = setting(
        None,
        "What is kept in the memory of the host instead of the GPU's (stages 1 to 3): optimizer, "
        "AdamW's moments and its copy of the weights, which it then updates there; null: nothing.",
        choices=("optimizer",),
    )

    def check(self) -> None:
        """Check that something is sharded that can be offloaded."""
        if self.offload and self.stage == 0:
            raise SettingError(
                "offload",
                f"={self.offload} with zero.stage=0: DeepSpeed offloads from stage 1 on",
                "write zero.stage=1 too",
            )


@dataclass
class InferenceSettings(Settings):
    """Size of an image at test time, and how its prediction becomes segments."""

    short: int = setting(
        800,
        "Length of the shorter side, or less if the longer side would exceed long.",
        unit="pixels",
        at_least=1,
    )
    long: int = setting(1333, "Greatest length of the longer side.", unit="pixels", at_least=1)
    size_divisor: int = setting(
        32,
        "Sides are padded to multiples of this number.",
        unit="pixels",
        at_least=32,
        multiple_of=32,
    )
    segment: SegmentSettings = setting(SegmentSettings, "Thresholds of the segmentations.")

    def check(self) -> None:
        """Check that the shorter side is not longer than the longer one."""
        if self.short > self.long:
            raise SettingError(
                "short",
                f"={self.short} is greater than long={self.long}",
                f"write at most {self.long}, or raise long",
            )


@dataclass
class EvaluationSettings(InferenceSettings):
    """Evaluation while training, and the size of images in it."""

    every_steps: int = setting(
        5000, "Interval between evaluations; the last step has one, too.", unit="steps", at_least=1
    )
    images: int | None = setting(
        None,
        "Number of images, from the first of the validation set on; null takes all of them.",
        unit="images",
        at_least=1,
    )
    at_start: bool = setting(False, "Evaluate before the first step, too.")


@dataclass
class WandbSettings(Settings):
    """Weights & Biases."""

    mode: str = setting(
        "offline",
        "Mode of W&B: offline records for a later wandb sync, and online sends at once.",
        choices=("offline", "online", "disabled"),
    )
    project: str = setting(
        "mask2former",
        "Name of the project in W&B.",
        pattern=r"[^/\\#?%:]{1,128}",
        pattern_help=r"use 1 to 128 characters without / \ # ? % :",
    )


@dataclass
class TrackingSettings(Settings):
    """Where metrics are recorded in addition to the run's folder."""

    wandb: WandbSettings = setting(WandbSettings, "Weights & Biases.")


@dataclass
class RunSettings(Settings):
    """Everything that training on given workers depends on."""

    name: str = setting(
        "",
        "Name of the run and of its folder in `runs`; without one, the name of the preset.",
        pattern=r"(\w[\w.-]*)?",
        pattern_help="use letters, digits, '.', '_' and '-', and do not start with '.' or '-'",
    )
    runs: str = setting(
        "runs",
        "Folder of all runs, which the nodes of a cluster must share, or the URL of an object "
        "store that they can all reach, such as s3://BUCKET/runs.",
        pattern=r".+",
        pattern_help="give a folder or a URL",
    )
    seed: int = setting(42, "Seed of everything random.", at_least=0)
    task: str = setting("panoptic", "Task that is trained and scored.", choices=TASKS)
    data: DataSettings = setting(DataSettings, "Shard sets and how they are read.")
    batch: BatchSettings = setting(BatchSettings, "Sizes of batches.")
    model: ModelSettings = setting(ModelSettings, "Architecture of the network.")
    criterion: CriterionSettings = setting(CriterionSettings, "Matching and loss.")
    optimizer: OptimizerSettings = setting(OptimizerSettings, "AdamW.")
    schedule: ScheduleSettings = setting(ScheduleSettings, "Learning rate over the steps.")
    trainer: TrainerSettings = setting(TrainerSettings, "Length of the run.")
    zero: ZeroSettings = setting(ZeroSettings, "DeepSpeed's ZeRO.")
    guard: GuardSettings = setting(GuardSettings, "What happens if numbers go wrong.")
    checkpoint: CheckpointSettings = setting(CheckpointSettings, "Checkpoints while training.")
    evaluation: EvaluationSettings = setting(EvaluationSettings, "Evaluation while training.")
    tracking: TrackingSettings = setting(
        TrackingSettings, "Where metrics are recorded in addition to the run's folder."
    )

    @property
    def depends_on_micro_batches(self) -> bool:
        """Whether the losses or the norms depend on the division of a batch into micro-batches."""
        has_batch_norm = self.model.norm in ("batch", "sync_batch")
        return has_batch_norm or self.criterion.class_normalizer == "local"

    def check(self) -> None:
        """Check the settings that depend on each other."""
        if self.criterion.ignore_void and self.task == "instance":
            what = "=true with task=instance, whose truth does not tell void from background"
            raise SettingError("criterion.ignore_void", what, "leave it out")
        if self.optimizer.ema is not None and self.zero.stage == 3:
            what = "with zero.stage=3: stage 3 shards the parameters, and their averages are whole"
            fix = "write zero.stage=2, or leave optimizer.ema out"
            raise SettingError("optimizer.ema", f"={self.optimizer.ema:g} {what}", fix)
        if self.guard.audit_every is not None and self.zero.stage == 3:
            value = f"={self.guard.audit_every} with zero.stage=3, which shards the weights"
            raise SettingError("guard.audit_every", value, "use zero.stage 0 to 2, or null")
        if self.model.compile and self.zero.stage == 3:
            raise SettingError(
                "model.compile",
                "=true with zero.stage=3: stage 3 fetches parameters layer by layer, and compiled "
                "code cannot wait for them",
                "leave one of the two out",
            )
