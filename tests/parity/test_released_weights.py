"""Weights in the official class order predict the class names that the paper's code predicts.

The weights are random, under the official names of tensors and in the official order of classes.
The paper's arithmetic and post-processing give the expected names, with the official metadata.
"""

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation

from jobs.export.source import Source
from jobs.export.weights import OFFICIAL as PICKLE
from jobs.export.weights import write_detectron2, write_transformers
from model.criterion import CriterionSettings
from model.mask2former import Mask2Former
from model.network_settings import SegmentSettings
from model.segment import ImagePrediction, panoptic, semantic
from model.weights.export import to_detectron2
from pipeline.run.class_match import order_of_classes
from pipeline.run.restore import initialize
from pipeline.settings import InferenceSettings
from shards.format.manifest import Manifest
from shards.format.taxonomy import Taxonomy
from tests.model.test_weights import build, settings_of
from tests.parity.official import Official, forward
from tests.parity.samples import randomize
from tests.shards import raw_ade20k, raw_cityscapes, raw_vistas
from tests.shards.official import OFFICIAL, is_same
from tests.shards.raw_maps import made, write

LAYOUTS = {"ade20k": raw_ade20k, "cityscapes": raw_cityscapes, "vistas": raw_vistas}
SETTINGS = settings_of("resnet", queries=40)
SEGMENT = SegmentSettings(object_threshold=0, overlap_threshold=0)
SIZE = 64, 96


@pytest.fixture(scope="module", params=LAYOUTS)
def data_set(request):
    return request.param


@pytest.fixture(scope="module")
def taxonomy(data_set, tmp_path_factory) -> Taxonomy:
    """The classes of a set that `build` made of the publisher's files."""
    folder = tmp_path_factory.mktemp(data_set)
    raw = write(LAYOUTS[data_set], folder / "raw", train=1, val=1)
    if data_set == "vistas":  # the generator's own list is shorter
        official = OFFICIAL["vistas"]
        labels = [
            {"name": full, "readable": name, "instances": i in official.things, "evaluate": True,
             "color": [i, i, i]}
            for i, (name, full) in enumerate(zip(official.names, official.synonyms, strict=True))
        ]  # fmt: skip
        labels.append({**labels[0], "readable": "Unlabeled", "evaluate": False})
        (raw / "config.json").write_text(json.dumps({"labels": labels}))
    made(LAYOUTS[data_set], raw, folder / "out", tasks=("semantic",))
    return Manifest.load(folder / "out/train").taxonomy


@pytest.fixture(scope="module")
def released(data_set, tmp_path_factory) -> tuple[Path, list[str], list[tuple[str, bool]]]:
    """Official weights without class names, and the names that the paper's code predicts.

    The names are those of the semantic map's pixels, and those of the panoptic segments.
    """
    model = build(SETTINGS, seed=0, classes=len(OFFICIAL[data_set].names)).eval()
    randomize(model)
    diversify(model)
    tensors = to_detectron2(model, SETTINGS, CriterionSettings())
    path = tmp_path_factory.mktemp("released") / "model_final.pkl"
    names = {name.replace("query_feat", "static_query"): x for name, x in tensors.items()}
    path.write_bytes(pickle.dumps({"model": names}))
    weights = Official({name: torch.from_numpy(array) for name, array in tensors.items()})
    classes, masks = forward(weights, image())
    return path, *official_names(classes[-1][0], masks[-1][0], data_set)


@torch.no_grad()
def diversify(model: Mask2Former) -> None:
    """Let the queries predict many classes, and masks that cover a part of the image."""
    decoder = model.masked_decoder
    decoder.query_feat.weight *= 10
    for module in decoder.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.bias.zero_()
    decoder.class_head.weight *= 3
    decoder.class_head.bias.zero_()
    mean = model(image()).mask_features.mean((0, 2, 3))
    model.pixel_decoder.mask_features.bias -= mean


def image() -> Tensor:
    return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(5))


def official_names(
    classes: Tensor, masks: Tensor, data_set: str
) -> tuple[list[str], list[tuple[str, bool]]]:
    """Return the result of the paper's semantic and panoptic inference, in official names."""
    names, things, *_ = OFFICIAL[data_set]
    masks = F.interpolate(masks[None], SIZE, mode="bilinear")[0].sigmoid()
    probabilities = classes.softmax(-1)
    scores = torch.einsum("qc,qhw->chw", probabilities[:, :-1], masks)
    pixels = [names[index] for index in scores.argmax(0).flatten().tolist()]
    best, labels = probabilities.max(-1)
    kept = labels != len(names)
    best, labels, masks = best[kept], labels[kept], masks[kept]
    winner = (best[:, None, None] * masks).argmax(0)
    segments, stuff = [], set()
    for query, label in enumerate(labels.tolist()):
        inside = (winner == query) & (masks[query] >= 0.5)
        if inside.any() and label not in stuff:
            segments.append((names[label], label in things))
            stuff |= set() if label in things else {label}
    return pixels, segments


def our_names(model: Mask2Former, taxonomy: Taxonomy) -> tuple[list[str], list[tuple[str, bool]]]:
    with torch.no_grad():
        prediction = ImagePrediction.of(model.eval()(image()), 0, SIZE, SIZE)
    pixels = [taxonomy.names[index] for index in semantic(prediction).flatten().tolist()]
    _, segments = panoptic(prediction, taxonomy.things, SEGMENT)
    return pixels, [(taxonomy.names[s["category"]], s["isthing"]) for s in segments]


