"""The model card of an export: what the weights are, what they scored, how they are loaded."""

import json
from pathlib import Path

import yaml

from jobs import config as configs
from jobs.config import Config
from pipeline.run.folder import scores_path
from pipeline.score.evaluate import HEADLINE
from shards.errors import DataError, UsageError
from shards.files import whole_file
from shards.format.manifest import Manifest
from shards.format.taxonomy import Taxonomy

SOURCE = "https://arxiv.org/abs/2112.01527"
HOW_TO_LOAD = {
    "transformers": """```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

processor = AutoImageProcessor.from_pretrained(".")  # this folder
model = Mask2FormerForUniversalSegmentation.from_pretrained(".").eval()
image = Image.open("photo.jpg").convert("RGB")
with torch.no_grad():
    outputs = model(**processor(images=image, return_tensors="pt"))
result = processor.post_process_panoptic_segmentation(
    outputs, threshold=0.8, label_ids_to_fuse=FUSED, target_sizes=[image.size[::-1]]
)[0]
for segment in result["segments_info"]:
    print(segment["id"], model.config.id2label[segment["label_id"]], segment["score"])
```

transformers' processor stretches images to multiples of 32 and takes masks through 384x384 pixels
on their way to the image's size; the figures above are of masks at whole resolution.""",
    "detectron2": """`model.pkl` holds arrays by the parameter names of the official Mask2Former
code and is meant for its `MODEL.WEIGHTS`, under a config of the same backbone, queries and classes
(numpy 1.26 or later). `model.init_from=model.pkl` starts a run of this code from it.""",
}


def write(out: Path, to: str, folder: Path, config: Config, taxonomy: Taxonomy, step: int) -> None:
    """Write `README.md` for the weights of a run's `step` into the folder `out`."""
    head = {
        "library_name": to,
        "pipeline_tag": "image-segmentation",
        "tags": ["mask2former", f"{config.task}-segmentation"],
    }
    stuff = [i for i, category in enumerate(taxonomy.categories) if not category.isthing]
    text = f"""---
{yaml.safe_dump(head, sort_keys=False)}---

# {config.name}

[Mask2Former]({SOURCE}) for {config.task} segmentation: backbone {config.model.backbone}, \
{config.model.queries} queries, {len(taxonomy)} classes of {taxonomy.name}, step {step}.

## Scores

{_scores(folder, step)}

## Data

{_data(folder, config)}

## Loading

{HOW_TO_LOAD[to].replace("FUSED", str(stuff))}

## Classes

{", ".join(f"{i} {category.name}" for i, category in enumerate(taxonomy.categories))}
"""
    with whole_file(out / "README.md") as file:
        file.write(text.encode())


def _scores(folder: Path, step: int) -> str:
    path = scores_path(folder, step)
    if not path.is_file():
        return "This step has not been evaluated."
    scores = json.loads(path.read_text())
    known = [name for name in HEADLINE if scores.get(name) is not None]
    return "\n".join((
        "On the val set, in percent:\n",
        f"| {' | '.join(known)} |",
        f"|{'---|' * len(known)}",
        f"| {' | '.join(f'{scores[name]:.2f}' for name in known)} |",
    ))  # fmt: skip


def _data(folder: Path, config: Config) -> str:
    """What each train set was made from and under which licences, as far as it is at hand."""
    train = config.data.train
    locations = train if isinstance(train, list) else [train]
    known = configs.load_environment(folder)["data"]["train"]
    lines = []
    for location in locations:
        try:
            manifest = Manifest.load(Path(location))
        except (UsageError, DataError):
            lines.append(f"- `{Path(location).name}`: not at hand, so its licences are not listed.")
            continue
        if manifest.fingerprint not in known:
            lines.append(f"- `{Path(location).name}`: rebuilt since; its licences are not listed.")
            continue
        lines.append(f"- {manifest.source}, {manifest.samples} images of {manifest.taxonomy.name}")
        lines += [
            f"  - images under: {licence.get('name', '')} {licence.get('url', '')}".rstrip()
            for licence in manifest.licence
        ]
    return "Trained on:\n\n" + "\n".join(lines)
