"""Every value of a setting is either kept or refused with the name of the setting."""

import dataclasses
import math
import pickle
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.families import BACKBONES
from model.network_settings import (
    BACKBONE_NAMES,
    CriterionSettings,
    MaskedDecoderSettings,
    ModelSettings,
    PixelDecoderSettings,
    SegmentSettings,
)
from model.settings import SettingError, Settings, setting

CLASSES = (
    ModelSettings,
    PixelDecoderSettings,
    MaskedDecoderSettings,
    CriterionSettings,
    SegmentSettings,
)


@dataclass
class Example(Settings):
    """Settings with a field of every kind."""

    count: int = setting(3, "A whole number.", at_least=1, multiple_of=3)
    share: float = setting(0.5, "A number.", above=0, below=1)
    sizes: list[float] = setting([1.0], "A list.", at_least=0, at_most=9)  # noqa: RUF009
    name: str = setting("a", "A choice.", choices=("a", "b"))
    text: str = setting("x-1", "A text.", pattern=r"\w-\d")
    limit: int | None = setting(None, "A whole number or null.", at_least=1)
    flag: bool = setting(False, "A Boolean.")

    def check(self) -> None:
        if self.flag and self.limit is None:
            raise SettingError("limit", "=null with flag=true", "give a limit")


VALUES = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.text(max_size=4),
    st.none(),
    st.lists(st.floats(), max_size=3),
    st.sampled_from(["a", "x-1", 3, 0.5]),
)


def built(fields: dict) -> tuple[Example | None, SettingError | None]:
    """Return the settings, or the error that refuses them."""
    try:
        return Example(**fields), None
    except SettingError as error:
        return None, error


@given(st.sampled_from([field.name for field in dataclasses.fields(Example)]), VALUES)
def test_a_value_is_kept_or_refused_by_name(name: str, value: object) -> None:
    example, refusal = built({name: value})
    if example is None:
        assert refusal is not None
        assert refusal.key in (name, "limit")
        assert refusal.fix
        return
    kept = getattr(example, name)
    assert kept == value or kept == [value]
    assert example.count >= 1
    assert example.count % 3 == 0
    assert 0 < example.share < 1
    assert all(0 <= size <= 9 for size in example.sizes)
    assert example.name in ("a", "b")
    assert isinstance(example.flag, bool)
    assert isinstance(example.count, int)
    assert isinstance(example.share, float)
    assert dataclasses.replace(example) == example


WRONG = [
    ({"count": 0}, "count=0; it must be at least 1"),
    ({"count": 4}, "count=4; it must be a multiple of 3"),
    ({"count": True}, "count=true; it must be a whole number"),
    ({"count": "3"}, "count=3; it must be a whole number"),
    ({"share": 1}, "share=1; it must be less than 1"),
    ({"share": math.nan}, "share=nan; it must be a finite number below 2^63"),
    ({"sizes": [1, 10]}, "sizes=[1, 10]; it must be at most 9"),
    ({"name": "c"}, "name=c; choose one of a, b"),
    ({"text": "x"}, r"text=x; it must match \w-\d"),
    ({"flag": 1}, "flag=1; it must be true or false"),
    ({"limit": 0}, "limit=0; it must be at least 1"),
    ({"flag": True}, "limit=null with flag=true; give a limit"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_values_are_named(fields: dict, message: str) -> None:
    with pytest.raises(SettingError) as error:
        Example(**fields)
    assert str(error.value) == message
    assert str(pickle.loads(pickle.dumps(error.value))) == message
    assert str(error.value.under("model")) == f"model.{message}"


def test_lists_are_not_shared_between_instances() -> None:
    first, second = Example(), Example()
    first.sizes.append(2.0)
    assert second.sizes == [1.0]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_setting_is_described_and_every_number_has_a_bound(kind: type[Settings]) -> None:
    for field in dataclasses.fields(kind):
        rule = field.metadata["rule"]
        assert rule.help[0].isupper(), field.name
        assert rule.help.endswith("."), field.name
        if field.type in (int, float):
            assert (rule.at_least, rule.above) != (None, None), field.name
            with pytest.raises(SettingError, match=f"^{field.name}=-1"):
                kind(**{field.name: -1})


def test_every_backbone_has_a_name_among_the_choices() -> None:
    assert tuple(BACKBONES) == BACKBONE_NAMES
