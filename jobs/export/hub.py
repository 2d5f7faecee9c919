"""Export to a folder that can be uploaded to the Hub as it is."""

import json
from pathlib import Path

from jobs.export import segmentation_pipeline
from jobs.export.source import Source
from jobs.export.weights import write_transformers
from model import branchless
from pipeline.data.augment import resize
from shards.files import whole_file, write_json

# The code of the folder, which transformers runs with trust_remote_code=True.
CODE = (segmentation_pipeline, branchless, resize)
CONFIG = "config.json"


def write_hub(folder: Path, source: Source) -> None:
    """Write the files of transformers, and a pipeline with the project's own segmentations.

    Raises:
        ValueError: transformers has no such network.
    """
    write_transformers(folder, source)
    config = json.loads((folder / CONFIG).read_text())
    segment = source.config.evaluation.segment
    config["mask2former"] = {
        "task": source.task,
        "object_threshold": segment.object_threshold,
        "overlap_threshold": segment.overlap_threshold,
        "detections": segment.detections,
        "size_divisor": source.config.evaluation.size_divisor,
        "things": list(source.taxonomy.things),
        "colors": [category.color for category in source.taxonomy.categories],
    }
    module = _stem(segmentation_pipeline.__name__)
    name = segmentation_pipeline.SegmentationPipeline.__name__
    config["custom_pipelines"] = {"image-segmentation": {"impl": f"{module}.{name}"}}
    write_json(folder / CONFIG, config)
    for module in CODE:
        text = Path(str(module.__file__)).read_text()
        for other in CODE:  # neighbors in the folder
            old = f"from {other.__name__} import"
            text = text.replace(old, f"from .{_stem(other.__name__)} import")
        with whole_file(folder / f"{_stem(module.__name__)}.py") as file:
            file.write(text.encode())


def _stem(module: str) -> str:
    return module.rpartition(".")[2]
