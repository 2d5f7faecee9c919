"""Settings of the training data: shard sets, how they are read, and how samples are augmented.

Like `pipeline.settings`, this module imports neither torch nor the code that it configures.
"""
# ruff: noqa: RUF009 (`setting` returns a dataclasses.field, so that no default is shared)

from dataclasses import dataclass

from model.settings import SettingError, Settings, setting

WINDOW = 16  # shards that are shuffled together
STAGE_NAME = r"\w+(\.\w+)*:\w+"  # package.module:function


@dataclass
class AugmentSettings(Settings):
    """How a sample becomes a crop of one size."""

    crop: int = setting(
        1024, "Height of every training sample.", unit="pixels", at_least=32, multiple_of=32
    )
    crop_width: int | None = setting(
        None, "Width, if it differs from the height.", unit="pixels", at_least=32, multiple_of=32
    )
    augment: str = setting(
        "lsj",
        "Recipe: lsj (large-scale jitter) is the reference's for COCO, shortest_edge its recipe "
        "for the other data sets, and none fits the whole image into the crop.",
        choices=("lsj", "shortest_edge", "none"),
    )
    scale: list[float] = setting(
        [0.1, 2.0], "Smallest and largest size of the image relative to the crop (lsj).", above=0
    )
    base: int = setting(
        640,
        "Size that the shorter side is drawn around, from half to twice of it (shortest_edge).",
        unit="pixels",
        at_least=1,
    )
    category_max_area: float = setting(
        1.0,
        "Share of the labeled pixels above which one class makes a crop be drawn again, up to ten "
        "times; 1 accepts every crop (shortest_edge).",
        above=0,
        at_most=1,
    )
    resize: str = setting(
        "cv2", "Library that resizes; pil gives the reference's pixels.", choices=("cv2", "pil")
    )
    keep_empty: bool | None = setting(
        None,
        "Keep segments that the crop has cut away; null is the reference's choice: yes for "
        "panoptic, no for semantic, and yes for instance except with lsj.",
    )

    def check(self) -> None:
        """Check that the scale is a range."""
        if len(self.scale) != 2 or self.scale[0] > self.scale[1]:
            raise SettingError(
                "scale", f"={self.scale}", "give the smallest and the largest, as [0.1,2.0]"
            )

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width of every sample."""
        return self.crop, self.crop_width or self.crop

    def keeps_empty(self, task: str) -> bool:
        """Return whether a segment without a pixel stays in the truth, with its class."""
        if self.keep_empty is not None:
            return self.keep_empty
        return task == "panoptic" or (task == "instance" and self.augment != "lsj")

    def resizes_maps_by(self, task: str) -> str:
        """Return the rule by which `maps_window` resizes the maps of a task.

        The reference gives label images of 8 bits to Pillow, and semantic maps in float64 to torch.
        """
        return "torch" if self.resize == "pil" and task == "semantic" else self.resize


@dataclass
class CacheSettings(Settings):
    """Where each node keeps the shards that come from URLs."""

    folder: str = setting("~/.cache/mask2former", "Folder of the cache on each node.")
    gib: float = setting(
        100.0,
        "Size of the cache. The least recently used shards leave it first. Samples of shards "
        "that find no room are read one by one, which is slower.",
        unit="GiB",
        at_least=0,
    )


@dataclass
class DataSettings(AugmentSettings):
    """Shard sets and how they are read."""

    train: list[str] = setting(
        [],
        "Shard set to train on, as a folder or a URL, or a list of sets with the same classes.",
        required=True,
        pattern=".+",
        pattern_help="it must not be empty",
    )
    val: str = setting("", "Shard set to evaluate on, as a folder or a URL.", required=True)
    weights: list[float] = setting(
        [],
        "How often to draw from each training set; without weights, every sample is drawn equally "
        "often.",
        above=0,
    )
    window: int = setting(
        WINDOW, "Number of shards whose samples are shuffled together.", unit="shards", at_least=1
    )
    limit: int | None = setting(
        None, "Train on the first samples of each set only.", unit="samples", at_least=1
    )
    max_damaged: int = setting(
        100,
        "Number of damaged samples that a run replaces before it stops.",
        unit="samples",
        at_least=0,
    )
    cache: CacheSettings = setting(CacheSettings, "Cache of shards that come from URLs.")
    stages: list[str] = setting(
        [],
        "Your own functions package.module:function, which every sample goes through between "
        "decoding and augmentation.",
        pattern=STAGE_NAME,
        pattern_help="it must be package.module:function",
    )
    loader_workers: int = setting(
        4,
        "Processes per worker that prepare batches; 0 prepares them in the worker itself.",
        unit="processes",
        at_least=0,
    )
    stall_timeout_s: int = setting(
        120, "Time without a batch after which a worker fails.", unit="seconds", at_least=1
    )
