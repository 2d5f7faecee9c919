"""Match the classes of weights with those of a label space by name."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from model.weights.classes import ClassRows, Match
from pipeline.run import checkpoint
from shards.errors import some_of
from shards.format.published import match_names, published_order
from shards.format.taxonomy import Taxonomy


def match_classes(taxonomy: Taxonomy, weights: Path) -> Match:
    """Return the `Match` that compares the class names in a file with those of the data.

    Args:
        taxonomy: The classes of the data.
        weights: The file or folder of weights. A checkpoint of this project gives the names in the
            state of its trainer.
    """
    # A folder of transformers can hold another trainer_state.json, so the other file decides.
    state = weights / checkpoint.STATE if weights.is_dir() else weights
    is_checkpoint = state.name == checkpoint.STATE and state.is_file()
    is_checkpoint = is_checkpoint and (state.parent / checkpoint.TRAINER_STATE).is_file()
    known = list(checkpoint.load_trainer(state.parent).taxonomy.names) if is_checkpoint else None
    return partial(_match, taxonomy.names, known)


def order_of_classes(trained: Taxonomy, data: Taxonomy) -> list[int] | None:
    """Return for each class of the data its index among those a network was trained on.

    Returns:
        The indices; None unless both have the same classes, by name and flag.
    """
    rows = [row for row in match_names(trained.names, data.names) if row is not None]
    if len(rows) != len(data) or len(rows) != len(trained):
        return None
    same = all(trained.things[row] == thing for row, thing in zip(rows, data.things, strict=True))
    return rows if same else None


def _match(
    wanted: Sequence[str], known: list[str] | None, names: list[str] | None, count: int
) -> ClassRows:
    """Choose the rows of a class head.

    Args:
        wanted: The class names of the data.
        known: The class names that the run of the weights gives, if they come from a run.
        names: The class names in the file of weights, if it has any.
        count: The number of classes in the file.

    Raises:
        ValueError: The file has another number of rows than names; or it has no names, and it is
            unknown which classes its rows are.
    """
    names = names or known
    if names is None:
        return _without_names(wanted, count)
    if len(names) != count:
        raise ValueError(
            f"the file names {len(names)} classes, but its class head has rows for {count}; "
            "correct the names"
        )
    rows = match_names(names, wanted)
    missing = [name for name, row in zip(wanted, rows, strict=True) if row is None]
    unused = [name for row, name in enumerate(names) if row not in rows]
    if missing or unused:
        text = f"{len(wanted) - len(missing)} of {len(wanted)} classes are found by name"
        text += f", without {_some(missing)}" if missing else ""
        text += f"; the file also has {_some(unused)}" if unused else ""
    elif rows == list(range(count)):
        text = f"the file has the same {count} classes by name"
    else:
        text = f"the file has the same {count} classes in another order, so the rows are permuted"
    return ClassRows(rows, text)


def _without_names(wanted: Sequence[str], count: int) -> ClassRows:
    """Choose the rows of a class head whose file has no class names."""
    if count != len(wanted):
        text = f"the file has no class names, and {count} classes instead of {len(wanted)}"
        return ClassRows([None] * len(wanted), text)
    published = published_order(wanted)
    if published is None:
        raise ValueError(
            f"the file has no class names, so that it is unknown which of its {count} rows is "
            f"{wanted[0]}: the classes of the data are not those of a published data set; give a "
            "run, an export of this project, or a folder of transformers whose config.json has the "
            "names as id2label, or add the names to the file (docs/model.md)"
        )
    data_set, names = published
    text = f"the file has no class names: its rows are assumed to be the {count} classes of "
    return ClassRows(
        match_names(names, wanted), f"{text}{data_set} in the publisher's order ({_some(names)})"
    )


def _some(names: Sequence[str]) -> str:
    return some_of(names, 6)
