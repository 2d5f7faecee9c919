"""Pieces of work in separate processes: results, errors, and processes that are killed."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from shards.errors import DataError, Failed
from shards.parallel import ATTEMPTS, processes, run


@dataclass(frozen=True)
class Piece:
    """A piece whose process is killed `deaths` times; every attempt appends a byte to `tar`."""

    tar: Path
    deaths: int = 0


def work(piece: Piece) -> str:
    with piece.tar.open("ab") as attempts:
        attempts.write(b".")
    if piece.tar.stat().st_size <= piece.deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    if piece.tar.name == "wrong":
        raise DataError(f"{piece.tar}: wrong")
    return piece.tar.name


def run_all(pieces):
    return run(work, pieces, processes(2), "pieces", [1] * len(pieces))


def test_results_come_in_the_order_of_the_pieces(tmp_path):
    pieces = [Piece(tmp_path / str(n)) for n in range(5)]
    assert run_all(pieces) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("name", ["a{b}", "[/red]", "{0}", "\x1b[2J"])
def test_the_name_of_a_bar_is_plain_text(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal
    assert run(work, [Piece(tmp_path / "0")], processes(1), name, [1]) == ["0"]
    assert (ascii(name)[1:-1] if "\x1b" in name else name) in capsys.readouterr().err


def test_a_killed_piece_is_tried_again_and_no_other_is(tmp_path):
    pieces = [Piece(tmp_path / str(n), deaths=(ATTEMPTS - 1) * (n == 1)) for n in range(4)]
    assert run_all(pieces) == ["0", "1", "2", "3"]
    assert [piece.tar.stat().st_size for piece in pieces] == [1, ATTEMPTS, 1, 1]


def test_a_piece_that_always_dies_is_named(tmp_path):
    pieces = [Piece(tmp_path / "good"), Piece(tmp_path / "deadly", deaths=ATTEMPTS)]
    with pytest.raises(Failed, match=r"deadly: its process died 3 times .*-9.*--jobs"):
        run_all(pieces)


def test_an_error_arrives_with_its_origin_and_ends_the_others(tmp_path):
    start = time.monotonic()
    with pytest.raises(DataError, match="wrong: wrong") as error:
        run_all([Piece(tmp_path / "wrong"), Piece(tmp_path / "good")])
    assert "in work" in error.value.__notes__[0]
    assert time.monotonic() - start < 60
