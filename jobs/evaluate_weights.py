"""`evaluate WEIGHTS`: the scores of a file or folder of weights, without a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from jobs import config as configs
from jobs.evaluate import SHEET_SAMPLES
from jobs.inference import inference_device
from jobs.outputs import OutputFolder, check_file
from jobs.report.figures import draw_figures
from jobs.report.report import SIGNATURE, write_report
from jobs.results.results import Results, written_results
from jobs.score_tables import show
from model.heads import build
from model.network import Network
from model.network_settings import ModelSettings
from model.weights.load import load
from model.weights.transformers_settings import read_settings
from pipeline.data.store import Store
from pipeline.pictures.sheet import sheet, write_png
from pipeline.run.class_match import match_classes
from pipeline.score.evaluate import evaluate as score
from pipeline.score.record import Record
from pipeline.settings import EvaluationSettings
from shards.errors import UsageError, some_of
from shards.files import disk_errors, write_json
from shards.format.taxonomy import Taxonomy
from shards.text import say

SCORES, RECORD, SHEET = "scores.json", "record.npz", "sheet.png"
CONFIG = "config.json"  # of a folder of transformers


def evaluate_weights(
    weights: Path,
    data: Path | None,
    out: Path | None,
    preset: str | None = None,
    images: int | None = None,
    report: Path | None = None,
    results: Path | None = None,
) -> dict[str, Any]:
    """Score weights on a shard set, print the scores, and write them, the record, and a sheet.

    Args:
        weights: A folder of transformers, or a file that `model.weights.load` reads.
        data: The shard set. The classes are matched by name, or by the publisher's order.
        out: The folder for the results, new or of an earlier `evaluate`.
        preset: The preset, or YAML file, with the settings of the network and of the evaluation.
            By default, the network is that of config.json, evaluated at the published size of COCO.
        images: Score only the first images. Defaults to all.
        report: A page to write about the scores.
        results: A folder for the predictions in the formats of servers.

    Returns:
        The scores in percent, with a row per class under `classes`.

    Raises:
        UsageError: An option is missing, or the weights do not fit the network or the classes.
    """
    if data is None or out is None:
        missing = "--data" if data is None else "--out"
        fix = "evaluate WEIGHTS --data SHARDS/val --out FOLDER"
        raise UsageError(f"weights without a run need {missing}", where=str(weights), fix=fix)
    store = Store(str(data))
    network, evaluation = _settings(weights, preset, data)
    settings = replace(evaluation, images=images)
    if report is not None:
        check_file(report, "--report", SIGNATURE.encode(), [store.folder], force=False)
    device = inference_device()
    model = _loaded(weights, network, store.manifest.taxonomy).to(device)
    folder = OutputFolder(out, "evaluate", [SCORES, RECORD, SHEET], [weights, data])
    with written_results(results, store, [weights, out]) as writer:
        scores, record = _score(model, store, settings, device, writer)
    with disk_errors(out):
        write_json(out / SCORES, {"weights": str(weights), "location": store.location, **scores})
        record.save(out / RECORD)
        if "panoptic" in store.manifest.tasks:
            count = min(SHEET_SAMPLES, scores["images"])
            write_png(out / SHEET, sheet(model, store, settings, device, count))
        folder.finish()
    title = f"{weights}, {scores['images']} images of {store.location}"
    show(scores, title, settings, store, out / SCORES)
    if report is not None:
        figures = draw_figures(model, store, settings, device, record, scores)
        write_report(report, title, scores, store.manifest.taxonomy, figures, None)
    return scores


def _score(
    model: Network,
    store: Store,
    settings: EvaluationSettings,
    device: torch.device,
    writer: Results | None,
) -> tuple[dict[str, Any], Record]:
    """Score the network and return the scores and the counters of each image."""
    records: list[Record] = []
    with Progress(transient=True) as progress:
        bar = progress.add_task("evaluating", total=min(len(store), settings.images or len(store)))
        scores = score(
            model,
            store,
            settings,
            device,
            advance=lambda: progress.advance(bar),
            seen=writer.write if writer else None,
            recorded=records.append,
        )
    return scores, records[0]


def _settings(
    weights: Path, preset: str | None, data: Path
) -> tuple[ModelSettings, EvaluationSettings]:
    """Return the settings of the network and of the evaluation."""
    if preset:
        sets = [f"data.train={data}", f"data.val={data}", "scaling.gpu=false"]
        config = configs.load(preset, [*sets, "model.weights=none", "model.init_from=none"])
        return config.model, config.evaluation
    if not (weights / CONFIG).is_file():
        fix = "add --preset coco_panoptic_r50, or another that describes the network"
        raise UsageError("the weights do not say which network they are of", where=weights, fix=fix)
    try:
        return read_settings(weights), EvaluationSettings()
    except ValueError as error:
        fix = "add --preset with a network that fits, or give a folder of Mask2Former"
        raise UsageError(str(error), where=weights, fix=fix) from error


def _loaded(weights: Path, settings: ModelSettings, taxonomy: Taxonomy) -> Network:
    """Return the network with the weights, in eval mode.

    Raises:
        UsageError: They do not fit, or leave a part of the network without weights.
    """
    fix = "name weights of this network that were trained on the classes of the data"
    try:
        model = build(settings, len(taxonomy))
        loaded = load(model, weights, match_classes(taxonomy, weights))
    except ValueError as error:
        what = str(error).removeprefix(f"model.init_from={weights}: ")
        raise UsageError(what, where=weights, fix=fix) from error
    if loaded.fresh:
        what = f"the file lacks {len(loaded.fresh)} tensors: {some_of(loaded.fresh, 4)}"
        raise UsageError(what, where=weights, fix=fix)
    say(f"{weights}: {loaded}")
    return model.eval()
