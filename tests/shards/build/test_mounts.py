"""Build, index, verify, and inspect on file systems without mmap or fsync of folders."""

import errno
import mmap
import os
import stat

import pytest

from shards.files import sync
from shards.inspect import overview
from shards.parallel import processes
from shards.verify import verify
from tests.shards import raw_folder
from tests.shards.build.test_index import indexed, pack, sample
from tests.shards.raw_maps import made, write


@pytest.fixture
def plain_mount(monkeypatch):
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    class NoMap(mmap.mmap):
        def __new__(cls, *_: object, **__: object):
            raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr("os.fsync", only_files)
    monkeypatch.setattr("mmap.mmap", NoMap)


def test_a_set_is_built_and_read(plain_mount, tmp_path):
    write(raw_folder, tmp_path / "raw")
    made(raw_folder, tmp_path / "raw", tmp_path / "out")
    verify(tmp_path / "out", runner=processes(1), report=lambda line: None)
    assert overview(tmp_path / "out/train", processes(1)).tally.images.sum()


def test_tars_are_indexed_and_read(plain_mount, tmp_path):
    pack(tmp_path / "a.tar", *sample("a"))
    indexed(tmp_path)
    assert overview(tmp_path, processes(1)).tally.images.sum()


def test_a_disk_that_fails_is_not_taken_for_such_a_mount(monkeypatch, tmp_path):
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        sync(tmp_path)