def started(path: Path, taxonomy: Taxonomy) -> tuple[Mask2Former, str]:
    """Return a network that `model.init_from` initialized, and the text of the event."""
    model = build(SETTINGS, seed=9, classes=len(taxonomy))
    event = initialize(model, str(path), "panoptic", taxonomy)
    assert event.fresh == []
    return model, event.text


def shuffled(taxonomy: Taxonomy) -> Taxonomy:
    """Return the same classes in another order: things first, as sets of old versions had them."""
    return Taxonomy(taxonomy.name, tuple(sorted(taxonomy.categories, key=lambda c: not c.isthing)))


def assert_official(model: Mask2Former, taxonomy: Taxonomy, released) -> None:
    _, pixels, segments = released
    our_pixels, our_segments = our_names(model, taxonomy)
    assert len(set(pixels)) > 1, "the network is trivial"
    assert len(segments) > 3
    assert {isthing for _, isthing in segments} == {True, False}
    assert np.mean(list(map(is_same, our_pixels, pixels))) > 0.999  # ties within rounding
    assert len(our_segments) == len(segments)
    for (ours, our_thing), (official, isthing) in zip(our_segments, segments, strict=True):
        assert is_same(ours, official)
        assert our_thing == isthing


def test_the_set_has_the_official_classes(taxonomy, data_set):
    official = OFFICIAL[data_set]
    assert all(map(is_same, taxonomy.names, official.names))
    assert [i for i, isthing in enumerate(taxonomy.things) if isthing] == official.things


def test_released_weights_predict_the_official_names(taxonomy, released):
    model, text = started(released[0], taxonomy)
    assert "the file has no class names: its rows are assumed to be the" in text
    assert f"{taxonomy.name} in the publisher's order ({taxonomy.names[0]}, " in text
    assert_official(model, taxonomy, released)


def test_a_set_with_another_order_gets_permuted_rows(taxonomy, released):
    other = shuffled(taxonomy)
    assert other.names != taxonomy.names
    model, _ = started(released[0], other)
    assert_official(model, other, released)


@pytest.mark.parametrize("write", [write_transformers, write_detectron2])
@pytest.mark.parametrize("order", [lambda taxonomy: taxonomy, shuffled])
def test_they_are_exported_and_read_back(write, order, taxonomy, released, tmp_path):
    model, _ = started(released[0], taxonomy)
    write(tmp_path, source(model, taxonomy))
    other = order(taxonomy)
    path = tmp_path / PICKLE if write is write_detectron2 else tmp_path
    again, text = started(path, other)
    how = "classes by name" if other == taxonomy else "classes in another order, so the rows are"
    assert f"the file has the same {len(taxonomy)} {how}" in text
    assert_official(again, other, released)


def test_transformers_gives_the_official_names_after_export(taxonomy, released, tmp_path):
    model, _ = started(released[0], taxonomy)
    write_transformers(tmp_path, source(model, taxonomy))
    peer = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        outputs = peer(pixel_values=image(), pixel_mask=torch.ones(1, *SIZE))
    masks = F.interpolate(outputs.masks_queries_logits, SIZE, mode="bilinear")[0].sigmoid()
    scores = outputs.class_queries_logits[0].softmax(-1)[:, :-1].T @ masks.flatten(1)
    names = [peer.config.id2label[index] for index in scores.argmax(0).tolist()]
    assert np.mean(list(map(is_same, names, released[1]))) > 0.99


@pytest.mark.parametrize("names", ["names", "synonyms"])
def test_a_config_of_transformers_in_any_order_and_spelling_is_matched(
    names, taxonomy, data_set, released, tmp_path
):
    model, _ = started(released[0], taxonomy)
    other = shuffled(taxonomy)
    order = order_of_classes(taxonomy, other)
    in_file = Taxonomy("x", tuple(taxonomy.categories[i] for i in order))
    permuted, _ = started(released[0], in_file)
    write_transformers(tmp_path, source(permuted, in_file))
    document = json.loads((tmp_path / "config.json").read_text())
    spellings = getattr(OFFICIAL[data_set], names)
    rows = [(str(n), spellings[i]) for n, i in enumerate(order)]
    document["id2label"] = dict(random.Random(0).sample(rows, len(rows)))
    (tmp_path / "config.json").write_text(json.dumps(document))
    again, _ = started(tmp_path, taxonomy)
    assert torch.equal(
        again.masked_decoder.class_head.weight, model.masked_decoder.class_head.weight
    )


def test_old_weights_and_another_data_set_are_not_accepted_silently(taxonomy, released, tmp_path):
    foreign = Taxonomy("mine", tuple(c.__class__(i, f"c{i}", True, c.color)
                                     for i, c in enumerate(taxonomy.categories)))  # fmt: skip
    model = build(SETTINGS, seed=9, classes=len(taxonomy))
    with pytest.raises(ValueError, match=r"init_from=.*no class names, .* is c0: .* id2label"):
        initialize(model, str(released[0]), "panoptic", foreign)
    ours, _ = started(released[0], taxonomy)
    write_detectron2(tmp_path, source(ours, taxonomy))
    event = initialize(model, str(tmp_path / PICKLE), "panoptic", foreign)
    assert f"0 of {len(taxonomy)} classes are found by name, without c0, c1" in event.text
    assert [name.split()[0] for name in event.fresh] == [
        "masked_decoder.class_head.weight",
        "masked_decoder.class_head.bias",
    ]


def source(model, taxonomy):
    """Return a source with the parts of a run's config that an export reads."""
    config = type("Config", (), {"model": SETTINGS, "criterion": CriterionSettings(),
                                 "evaluation": InferenceSettings()})()  # fmt: skip
    return Source(model, config, taxonomy, "panoptic", 0)
