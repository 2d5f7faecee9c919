"""Shard sets whose hashes are right and whose content is not: quarantined or refused, by name."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from pipeline.data.split import BatchSplit
from pipeline.data.store import Store
from pipeline.data.stream import DataSettings, train_stream
from shards.errors import DataError
from shards.files import sha256
from shards.format.index import SAMPLES, SampleIndex, save_rows
from shards.format.manifest import MANIFEST, File, Manifest, digest
from shards.format.schema import TASKS
from shards.verify import verify


def saved(folder: Path, manifest: Manifest) -> None:
    """Write a manifest with the present hashes of its files."""
    shards = tuple(
        replace(
            shard, sha256=sha256(folder / shard.name), bytes=(folder / shard.name).stat().st_size
        )
        for shard in manifest.shards
    )
    replace(manifest, shards=shards, index=File.of(folder / SAMPLES)).save(folder)


def forge_sample(folder: Path, position: int, change) -> str:
    """Change the JSON of a sample, keep all hashes right, and return its key."""
    manifest, index = Manifest.load(folder), SampleIndex.load(folder)
    rows = [index.rows(number) for number in range(len(manifest.shards))]
    shard = int(index.shard[position])
    row = rows[shard][position - int(np.searchsorted(index.shard, shard))]
    tar = folder / manifest.shards[shard].name
    data = bytearray(tar.read_bytes())
    start, end = row["offset"], row["offset"] + row["length"]
    at = data.index(b'{"attribution"', start, end)
    size = data.index(b"\0", at, end) - at
    changed = change(json.loads(data[at : at + size]))
    text = (
        changed
        if isinstance(changed, bytes)
        else json.dumps(changed, separators=(",", ":")).encode()
    )
    room = -(-size // 512) * 512
    assert len(text) <= room, "the padding of the member belongs to its new content"
    data[at : at + room] = text.ljust(room, b" ")
    # The header of the member, 512 bytes before it, gets the new size and checksum.
    header = bytearray(data[at - 512 : at])
    header[124:136] = b"%011o\0" % room
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[at - 512 : at] = header
    tar.write_bytes(data)
    row["xxh3"] = xxhash.xxh3_64_intdigest(bytes(data[start:end]))
    save_rows(folder, rows)
    saved(folder, manifest)
    return row["key"]


def entry(**values):
    """Return a change of the first segment."""

    def change(document):
        document["segments"][0] |= values
        document["instances"] = document["instances"][:1]  # makes room
        return document

    return change


CHANGES = {
    "no mapping": (lambda d: [], "schema None"),
    "no JSON": (lambda d: b"{", "the json member is damaged"),
    "nested": (lambda d: b"[" * 1000, "the json member is damaged"),
    "width of text": (lambda d: d | {"width": "640"}, "width is '640', not a whole number"),
    "huge size": (lambda d: d | {"width": 1 << 40}, "the size is 1099511627776x"),
    "no size": (lambda d: d | {"height": 0}, "the size is"),
    "segments of numbers": (lambda d: d | {"segments": [1]}, r"segments\[0\] is 1, not a mapping"),
    "an unknown class": (entry(category=133), "has category 133 of 133"),
    "a negative class": (entry(category=-1), "has category -1 of 133"),
    "a class of text": (entry(category="1"), r"segments\[0\].category is '1'"),
    "crowd": (entry(iscrowd=2), "has iscrowd 2"),
    "a short box": (entry(bbox=[1.0]), "has iscrowd 0 and a box"),
    "no finite area": (entry(area=float("inf")), r"segments\[0\].area is inf"),
    "fewer segments": (lambda d: d | {"segments": d["segments"][:1]}, "more values than the 1"),
    "no segments": (lambda d: {k: v for k, v in d.items() if k != "segments"}, "only one of the"),
    "a layer beyond": (
        lambda d: d | {"instances": [d["instances"][0] | {"layer": 99}]},
        "has layer 99 and value",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_sample_of_wrong_types_is_replaced_in_training(name: str, spare_set: Path) -> None:
    change, message = CHANGES[name]
    positions = range(len(SampleIndex.load(spare_set)))
    store = Store(spare_set)
    position = next(n for n in positions if len(store.load(n).instances or ()) > 1)
    key = forge_sample(spare_set, position, change)
    store = Store(spare_set)
    with pytest.raises(DataError, match=message):
        store.load(position)
    stream = train_stream(
        DataSettings(crop=32), [store], "panoptic", 5, 0, BatchSplit(len(positions), 2)
    )
    found = [row for batch in islice(stream, len(positions) // 2) for row in batch.damaged]
    assert {row["key"] for row in found} == {key}
    assert not {row["substitute"] for row in found} & {key}
    with pytest.raises(DataError, match="problems"):
        verify(spare_set, report=lambda line: None)


@pytest.mark.parametrize("task", TASKS)
def test_values_beyond_the_classes_are_refused_for_every_task(task: str, spare_set: Path) -> None:
    key = forge_sample(spare_set, 0, entry(category=200))
    stream = train_stream(DataSettings(crop=32), [Store(spare_set)], task, 5, 0, BatchSplit(10, 10))
    assert {row["key"] for row in next(iter(stream)).damaged} == {key}


COLUMNS = {
    "an offset of 2^63": ("offset", 2**63, "reaches beyond the end of its shard"),
    "an offset of 2^64 - 1": ("offset", 2**64 - 1, "reaches beyond the end of its shard"),
    "a length of 2^40": ("length", 2**40, "reaches beyond the end of its shard"),
    "a shard of 2^32 - 1": ("shard", 2**32 - 1, "a sample is in shard 4294967295 of 3"),
    "a width of 0": ("width", 0, "does not have 1 to"),
    "a width of 2^32 - 1": ("width", 2**32 - 1, "does not have 1 to"),
    "a missing key": ("key", None, "a value is missing"),
    "a missing length": ("length", None, "a value is missing"),
    "a long key": ("key", "k" * 2000, "a key has more than"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_an_index_that_contradicts_the_set_is_refused(name: str, spare_set: Path) -> None:
    column, value, message = COLUMNS[name]
    table = pq.read_table(spare_set / SAMPLES)
    values = table[column].to_pylist()
    values[-1] = value
    position = table.column_names.index(column)
    field = table.schema.field(column)
    pq.write_table(
        table.set_column(position, field, pa.array(values, field.type)), spare_set / SAMPLES
    )
    manifest = Manifest.load(spare_set)
    saved(spare_set, manifest)
    with pytest.raises(DataError, match=rf"samples\.parquet.*{message}"):
        Store(spare_set)


def test_an_index_of_more_rows_than_bytes_is_not_read(spare_set: Path) -> None:
    table = pq.read_table(spare_set / SAMPLES)
    pq.write_table(table.take([0] * 1_000_000), spare_set / SAMPLES, compression="zstd")
    manifest = Manifest.load(spare_set)
    first = replace(manifest.shards[0], samples=1_000_000 - 1, bytes=1 << 40)
    replace(
        manifest, shards=(first, *manifest.shards[1:]), index=File.of(spare_set / SAMPLES)
    ).save(spare_set)
    with pytest.raises(DataError, match=r"1000000 rows in \d+ bytes"):
        SampleIndex.load(spare_set)


MANIFESTS = {
    "shards of text": ({"shards": "text"}, "shards is 'text', not a list"),
    "bytes of text": ({"index": {"bytes": "7", "sha256": "a"}}, "index.bytes is '7'"),
    "a list": ({"taxonomy": []}, "taxonomy is a list, not a mapping"),
    "no classes": ({"taxonomy": {"name": "t", "categories": []}}, "list of categories is empty"),
    "a color": (
        {"taxonomy": {"name": "t", "categories": [
            {"id": 1, "name": "a", "isthing": True, "color": [0, 0, 256]}]}},
        r"color \[0, 0, 256\] is not three numbers",
    ),
    "a flag": (
        {"taxonomy": {"name": "t", "categories": [
            {"id": 1, "name": "a", "isthing": "no", "color": [0, 0, 0]}]}},
        r"taxonomy.categories\[0\].isthing is 'no', not true or false",
    ),
    "a task": ({"tasks": ["panoptic", "depth"]}, "'depth' is not a task"),
    "a task without truth": ({"members": ["jpg", "json"]}, "have no truth for the task"),
    "versions": ({"versions": [["a", "b"]]}, "versions is a list, not a mapping"),
    "licenses": ({"licence": [3]}, r"licence\[0\] is 3, not a mapping"),
    "foreign": ({"foreign": {"image": "jpg"}}, "foreign.*is missing"),
    "hash": ({"shards": [{"name": "000000.tar", "bytes": 9999, "sha256": "../a", "samples": 1}]},
             "is not 64 hex digits"),
    "samples": ({"shards": [{"name": "000000.tar", "bytes": 9, "sha256": "a" * 64, "samples": 9}]},
                "has 9 samples in 9 bytes"),
    "negative": ({"shards": [{"name": "a.tar", "bytes": -1, "sha256": "a" * 64, "samples": 0}]},
                 "has 0 samples in -1 bytes"),
    "depth": ({"versions": {"a": [[[]]]}}, "versions.a is a list, not a text"),
}  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_of_wrong_types_is_refused(name: str, spare_set: Path) -> None:
    fields, message = MANIFESTS[name]
    document = json.loads((spare_set / MANIFEST).read_text()) | fields
    document.pop("checksum")
    document["checksum"] = digest(document)
    (spare_set / MANIFEST).write_text(json.dumps(document))
    for read in (Manifest.load, Store, lambda folder: verify(folder, report=lambda line: None)):
        with pytest.raises(DataError, match=rf"manifest\.json.*{message}"):
            read(spare_set)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"schema": 1, "a": ' + "[" * 200_000, "NaN", "1"])
def test_a_manifest_that_is_no_mapping_is_refused(text: str, spare_set: Path) -> None:
    (spare_set / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json"):
        Manifest.load(spare_set)


def test_a_manifest_that_could_not_be_read_is_not_written(spare_set: Path) -> None:
    manifest, before = Manifest.load(spare_set), (spare_set / MANIFEST).read_bytes()
    with pytest.raises(DataError, match=r"licence\[0\].url is nan, not a finite number"):
        replace(manifest, licence=({"url": float("nan")},)).save(spare_set)
    assert (spare_set / MANIFEST).read_bytes() == before
