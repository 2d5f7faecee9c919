"""Presets: how they extend each other, and the published runs that they stand for."""

import pytest

from jobs import config as configs
from jobs import preset
from jobs.preset import read_preset
from shards.errors import UsageError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty folder of presets with an empty folder of bases."""
    monkeypatch.setattr(preset, "PRESETS", tmp_path)
    monkeypatch.setattr(preset, "BASES", tmp_path / "bases")
    (tmp_path / "bases").mkdir()
    return tmp_path


def write(folder, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_preset_replaces_settings_of_its_bases(folder):
    every = "{seed: 1, data: {crop: 64, scale: [1, 2]}, trainer: {steps: 9}}"
    some = "{base: every, seed: 2, model: {backbone_config: {depths: [1, 1, 1, 1]}}}"
    write(folder / "bases", every=every, some=some)
    write(folder, mine="{base: some, data: {scale: [0.5, 3.0]}, model: {queries: 7}}")
    config = configs.merge(read_preset("mine"), ["model.queries=8"])
    assert (config.seed, config.trainer.steps, config.model.queries) == (2, 9, 8)
    assert (config.data.crop, config.data.scale) == (64, [0.5, 3.0])  # a list is replaced
    assert config.model.backbone_config == {"depths": [1, 1, 1, 1]}


def test_a_file_of_the_user_extends_a_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{base: tiny, name: '010', optimizer: {lr: 3.0e-4}, runs: '${oc.env:HOME}'}")
    mine, tiny = (configs.merge(read_preset(p), []) for p in (str(path), "tiny"))
    assert configs.differences(tiny, mine, ()) == [
        "name:  -> 010",
        "optimizer.lr: 0.001 -> 0.0003",
        "runs: runs -> ${oc.env:HOME}",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: tinny", r"mine\.yaml: base: no preset or base 'tinny'; did you mean tiny\?"),
        ("base: 7", r"base: no preset or base '7'; write the name of a preset, such as"),
        ("base: ../tiny", r"base: no preset or base '\.\./tiny'; did you mean tiny\?"),
        ("{base: tiny, base: tiny}", r"mine\.yaml: .*a key is repeated"),
        ("{base: first}", r"mine\.yaml: its bases form a cycle: first -> second -> first"),
        ("{base: mine}", r"mine\.yaml: its bases form a cycle: mine -> mine"),
        ("{base: broken}", r"broken\.yaml: not a mapping of settings"),
    ],
)
def test_wrong_bases_are_refused(folder, text, message):
    write(folder, tiny="seed: 1", first="base: second", second="base: first", broken="- a")
    write(folder, mine=text)
    with pytest.raises(UsageError, match=message):
        read_preset("mine")


def test_a_base_is_neither_a_preset_nor_a_setting():
    with pytest.raises(UsageError, match=r"no preset 'published'"):
        read_preset("published")
    with pytest.raises(UsageError, match=r"base is not a setting"):
        configs.load("tiny", ["base=tiny"])
