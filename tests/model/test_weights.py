"""Weights are read and exported bit for bit, or an error lists the tensors that differ."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Mask2FormerForUniversalSegmentation

from model.criterion import CriterionSettings
from model.mask2former import Mask2Former, ModelSettings
from model.masked_decoder import MaskedDecoderSettings
from model.pixel_decoder import PixelDecoderSettings
from model.weights.export import save_transformers, to_detectron2
from model.weights.load import CLASS_HEAD, fit, load

SMALL_RESNET = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 1, 1]}
SMALL_SWIN = {"embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}
SMALL = {"resnet": SMALL_RESNET, "swin": SMALL_SWIN}
K = 5


def settings_of(backbone: str, **changes) -> ModelSettings:
    """Return the settings of a published backbone, or of a small one with small decoders.

    The small decoders keep 256 channels, because other implementations need them.
    """
    if backbone not in SMALL:
        return ModelSettings(backbone=backbone, **changes)
    fields = {
        "backbone_config": SMALL[backbone],
        "queries": 9,
        "pixel_decoder": PixelDecoderSettings(layers=1, feedforward=16),
        "masked_decoder": MaskedDecoderSettings(layers=2, feedforward=16),
    }
    return ModelSettings(backbone=backbone, **(fields | changes))


def build(settings: ModelSettings, seed: int, classes: int = K) -> Mask2Former:
    """Return a network whose norms and counters differ from their initial values."""
    torch.manual_seed(seed)
    model = Mask2Former(settings, classes)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(torch.rand(tensor.shape))
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(7)
    return model


def official(model: Mask2Former, settings: ModelSettings) -> dict[str, np.ndarray]:
    return to_detectron2(model, settings, CriterionSettings())


def pickled(path: Path, tensors: dict, **more) -> Path:
    path.write_bytes(pickle.dumps({"model": tensors, "__author__": "somebody", **more}))
    return path


def assert_same(model: Mask2Former, twin: Mask2Former, but: tuple[str, ...] = ()) -> None:
    """Check that all tensors are equal except those whose names start with one of `but`."""
    state, other = model.state_dict(), twin.state_dict()
    assert list(state) == list(other)
    names = [name for name in state if not name.startswith(but)] if but else list(state)
    assert names
    assert [name for name in names if not torch.equal(state[name], other[name])] == []


@pytest.mark.parametrize(
    ("backbone", "norm"),
    [
        ("resnet50", "frozen_batch"),
        ("swin_tiny", "frozen_batch"),
        ("resnet", "batch"),
        ("swin", "frozen_batch"),
    ],
)
def test_round_trips_are_exact(backbone: str, norm: str, tmp_path: Path) -> None:
    settings = settings_of(backbone, norm=norm)
    model = build(settings, seed=0)

    save_transformers(tmp_path, model, settings, CriterionSettings(), list("abcde"))
    twin = build(settings, seed=1)
    loaded = load(twin, tmp_path)
    assert (loaded.kind, loaded.fresh) == ("a transformers checkpoint", [])
    assert_same(model, twin)

    twin = build(settings, seed=2)
    loaded = load(twin, pickled(tmp_path / "official.pkl", official(model, settings)))
    assert (loaded.kind, loaded.fresh) == ("a detectron2 checkpoint", [])
    assert loaded.unused == ["criterion.empty_weight [6]"]
    assert_same(model, twin)

    twin = build(settings, seed=3)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    moments = {f"exp_avg.{name}": tensor + 1 for name, tensor in model.state_dict().items()}
    save_file(state | moments, tmp_path / "state.safetensors")
    loaded = load(twin, tmp_path / "state.safetensors")
    assert (loaded.kind, loaded.fresh, loaded.unused) == ("a checkpoint of this project", [], [])
    assert_same(model, twin)


def test_every_generation_of_official_names(tmp_path: Path) -> None:
    settings = settings_of("swin")
    model = build(settings, seed=0)
    names = official(model, settings)
    names["backbone.layers.0.blocks.0.attn.relative_position_index"] = np.zeros((16, 16), np.int64)
    pixel = "sem_seg_head.pixel_decoder."
    generations = {
        "released": {n.replace("query_feat", "static_query"): x for n, x in names.items()},
        "first": {n.replace(pixel, "sem_seg_head."): x for n, x in names.items()},
    }
    for generation, tensors in generations.items():
        assert tensors.keys() != names.keys()
        twin = build(settings, seed=1)
        loaded = load(twin, pickled(tmp_path / f"{generation}.pkl", OrderedDict(tensors)))
        assert len(loaded.unused) == 2
        assert_same(model, twin)
    twin = build(settings, seed=2)
    tensors = {name: torch.from_numpy(array) for name, array in names.items()}
    torch.save({"model": tensors, "iteration": 3, "optimizer": {}}, tmp_path / "model.pth")
    load(twin, tmp_path / "model.pth")
    assert_same(model, twin)


def test_transformers_names_in_memory_and_on_disk(tmp_path: Path) -> None:
    settings = settings_of("swin")
    model = build(settings, seed=0)
    save_transformers(tmp_path, model, settings, CriterionSettings(), list("abcde"))
    on_disk = load_file(tmp_path / "model.safetensors")
    assert any(".encoder.encoder.layers.0.blocks.0.attention.self.query." in n for n in on_disk)
    peer = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    in_memory = peer.state_dict()
    assert any(".encoder.swin.encoder.layers.0.blocks.0.attention.q_proj." in n for n in in_memory)
    index = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self."
    on_disk[f"{index}relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    for name, tensors in (("memory.bin", in_memory), ("disk.bin", on_disk)):
        torch.save(tensors, tmp_path / name)
        twin = build(settings, seed=1)
        load(twin, tmp_path / name)
        assert_same(model, twin)


def test_a_checkpoint_in_several_files(tmp_path: Path) -> None:
    settings = settings_of("resnet")
    model = build(settings, seed=0)
    save_transformers(tmp_path / "one", model, settings, CriterionSettings(), list("abcde"))
    peer = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "one")
    peer.save_pretrained(tmp_path / "many", max_shard_size="1MB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    twin = build(settings, seed=1)
    load(twin, tmp_path / "many")
    assert_same(model, twin)

    index = tmp_path / "many" / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../one/model.safetensors"}}')
    with pytest.raises(ValueError, match="not a file beside it"):
        load(twin, tmp_path / "many")


def test_the_class_head_of_other_classes_keeps_its_initial_values(tmp_path: Path) -> None:
    settings = settings_of("resnet")
    model, twin, untouched = build(settings, 0, classes=8), build(settings, 1), build(settings, 1)
    loaded = load(twin, pickled(tmp_path / "eight.pkl", official(model, settings)))
    assert loaded.fresh == [
        "masked_decoder.class_head.weight [6, 256] (the file has other classes: [9, 256])",
        "masked_decoder.class_head.bias [6] (the file has other classes: [9])",
    ]
    assert "2 keep their initial values: masked_decoder.class_head.weight [6, 256]" in str(loaded)
    assert_same(model, twin, but=CLASS_HEAD)
    assert_same(untouched, twin, but=tuple(n for n in model.state_dict() if n not in CLASS_HEAD))


def test_all_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    settings = settings_of("resnet")
    model = build(settings, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = official(model, settings)
    for part in ("query_feat", "level_embed"):
        del names[f"sem_seg_head.predictor.{part}.weight"]
    names["sem_seg_head.predictor.query_embed.weight"] = np.zeros((200, 256), np.float32)
    names["sem_seg_head.predictor.decoder_norm.bias"] = np.zeros(3, np.float32)
    names["sem_seg_head.extra.weight"] = np.zeros((2, 3), np.float32)
    names["surprise"] = np.zeros(4, np.float32)
    path = pickled(tmp_path / "odd.pkl", names)
    with pytest.raises(ValueError, match=rf"^model\.init_from={path}: a detectron2 ") as error:
        load(model, path)
    for line in (
        "2 missing: masked_decoder.query_feat.weight [9, 256], "
        "masked_decoder.level_embed.weight [3, 256]; ",
        "2 unknown: sem_seg_head.extra.weight [2, 3], surprise [4]; ",
        "2 of another shape: masked_decoder.query_embed.weight [200, 256] instead of [9, 256]",
        "masked_decoder.norm.bias [3] instead of [256]",
    ):
        assert line in str(error.value)
    assert all(torch.equal(before[n], tensor) for n, tensor in model.state_dict().items())


def test_another_backbone_and_no_weights_at_all_do_not_fit(tmp_path: Path) -> None:
    model = build(settings_of("resnet"), seed=0)
    swin = settings_of("swin")
    path = pickled(tmp_path / "swin.pkl", official(build(swin, seed=0), swin))
    with pytest.raises(ValueError, match=r"missing: backbone\.body\.embedder.*unknown: .*swin"):
        fit(model, path)
    with pytest.raises(ValueError, match=r"unknown: .*surprise \[\]"):
        fit(model, pickled(tmp_path / "odd.pkl", {"surprise": np.float32(1)}))
    (tmp_path / "empty").mkdir()
    for path, reason in (
        (tmp_path / "empty", "none of model.safetensors"),
        (tmp_path / "nowhere.pkl", "No such file"),
    ):
        with pytest.raises(ValueError, match=rf"model\.init_from={path}: .*{reason}"):
            fit(model, path)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"norm": "group"}, r"model\.norm=group"),
        ({"dim": 64}, r"model\.dim=64"),
        ({"pixel_decoder": PixelDecoderSettings(layers=1, points=2)}, r"pixel_decoder\.points=2"),
        ({"pixel_decoder": PixelDecoderSettings(layers=1, heads=4)}, r"heads=4 .*heads=8"),
    ],
)
def test_networks_that_other_implementations_lack_are_not_exported(
    changes: dict, pattern: str, tmp_path
) -> None:
    settings = settings_of("resnet", **changes)
    model = Mask2Former(settings, K)
    with pytest.raises(ValueError, match=pattern):
        save_transformers(tmp_path / "out", model, settings, CriterionSettings(), list("abcde"))
    assert not (tmp_path / "out").exists()
