"""Output folders and files: what a command may replace, and what it must leave alone."""

import json
import os

import pytest

from jobs.outputs import MARK, OutputFolder, check_file, claim, made_by
from shards.errors import UsageError

NAMES = ("a.png", "sub/b.png")
SIGNATURE = b"made by a test"


def tree(folder):
    """Return the content of every file below a folder, by name; links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = path.readlink()
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def fill(output, names=NAMES, text="result"):
    for name in names:
        (output.path / name).write_text(text)


def mark(folder):
    return json.loads((folder / MARK).read_text())


def test_the_mark_tells_whole_from_unfinished(tmp_path):
    output = OutputFolder(tmp_path / "out", "predict", NAMES, [])
    assert mark(output.path)["complete"] is False
    assert made_by(output.path) == "predict"
    fill(output, NAMES[:1])
    assert mark(output.path)["complete"] is False
    output.finish()
    assert mark(output.path)["complete"] is True
    assert list(mark(output.path)["files"]) == ["a.png"]


@pytest.mark.parametrize("finished", [True, False])
def test_the_same_command_replaces_its_results_whole(tmp_path, finished):
    output = OutputFolder(tmp_path, "predict", [*NAMES, "old.png"], [])
    fill(output, [*NAMES, "old.png"])
    (tmp_path / "mine.txt").write_text("a note that was added later")
    if finished:
        output.finish()
    output = OutputFolder(tmp_path, "predict", NAMES, [])
    assert set(tree(tmp_path)) == {MARK, "mine.txt"}
    fill(output, text="new")
    output.finish()
    OutputFolder(tmp_path, "predict", NAMES, [])
    assert set(tree(tmp_path)) == {MARK, "mine.txt"}


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / f"{MARK}.tmp-7").write_text("{")
    long = "x" * 200 + ".png"
    OutputFolder(out, "predict", [*NAMES, long], [])
    for name in ("a.png.tmp-7", "sub/b.png.tmp-8", f"{long[:60]}.tmp-9", f"{MARK}.tmp-7"):
        (out / name).write_text("half")
    for name in ("c.png.tmp-7", "a.png.tmp", "sub/a.png.tmp-7"):
        (out / name).write_text("mine")
    OutputFolder(out, "predict", NAMES, [])
    assert set(tree(out)) == {MARK, "c.png.tmp-7", "a.png.tmp", "sub/a.png.tmp-7"}


@pytest.mark.parametrize(
    "state",
    [
        "a file",
        "a hidden file",
        "another command",
        "an empty mark",
        "a list",
        "a linked mark",
    ],
)
def test_a_folder_with_anything_else_is_refused(tmp_path, state):
    out = tmp_path / "out"
    out.mkdir()
    contents = {
        "a file": ("photo.jpg", "x"),
        "a hidden file": (".notes", "x"),
        "another command": (MARK, '{"command": "demo", "complete": true, "files": {}}'),
        "an empty mark": (MARK, "{}"),
        "a list": (MARK, '[["command", "predict"]]'),
        "a linked mark": ("x", '{"command": "predict", "complete": true, "files": {}}'),
    }
    name, text = contents[state]
    (out / name).write_text(text)
    if state == "a linked mark":
        (out / name).rename(tmp_path / "mark")
        (out / MARK).symlink_to(tmp_path / "mark")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=r"the folder holds .*; name a new or empty folder"):
        OutputFolder(out, "predict", NAMES, [])
    assert tree(tmp_path) == before


def changed(out):
    (out / "a.png").write_text("painted over by the user")


def linked_file(out):
    (out / "a.png").unlink()
    (out / "a.png").symlink_to(out.parent / "photo.png")


def linked_folder(out):
    (out / "sub/b.png").unlink()
    (out / "sub").rmdir()
    (out / "sub").symlink_to(out.parent / "photos")


def added(out):
    (out / "c.png").write_text("a photograph")


@pytest.mark.parametrize("change", [changed, linked_file, linked_folder, added])
def test_a_file_of_the_user_in_a_marked_folder_is_refused(tmp_path, change):
    (tmp_path / "photos").mkdir()
    for name in ("photo.png", "photos/b.png"):
        (tmp_path / name).write_text("result")
    out = tmp_path / "out"
    output = OutputFolder(out, "predict", NAMES, [])
    fill(output)
    output.finish()
    change(out)
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=r"\.png would replace what predict did not write"):
        OutputFolder(out, "predict", [*NAMES, "c.png"], [])
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["../photo.png", "/{}/photo.png", "link/photo.png", "x/../../photo.png"]
)
def test_a_forged_mark_removes_nothing_outside(tmp_path, name):
    (tmp_path / "photo.png").write_text("mine")
    out = tmp_path / "out"
    claim(out, "predict")
    (out / "link").symlink_to(tmp_path)
    files = {name.format(str(tmp_path).strip("/")): ""}
    (out / MARK).write_text(json.dumps({"command": "predict", "complete": True, "files": files}))
    OutputFolder(out, "predict", NAMES, [])
    assert (tmp_path / "photo.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("out", "source"),
    [
        ("photos", "photos/a.jpg"),
        (".", "photos/a.jpg"),
        ("photos/link", "photos/a.jpg"),
        ("link", "photos"),
        ("photos/new", "photos"),
        ("photos/../photos/new/deeper", "link"),
    ],
)
def test_inputs_and_results_that_meet_are_refused(tmp_path, out, source):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_text("a photograph")
    (tmp_path / "link").symlink_to("photos")
    (tmp_path / "photos/link").symlink_to(tmp_path / "photos")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="which is read, and the results would be in one folder"):
        OutputFolder(tmp_path / out, "predict", NAMES, [tmp_path / source])
    assert tree(tmp_path) == before
    assert not (tmp_path / "photos/new").exists()


def test_what_the_disk_refuses_is_one_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=r"--out .*file: File exists; name another folder"):
        OutputFolder(tmp_path / "file", "predict", NAMES, [])


def check(path, *, force=False, inputs=()):
    check_file(path, "--out", SIGNATURE, inputs, force=force)


def test_a_file_is_replaced_if_the_command_wrote_it_or_the_user_forces_it(tmp_path):
    file = tmp_path / "x.png"
    check(file)
    file.write_bytes(b"\x89PNG" + SIGNATURE)
    check(file)
    file.write_bytes(b"a photograph")
    with pytest.raises(UsageError, match=r"x\.png: exists already .*--force"):
        check(file)
    check(file, force=True)
    link = tmp_path / "link.png"
    for target in ("x.png", "nowhere"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with pytest.raises(UsageError, match="exists already"):
            check(link)


def test_a_folder_a_device_and_an_input_are_never_replaced(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to("set")
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {
        "set": "is not a file",
        "pipe": "is not a file",
        "link/000000.tar": "which is read",
        "missing/x.png": "does not exist",
    }.items():
        with pytest.raises(UsageError, match=reason):
            check(tmp_path / name, force=True, inputs=[tmp_path / "set"])
