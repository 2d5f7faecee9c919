"""The model card of an export: what the weights are, their scores, and how to load them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData

from jobs import config as configs
from jobs.config import Config
from jobs.export import parity
from jobs.export.source import Source
from model.portable import LOGITS, OUTPUTS
from pipeline.run.folder import scores_of
from pipeline.score.headline import HEADLINE
from shards.errors import M2FError
from shards.files import whole_file
from shards.format.manifest import Manifest

TEMPLATE = Path(__file__).with_suffix(".md")
LIBRARIES = {
    "torch-export": "pytorch",
    "hub": "transformers",
}  # the Hub's name of what loads a format, if it differs


def write(
    out: Path, to: str, folder: Path, source: Source, report: Mapping[str, Any] | None = None
) -> None:
    """Write the card, README.md, of an export.

    Args:
        out: The folder of the export.
        to: The format.
        folder: The run's folder.
        source: What is exported.
        report: The parity of an exported program.
    """
    _, config, taxonomy, task, step = source
    data = ModelCardData(
        library_name=LIBRARIES.get(to, to),
        pipeline_tag="image-segmentation",
        tags=["mask2former", f"{task}-segmentation"],
    )
    # Not ModelCard.from_template, which cannot trim the lines that hold only a template tag.
    template = jinja2.Template(TEMPLATE.read_text(), trim_blocks=True, keep_trailing_newline=True)
    text = template.render(
        card_data=data.to_yaml(),
        to=to,
        name=config.name,
        task=task,
        backbone=config.model.backbone,
        queries=config.model.queries,
        taxonomy=taxonomy.name,
        classes=[f"{i} {name}" for i, name in enumerate(taxonomy.names)],
        colors=["#" + bytes(category.color).hex() for category in taxonomy.categories],
        things=taxonomy.things,
        stuff=[i for i, isthing in enumerate(taxonomy.things) if not isthing],
        step=step,
        averaged=config.optimizer.ema is not None,
        scores=_scores(folder, step),
        images=scores_of(folder, step).get("images"),
        data=_data(folder, config),
        parity=parity.sentence(report) if report else "",
        report=report,
        outputs=[*OUTPUTS[task], *LOGITS],
        evaluation=config.evaluation,
    )
    with whole_file(out / "README.md") as file:
        file.write(str(ModelCard(text)).encode())


def _scores(folder: Path, step: int) -> dict[str, str]:
    """Return the known headline scores of a step in percent; empty if it was not evaluated."""
    scores = scores_of(folder, step)
    known = [name for name in HEADLINE if scores.get(name) is not None]
    return {name: f"{scores[name]:.2f}" for name in known}


def _data(folder: Path, config: Config) -> list[str]:
    """Return lines about each train set: its source, its size, and the licenses of its images."""
    try:
        known = configs.load_environment(folder)["data"]["train"]
    except M2FError:
        return ["- The record of the run's data is damaged, so its licenses are not listed."]
    lines = []
    for path in map(Path, config.data.train):
        try:
            manifest = Manifest.load(path)
        except M2FError:
            lines.append(f"- `{path.name}`: cannot be read now, so its licenses are not listed.")
            continue
        if manifest.fingerprint not in known:
            lines.append(f"- `{path.name}`: rebuilt since, so its licenses are not listed.")
            continue
        lines.append(
            f"- {manifest.source}, {manifest.samples} images of {manifest.taxonomy.name}, "
            f"fingerprint `{manifest.fingerprint}`"
        )
        lines += [
            f"  - images under: {license.get('name', '')} {license.get('url', '')}".rstrip()
            for license in manifest.licence
        ]
    return lines
