"""`model.init_from` compares class names: equal names keep their rows, and nothing is guessed."""

from pathlib import Path

import pytest
import torch

from model.mask2former import Mask2Former
from model.weights.classes import CLASS_HEAD
from pipeline.run import checkpoint
from pipeline.run.checkpoint import Progress, TrainerState
from pipeline.run.class_match import match_classes, order_of_classes
from pipeline.run.restore import initialize
from shards.format.taxonomy import Category, Taxonomy
from tests.pipeline.runs import MODEL


def taxonomy(*names: str, things: tuple[str, ...] = ()) -> Taxonomy:
    rows = enumerate(names)
    return Taxonomy("test", tuple(Category(i, name, name in things, (0, 0, 0)) for i, name in rows))


def saved(folder: Path, classes: Taxonomy) -> Mask2Former:
    """Write a checkpoint of a random network and return the network."""
    torch.manual_seed(0)
    model = Mask2Former(MODEL, len(classes))
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    checkpoint.save(folder, state, TrainerState(Progress(), {}, 1, 1, classes, {}))
    return model


@pytest.mark.parametrize(
    ("old", "new", "rows", "text"),
    [
        ("abcd", "abcd", [0, 1, 2, 3], "the file has the same 4 classes by name"),
        ("abcd", "dbca", [3, 1, 2, 0], "the same 4 classes in another order, so the rows are perm"),
        ("abcd", "db", [3, 1], "2 of 2 classes are found by name; the file also has a, c"),
        ("ab", "bxa", [1, None, 0], "2 of 3 classes are found by name, without x"),
        ("abcd", "bxyz", [1, None, None, None], "without x, y, z; the file also has a, c, d"),
        ("ab", "xyz", [None] * 3, "0 of 3 classes are found by name, without x, y, z"),
        ("ab", "AB", [0, 1], "the file has the same 2 classes by name"),
    ],
)
def test_rows_of_equal_names_are_kept(old, new, rows, text, tmp_path):
    source = saved(tmp_path / "c", taxonomy(*old))
    torch.manual_seed(1)
    model = Mask2Former(MODEL, len(new))
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "c"
    for named in (path, path / checkpoint.STATE):
        event = initialize(model, str(named), "panoptic", taxonomy(*new))
        assert text in event.text
        assert bool(event.fresh) == (None in rows)
    found = [row for row in (*rows, len(old)) if row is not None]
    any_row = len(found) > 1
    for name in CLASS_HEAD:
        head, theirs = model.state_dict()[name], source.state_dict()[name]
        for index, row in enumerate([*rows, len(old) if any_row else None]):
            wanted = initial[name][index] if row is None else theirs[row]
            assert torch.equal(head[index], wanted)


def test_weights_without_names_are_taken_for_a_published_data_set_or_refused(tmp_path):
    cityscapes = ("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light",
                  "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck",
                  "bus", "train", "motorcycle", "bicycle")  # fmt: skip
    match = match_classes(taxonomy(*cityscapes), tmp_path)
    chosen = match(None, 19)
    assert chosen.rows == list(range(19))
    assert "assumed to be the 19 classes of cityscapes in the publisher's order" in chosen.text
    turned = match_classes(taxonomy(*reversed(cityscapes)), tmp_path)
    assert turned(None, 19).rows == list(range(18, -1, -1))
    assert match(None, 133).rows == [None] * 19
    assert match(None, 133).text == "the file has no class names, and 133 classes instead of 19"
    mine = match_classes(taxonomy("cell", "nucleus"), tmp_path)
    with pytest.raises(ValueError, match=r"no class names.* its 2 rows is cell: .* id2label"):
        mine(None, 2)
    with pytest.raises(ValueError, match="names 3 classes, but its class head has rows for 2"):
        mine(["cell", "nucleus", "void"], 2)


def test_the_names_of_a_file_count_more_than_those_of_a_run_beside_it(tmp_path):
    saved(tmp_path / "c", taxonomy("a", "b"))
    match = match_classes(taxonomy("a", "b"), tmp_path / "c" / "other.pkl")
    assert match(["b", "a"], 2).rows == [1, 0]
    with pytest.raises(ValueError, match="no class names"):
        match(None, 2)


def test_the_state_of_the_trainer_of_transformers_is_not_read(tmp_path):
    (tmp_path / checkpoint.TRAINER_STATE).write_text('{"epoch": 3.0, "log_history": []}')
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert match_classes(taxonomy("a", "b"), path)(["b", "a"], 2).rows == [1, 0]


def test_evaluation_needs_the_same_classes_with_the_same_flags():
    trained = taxonomy("a", "b", "c", things=("b",))
    assert order_of_classes(trained, taxonomy("c", "B", "a", things=("B",))) == [2, 1, 0]
    assert order_of_classes(trained, taxonomy("c", "b", "a")) is None
    assert order_of_classes(trained, taxonomy("a", "b", things=("b",))) is None
    assert order_of_classes(trained, taxonomy("a", "b", "c", "d", things=("b",))) is None
