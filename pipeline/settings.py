"""All settings of a run that do not concern the cluster, composed from the packages' own."""

from dataclasses import dataclass, field

from model.criterion import CriterionSettings
from model.mask2former import ModelSettings
from pipeline.data.stream import DataSettings
from pipeline.run.checkpoint import CheckpointSettings
from pipeline.run.track import TrackingSettings
from pipeline.score.evaluate import EvaluationSettings
from pipeline.step.engine import ZeroSettings
from pipeline.step.optimizer import OptimizerSettings
from pipeline.step.schedule import ScheduleSettings


@dataclass
class BatchSettings:
    """`size` images make one optimizer step, `micro` of them one pass on one worker."""

    size: int = 16
    micro: int = 2


@dataclass
class TrainerSettings:
    """`steps` optimizer steps; metrics every `log_every` of them."""

    steps: int = 368_750
    log_every: int = 20


@dataclass
class RunSettings:
    """What `pipeline.train` needs to know."""

    name: str = ""
    seed: int = 42
    task: str = "panoptic"
    data: DataSettings = field(default_factory=DataSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    criterion: CriterionSettings = field(default_factory=CriterionSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    zero: ZeroSettings = field(default_factory=ZeroSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
