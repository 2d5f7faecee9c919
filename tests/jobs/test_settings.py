"""The list of settings, and what a settings class does with values that it refuses."""

import dataclasses
import math
import re
import typing

import jsonschema
import pytest
import yaml

from jobs import config as configs
from jobs.preset import PRESETS as FOLDER
from jobs.settings import as_markdown, as_text, entries, schema
from model.backbone import BACKBONES
from model.network_settings import BACKBONE_NAMES
from model.settings import SettingError, Settings, is_settings, without_none
from pipeline.data.augment.recipes import RECIPES
from pipeline.data.settings import DataSettings
from pipeline.settings import CheckpointSettings, EvaluationSettings, RunSettings
from shards.errors import UsageError
from tests.jobs import small

PRESETS = sorted(FOLDER.rglob("*.yaml"))  # with the bases
SECTIONS = [configs.Config, *(e.kind for e in entries(configs.Config) if is_settings(e.kind))]
# Other fields that make a value of None possible.
BESIDE_NONE = {"every_minutes": {"every_steps": 1}}
ODD_VALUES = (-1, 0, math.nan, math.inf, -math.inf, 10**400, "text", "", True, [], {}, None)


def numeric(kind: type[Settings]) -> list[dataclasses.Field]:
    """Return the fields of a class that hold a number or a list of numbers."""
    hints = typing.get_type_hints(kind)
    numbers = (int, float, list[float], list[int])
    return [f for f in dataclasses.fields(kind) if without_none(hints[f.name])[0] in numbers]


NUMERIC = [(kind, field) for kind in SECTIONS for field in numeric(kind)]


def test_the_settings_are_found():
    """The tests below would pass on an empty list."""
    keys = {entry.key for entry in entries(configs.Config)}
    assert {"seed", "data.cache.gib", "model.pixel_decoder.points", "scaling.workers"} <= keys
    assert len(NUMERIC) > 45


@pytest.mark.parametrize(
    ("kind", "field"), NUMERIC, ids=[f"{kind.__name__}.{field.name}" for kind, field in NUMERIC]
)
def test_an_odd_value_is_refused_by_name_or_allowed_by_the_rule(kind, field):
    """Nothing is refused by another error than SettingError, and nothing passes that should not."""
    declared, optional = without_none(typing.get_type_hints(kind)[field.name])
    is_list = typing.get_origin(declared) is list
    rule = field.metadata["rule"]
    for odd in ODD_VALUES:
        value = [odd] if is_list and odd not in ([], None) else odd
        zero_is_allowed = rule.at_least == 0 or 0 in rule.choices
        if (
            (odd is None and optional)
            or (odd == [] and is_list and field.name != "scale")
            or (odd == 0 and type(odd) is int and zero_is_allowed)
        ):
            kind(**{field.name: value} | (BESIDE_NONE.get(field.name, {}) if odd is None else {}))
        else:
            with pytest.raises(SettingError, match=rf"^{field.name}="):
                kind(**{field.name: value})


RULES = {
    entry.key: entry.rule
    for entry in entries(configs.Config)
    if without_none(entry.kind)[0] in (int, float, list[float])
}


@pytest.mark.parametrize("key", RULES)
def test_an_odd_value_on_the_command_line_is_refused_by_its_key(key):
    sets = ["data.train=a", "data.val=b"]
    for text in ("-1", "0", "nan", "-inf", "1e999", "text", "0x10", "{"):
        overrides = [*sets, f"{key}={text}"]
        if text == "0" and (RULES[key].at_least == 0 or 0 in RULES[key].choices):
            configs.load("tiny", overrides)
        else:
            with pytest.raises(UsageError, match=rf"^{re.escape(key)}[ =].*$"):
                configs.load("tiny", overrides)


def test_a_class_is_checked_without_a_config():
    with pytest.raises(ValueError, match=r"^augment=lsjj; choose one of lsj, shortest_edge, none$"):
        DataSettings(augment="lsjj")
    with pytest.raises(SettingError, match=r"^short=2000 is greater than long=1333; "):
        EvaluationSettings(short=2000)
    with pytest.raises(SettingError, match=r"^train=5; it must be a list$"):
        DataSettings(train=5)
    with pytest.raises(SettingError, match=r"^every_minutes=null with checkpoint.every_steps=null"):
        CheckpointSettings(every_minutes=None)
    assert DataSettings(train="a").train == ["a"]
    assert DataSettings(scale=(1, 2)).scale == [1.0, 2.0]
    assert RunSettings().data is not RunSettings().data


def test_choices_are_what_the_code_knows():
    choices = {entry.key: entry.rule.choices for entry in entries(configs.Config)}
    assert set(choices["data.augment"]) == set(RECIPES)
    assert tuple(BACKBONES) == BACKBONE_NAMES


def test_every_setting_has_a_sentence():
    for entry in entries(configs.Config):
        assert entry.rule.help[0].isupper(), entry.key
        assert entry.rule.help.endswith("."), entry.key


def test_the_document_is_up_to_date():
    """Renew it by `./launch.sh settings --markdown > docs/settings.md`."""
    assert (small.ROOT / "docs/settings.md").read_text() == as_markdown()


def test_the_list_marks_what_a_preset_changes():
    lines = as_text("tiny").splitlines()
    assert any(line.startswith("* data.crop=96  (a whole number of pixels, ") for line in lines)
    assert any(line.startswith("  seed=42  (a whole number, at least 0)") for line in lines)
    assert not any(line.startswith("*") for line in as_text().splitlines())
    with pytest.raises(UsageError, match="did you mean tiny"):
        as_text("tyni")


def test_the_command_prints_each_form(tmp_path):
    assert small.call(tmp_path, "settings").out == as_text()
    assert small.call(tmp_path, "settings", "tiny").out == as_text("tiny")
    assert small.call(tmp_path, "settings", "--markdown").out == as_markdown()
    assert yaml.safe_load(small.call(tmp_path, "settings", "--json-schema").out) == schema(
        configs.Config
    )
    outcome = small.call(tmp_path, "settings", "tiny", "--markdown")
    assert (outcome.code, small.complaint(outcome)) == (
        2,
        "error: give only one of PRESET, --json-schema, and --markdown",
    )


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_fits_the_json_schema(preset):
    document = schema(configs.Config)
    jsonschema.Draft202012Validator.check_schema(document)
    validator = jsonschema.Draft202012Validator(document)
    validator.validate(yaml.safe_load(preset.read_text()))
    sets = ["data.train=[a,b]", "data.val=c", "scaling.workers=1"]
    validator.validate(configs.to_dict(configs.load(str(preset), sets)))


@pytest.mark.parametrize(
    "document",
    [
        {"trainer": {"steps": 0}},
        {"trainer": {"stepz": 1}},
        {"trainer": {"steps": "1"}},
        {"optimizer": {"clip": 0}},
        {"data": {"crop": 100}},
        {"data": {"augment": "lsjj"}},
        {"data": {"scale": [0]}},
        {"scaling": {"gpu": "yes"}},
        {"name": "a/b"},
    ],
)
def test_the_json_schema_refuses_what_the_settings_refuse(document):
    assert not jsonschema.Draft202012Validator(schema(configs.Config)).is_valid(document)
    with pytest.raises(UsageError):
        configs.merge(document, [])
