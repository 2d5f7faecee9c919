"""Export of the weights for transformers and detectron2."""

import pickle
from pathlib import Path

from transformers.utils import logging

from jobs.export.source import Source
from model.mask2former import PIXEL_MEAN, PIXEL_STD
from model.weights.classes import CLASS_NAMES, encode_names
from model.weights.export import save_transformers, to_detectron2
from shards.files import whole_file, write_json

OFFICIAL = "model.pkl"


def write_transformers(folder: Path, source: Source) -> None:
    """Write the files of transformers: the weights, their config, and that of the processor.

    Raises:
        ValueError: transformers has no such network.
    """
    model, config, taxonomy, _, _ = source
    logging.set_verbosity_error()  # transformers warns about every backbone except Swin
    logging.disable_progress_bar()
    save_transformers(folder, model, config.model, config.criterion, list(taxonomy.names))
    write_json(folder / "preprocessor_config.json", {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": config.evaluation.short, "longest_edge": config.evaluation.long},
        "size_divisor": config.evaluation.size_divisor,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [mean / 255 for mean in PIXEL_MEAN],
        "image_std": [std / 255 for std in PIXEL_STD],
        "ignore_index": 255,
        "do_reduce_labels": False,
        "num_labels": len(taxonomy),
    })  # fmt: skip


def write_detectron2(folder: Path, source: Source) -> None:
    """Write the pickle of detectron2.

    Raises:
        ValueError: The paper's code has no such network.
    """
    model, config, taxonomy, _, _ = source
    tensors = to_detectron2(model, config.model, config.criterion)
    tensors[CLASS_NAMES] = encode_names(taxonomy.names)
    with whole_file(folder / OFFICIAL) as file:
        # detectron2 takes the names as they are only if the file has an "__author__".
        pickle.dump({"model": tensors, "__author__": "Mask2Former at scale"}, file, protocol=4)
