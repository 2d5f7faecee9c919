"""The sheet of an evaluation: its size for photographs of any size."""

import torch

from pipeline.data.store import Store
from pipeline.pictures.sheet import MAX_SIDE, sheet
from pipeline.settings import EvaluationSettings
from shards.build.build import build
from tests.pipeline.score.test_evaluate import AT_OWN_SIZE, Oracle
from tests.shards.raw import sky, write


def test_large_photographs_are_shrunk(tmp_path):
    raw = write(tmp_path / "raw", [sky("a.png", (2400, 1600)), sky("b.png", (320, 256))])
    build("coco", raw, tmp_path / "out", jobs=1, shards=1, report=lambda _: None)
    store = Store(tmp_path / "out/val")
    settings = EvaluationSettings(short=AT_OWN_SIZE.short, long=AT_OWN_SIZE.long)
    picture = sheet(Oracle(store, settings).eval(), store, settings, torch.device("cpu"), 2)
    height, width = picture.shape[:2]
    rows, gap = MAX_SIDE * 1600 // 2400, 12
    assert rows < height < rows + 150
    assert width == 3 * MAX_SIDE + 3 * round(320 * (rows + 1) / 256) + 7 * gap
