"""Export of the network and its segmentations as one program: ONNX, or a file of `torch.export`."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch.export import ExportedProgram

from jobs.config import Config
from jobs.export import parity
from jobs.export.source import Source
from model.portable import LOGITS, OUTPUTS, Segmenter, no_cache_of_shapes, trace
from pipeline.data.store import Store
from shards.errors import M2FError, UsageError
from shards.files import write_json
from shards.format.images import decode_image

PARITY = "parity.json"
PHOTOS = 8  # of the val set
# The exporter of torch writes opset 18 itself, and newer ones by a conversion. TensorRT 10.0
# reads opsets 9 to 20, and LayerNormalization is one operator only since 17.
OPSET = 18
# The first warns that torchvision is missing, the second about sizes that it cannot solve for.
LOGGERS = ("torch.onnx", "torch.fx.experimental.symbolic_shapes")
# TensorRT computes GridSample wrongly, and refuses or slows down the others.
FORBIDDEN = {"GridSample", "If", "Loop", "Scan", "NonZero"}


def write_onnx(folder: Path, source: Source) -> dict[str, Any]:
    """Write TASK.onnx and parity.json, and return the latter.

    Raises:
        UsageError: The network cannot be exported.
        Failed: ONNX Runtime computes something else than the network.
    """
    segmenter = _segmenter(source)
    with _refusals(source.config.model.backbone):
        proto = to_onnx(trace(segmenter), [*OUTPUTS[source.task], *LOGITS])
    unwanted = sorted({node.op_type for node in proto.graph.node} & FORBIDDEN)
    if unwanted:
        raise UsageError(
            f"model.backbone={source.config.model.backbone} becomes {', '.join(unwanted)}, which "
            "TensorRT does not compute",
            where="--to",
            fix="use --to torch-export",
        )
    facts = {
        "task": source.task,
        "classes": list(source.taxonomy.names),
        "things": list(source.taxonomy.things),
        "step": source.step,
    }
    onnx.helper.set_model_props(proto, {key: json.dumps(fact) for key, fact in facts.items()})
    path = folder / f"{source.task}.onnx"
    onnx.save(proto, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    report = parity.compare(
        lambda pixels: session.run(None, {"pixels": pixels}), segmenter, _photos(source.config)
    )
    write_json(folder / PARITY, report)
    return report


def write_program(folder: Path, source: Source) -> dict[str, Any]:
    """Write TASK.pt2 and parity.json, and return the latter.

    Raises:
        UsageError: The network cannot be exported.
        Failed: The program, as it is loaded, computes something else than the network.
    """
    segmenter = _segmenter(source)
    path = folder / f"{source.task}.pt2"
    with _refusals(source.config.model.backbone):
        torch.export.save(trace(segmenter), path)
    loaded = torch.export.load(path).module()
    report = parity.compare(
        lambda pixels: [x.numpy() for x in loaded(torch.from_numpy(pixels))],
        segmenter,
        _photos(source.config),
    )
    write_json(folder / PARITY, report)
    return report


def _segmenter(source: Source) -> Segmenter:
    settings, things = source.config.evaluation, source.taxonomy.things
    return Segmenter(source.model, source.task, things, settings.segment, settings.size_divisor)


@contextmanager
def _refusals(backbone: str) -> Iterator[None]:
    """Name the backbone if torch raises an exception, of any class, about the network."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"torch cannot export model.backbone={backbone}: {reason}",
            where="--to",
            fix="use --to transformers or --to detectron2",
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@torch.no_grad()  # attention chooses another memory layout if gradients are on
def to_onnx(program: ExportedProgram, outputs: list[str]) -> onnx.ModelProto:
    """Return a program in ONNX, without the paths and the code of this machine."""
    with no_cache_of_shapes():
        converted = torch.onnx.export(
            program,
            (),
            input_names=["pixels"],
            output_names=outputs,
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert converted is not None
    proto = converted.model_proto
    graph = proto.graph
    for item in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    return proto


def _photos(config: Config) -> list[np.ndarray]:
    """Return the first images of the val set, or none if it cannot be read now."""
    try:
        store = Store(config.data.val, cache=config.data.cache)
        samples = map(store.load, range(min(PHOTOS, len(store))))
        return [decode_image(sample.image, sample.key) for sample in samples]
    except (M2FError, OSError):
        return []
