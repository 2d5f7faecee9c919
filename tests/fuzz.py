"""Feed mutated files to every parser, in a process of limited memory.

`python -m tests.fuzz FOLDER SEED COUNT` prints one JSON line per input that a parser met with
anything except a value or an error for the user. COUNT scales the number of inputs per parser.
"""

import contextlib
import copy
import io
import json
import pickle
import random
import re
import resource
import signal
import struct
import sys
import tarfile
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
import yaml
from safetensors.torch import save_file

from jobs import config as configs
from jobs.values import read_yaml
from model.weights.files import read as read_weights
from pipeline.data.batch import truth_of, without_empty
from pipeline.data.store import Store
from pipeline.run import checkpoint, eventlog
from shards.build.examine_tar import TarToExamine, examine
from shards.build.writer import BuiltShard
from shards.doctor import Doctor
from shards.errors import DataError, UsageError
from shards.files import sha256
from shards.format.codec import encode
from shards.format.images import decode_image, image_of
from shards.format.index import SAMPLES, SampleIndex, save_rows, scan
from shards.format.label_maps import labels_in
from shards.format.manifest import MANIFEST, File, Foreign, Manifest, Shard, digest
from shards.format.read import read_sample
from shards.format.schema import TASKS, Instance, Sample, Segment
from shards.format.taxonomy import Category, Taxonomy
from shards.inspect import Part, tally
from shards.raw.images import check_image, read_ids
from shards.raw.json_entries import iterate_entries
from shards.sources.classes import load_classes
from shards.sources.coco import read as read_coco
from shards.sources.coco_item import CocoFiles

MEMORY_BYTES = 3 << 30  # beyond what the imports take
INPUT_S = 30  # the limit for one input

TAXONOMY = Taxonomy.of(
    "t", [Category(1, "sky", False, (0, 0, 9)), Category(2, "dog", True, (0, 9, 0))]
)
PIXELS = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
SAMPLE = Sample(
    key="a",
    image=cv2.imencode(".jpg", PIXELS)[1].tobytes(),
    ext="jpg",
    file_name="a.jpg",
    source="coco",
    image_id="7",
    width=32,
    height=24,
    segments=[Segment(5, 0, 0, 3.5, [0, 1, 2, 2.5]), Segment(6, 1, 1, 3.5, [0, 1, 2, 2])],
    segments_map=np.arange(768, dtype=np.uint8).reshape(24, 32) % 3,
    instances=[Instance(9, 1, 0, 3, [0, 0, 3, 3], 0, 1)],
    layers=np.arange(768, dtype=np.uint8).reshape(1, 24, 32) % 2,
    semantic=np.arange(768, dtype=np.uint8).reshape(24, 32) % 3,
    rights={"licence": "http://cc/by"},
)
VALUES = (
    *(None, True, -1, 0, 1, 3, 255, 65536, 2**31, 2**63, 2**64, 10**400, 1.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "x", "0", "a/../../b", "\ud800", "${oc.env:HOME}", "\0"),
    *([], {}, [[]], [1, 2, 3, 4], [None], {"a": 1}, [[0, 0, 1, 1]], "7" * 5000),
)
NESTED = "[" * 100_000


class Parser(NamedTuple):
    """A parser, its sound inputs, and how many mutated ones it gets per COUNT."""

    name: str
    seeds: list[bytes]
    parse: Callable[[Path, bytes], Any]
    mutate: Callable[[random.Random, bytes], bytes]
    count: int


class TooSlow(BaseException):
    """An input that took longer than INPUT_S."""


def mutated_bytes(rng: random.Random, seed: bytes) -> bytes:
    """Change, remove, repeat, or insert some bytes, most often near the start."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(min(len(data), rng.choice((64, 600, 1 << 30))) or 1)
        size = rng.choice((1, 1, 2, 4, 8, 100))
        match rng.randrange(6):
            case 0:
                data[at : at + size] = rng.randbytes(size)
            case 1:
                data[at : at + size] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size] * rng.choice((1, 2, 100))
            case 4:
                data = data[: max(1, at)]
            case _:
                data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)]) if data else b""
    return bytes(data)


def mutated_value(rng: random.Random, document: Any) -> Any:
    """Replace, remove, or repeat some members of a JSON value."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        nodes = list(_members(document))
        if not nodes:
            return rng.choice(VALUES)
        parent, key = rng.choice(nodes)
        match rng.randrange(5):
            case 0:
                del parent[key]
            case 1:
                other, name = rng.choice(nodes)
                parent[key] = copy.deepcopy(other[name]) if _has(other, name) else None
            case 2 if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case 3 if isinstance(parent, dict):
                parent[rng.choice(("x", "id", "\ud800"))] = parent.pop(key)
            case _:
                parent[key] = copy.deepcopy(rng.choice(VALUES))
    return document


def _members(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _members(value[key])


def _has(parent: Any, key: Any) -> bool:
    return key in parent if isinstance(parent, dict) else key < len(parent)


def mutated_json(rng: random.Random, seed: bytes) -> bytes:
    """Change the values, or the text, of a JSON document."""
    if rng.random() < 0.2:
        return mutated_bytes(rng, seed)
    if rng.random() < 0.02:
        return seed.replace(b":", b":" + NESTED.encode(), 1)
    return json.dumps(mutated_value(rng, json.loads(seed))).encode()


def mutated_yaml(rng: random.Random, seed: bytes) -> bytes:
    """Change the values, or the text, of a YAML document."""
    if rng.random() < 0.3:
        return mutated_bytes(rng, seed)
    value = mutated_value(rng, yaml.safe_load(seed))
    return yaml.safe_dump(value, allow_unicode=False).encode("utf-8", "surrogatepass")


def mutated_manifest(rng: random.Random, seed: bytes) -> bytes:
    """Change a manifest and give it the checksum of its new content."""
    changed = mutated_json(rng, seed)
    try:
        document = json.loads(changed)
        document.pop("checksum", None)
        document["checksum"] = digest(document)
        return json.dumps(document).encode()
    except (ValueError, AttributeError, TypeError, RecursionError):
        return changed


def mutated_tar(rng: random.Random, seed: bytes) -> bytes:
    """Change a tar and give its headers the checksums of their new content."""
    data = bytearray(mutated_bytes(rng, seed))
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar" or rng.random() < 0.1:
            if rng.random() < 0.3:  # a size in base 256
                data[at + 124 : at + 136] = rng.choice((b"\x80", b"\xff")) + rng.randbytes(11)
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % (sum(data[at : at + 512]) % (1 << 18))
    return bytes(data)


def mutated_index(rng: random.Random, seed: bytes) -> bytes:
    """Change values of an index, or its bytes."""
    if rng.random() < 0.5:
        return mutated_bytes(rng, seed)
    table = pq.read_table(io.BytesIO(seed))
    columns = {name: table[name].to_pylist() for name in table.column_names}
    name = rng.choice(list(columns))
    columns[name][rng.randrange(len(table))] = rng.choice(
        (None, 0, 1, 2**32 - 1, 2**63, 2**40, 2**64 - 1, "x", "k" * 5000, -1, 1.5)
    )
    stream = io.BytesIO()
    try:
        pq.write_table(pa.table(columns), stream)
    except (pa.ArrowException, OverflowError):
        return mutated_bytes(rng, seed)
    return stream.getvalue()


def mutated_png(rng: random.Random, seed: bytes) -> bytes:
    """Change a picture, and often the size that its header declares."""
    data = bytearray(mutated_bytes(rng, seed)) if rng.random() < 0.7 else bytearray(seed)
    if data[:4] == b"\x89PNG" and len(data) > 33 and rng.random() < 0.7:
        sizes = (0, 1, 24, 32, 30000, 65535, 1 << 14, 1 << 28, 2**31 - 1, 2**32 - 1)
        if rng.random() < 0.5:
            data[16:24] = struct.pack(">II", rng.choice(sizes), rng.choice(sizes))
        else:
            data[24:29] = rng.randbytes(5)
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    start = data.find(b"\xff\xc0")
    if data[:2] == b"\xff\xd8" and start > 0 and rng.random() < 0.5:
        data[start + 5 : start + 9] = struct.pack(">HH", *rng.choices((0, 1, 16000, 65500), k=2))
    return bytes(data)


def tar_of(members: dict[str, bytes]) -> bytes:
    """Return a tar of files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, payload in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    return stream.getvalue()


def whole(members: dict[str, bytes]) -> bytes:
    """Return the members of a sample as they lie in a shard, without the end of the archive."""
    size = sum(512 + -(-len(payload) // 512) * 512 for payload in members.values())
    return tar_of({f"a.{ext}": payload for ext, payload in members.items()})[:size]


MEMBERS = encode(SAMPLE)
BLOB = whole(MEMBERS)
ROW = {"key": "a", "offset": 0, "length": len(BLOB), "xxh3": 2**63 + 5, "width": 32, "height": 24}
ROW |= {"segments": 2, "instances": 1}
SHARD = Shard("000000.tar", 3 * len(BLOB), "c" * 64, 3)
SET = Manifest(
    source="coco",
    taxonomy=TAXONOMY,
    tasks=TASKS,
    members=tuple(MEMBERS),
    licence=({"id": 4, "url": "http://cc/by"},),
    versions={"opencv": "5"},
    inputs="ab",
    index=File(7, "ef"),
    shards=(SHARD,),
)
FOREIGN = Foreign("jpg", "labels.png", "instances.png", (255,))
LABELS = cv2.imencode(".png", SAMPLE.semantic)[1].tobytes()
OBJECTS = cv2.imencode(".png", (SAMPLE.semantic == 2).astype(np.uint8))[1].tobytes()
COCO = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 32, "height": 24} for n in (1, 2)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 16, "bbox": [8, 8, 4, 4],
         "segmentation": [[8, 8, 12, 8, 12, 12, 8, 12]]},
        {"id": 2, "image_id": 2, "category_id": 2, "iscrowd": 1, "area": 16, "bbox": [0, 0, 1, 16],
         "segmentation": {"size": [24, 32], "counts": [0, 16, 752]}},
        {"id": 3, "image_id": 2, "category_id": 2, "iscrowd": 0, "area": 4, "bbox": [0, 0, 2, 2],
         "segmentation": {"size": [24, 32], "counts": "b7:0"}},
    ],
    "categories": [{"id": 1, "name": "cat", "color": [1, 2, 3]}, {"id": 2, "name": "dog"}],
    "licenses": [{"id": 1, "name": "BY", "url": "http://cc/by"}],
}  # fmt: skip
CLASSES = b"""name: t
licence: {name: BY, url: "http://cc/by"}
ignored: [255]
classes: [{id: 0, name: a}, {id: 1, name: b, isthing: true, color: [1, 2, 3]}]
"""
PRESET = b"""name: t
data: {train: [a, b], val: c, crop: 64, weights: [1, 2]}
batch: {size: 8, micro: 2}
model: {backbone: resnet, backbone_config: {depths: [1, 1]}}
optimizer: {lr: 1e-4}
"""
TRAINER = checkpoint.TrainerState(
    checkpoint.Progress(5, 40, 5), {"fingerprint": ["a"]}, 2, 1, TAXONOMY, {"torch": "2"}
)
EVENTS = b"""{"event": "start", "time": 1.5, "attempt": 1, "world_size": 1, "step": 0}
{"event": "checkpoint", "time": 1.5, "step": 2, "name": "step-000000002-a01", "seconds": 1}
{"event": "finish", "time": 1.5, "step": 2}
"""


def manifest_of(folder: Path, blob: bytes) -> Manifest:
    (folder / MANIFEST).write_bytes(blob)
    manifest = Manifest.load(folder)
    assert manifest.samples >= 0
    assert manifest.fingerprint
    return manifest


def store_of(folder: Path, blob: bytes) -> None:
    (folder / SAMPLES).write_bytes(blob)
    (folder / SHARD.name).write_bytes(BLOB * 3)
    SET.save(folder)
    SampleIndex.load(folder).rows(0)
    replaced = {"index": File(len(blob), sha256(folder / SAMPLES))}
    Manifest(**{**SET.__dict__, **replaced}).save(folder)
    store = Store(folder)
    for n in range(len(store)):
        with contextlib.suppress(DataError):
            store.load(n)


def use(sample: Sample) -> None:
    """Read everything that training, evaluation, and pictures read of a sample."""
    image_of(sample)
    things = TAXONOMY.things
    for task in TASKS:
        truth = truth_of(sample, task, things)
        without_empty(truth)
        assert all(0 <= category < len(TAXONOMY) for category in truth.categories)
    sample.classes()


def sample_of(folder: Path, blob: bytes) -> None:
    """Read a sample whose hash was verified, one whose hash was not, and its truth alone."""
    for verified in (True, False):
        with contextlib.suppress(DataError):
            use(read_sample(SET, "a", blob, hash_verified=verified))
    path = folder / "part.tar"
    path.write_bytes(blob or b"\0")
    tally(Part(path, [0], [len(blob)], SET))


def sample_with(ext: str) -> Callable[[Path, bytes], None]:
    return lambda folder, payload: sample_of(folder, whole(MEMBERS | {ext: payload}))


def scanned(folder: Path, blob: bytes) -> None:
    (folder / "scan.tar").write_bytes(blob)
    save_rows(folder, [scan(folder / "scan.tar")])


def examined(folder: Path, blob: bytes) -> None:
    (folder / "foreign.tar").write_bytes(blob)
    members = ("jpg", "labels.png", "instances.png")
    manifest = Manifest(
        **{**SET.__dict__, "foreign": FOREIGN, "members": members, "licence": ({},)}
    )
    found = examine(TarToExamine(folder / "foreign.tar", manifest, FOREIGN))
    for row in found.rows:
        part = blob[row["offset"] : row["offset"] + row["length"]]
        assert xxhash.xxh3_64_intdigest(part) == row["xxh3"]
        use(read_sample(manifest, row["key"], part))


def pictures(folder: Path, blob: bytes) -> None:
    """Read a picture as an image and as a map; what one reader accepts, the next accepts."""
    (folder / "map.png").write_bytes(blob)
    accepted = False
    for read in (
        lambda: check_image(blob, "a.jpg", None, Doctor("a.jpg")),
        lambda: labels_in(blob, "a.png", (32, 24)),
        lambda: labels_in(blob, "a.png", (32, 24), channels=3),
        lambda: read_ids(folder / "map.png", (32, 24)),
    ):
        try:
            read()
        except DataError:
            continue
    try:
        check_image(blob, "a.jpg", None, Doctor("a.jpg"))
        accepted = True
        decode_image(blob, "a.jpg")
    except DataError:
        assert not accepted or blob[:2] == b"\xff\xd8", "check_image accepts what training refuses"


def json_entries(folder: Path, blob: bytes) -> None:
    (folder / "entries.json").write_bytes(blob)
    list(iterate_entries(folder / "entries.json", ["images", "annotations"]))


def coco(folder: Path, blob: bytes) -> None:
    (folder / "coco.json").write_bytes(blob)
    for n in (1, 2):
        cv2.imwrite(str(folder / f"{n}.png"), PIXELS)
    files = CocoFiles(folder, folder / "coco.json")
    for item in read_coco(files, "train", None, lambda line: None).items:
        with contextlib.suppress(DataError):
            encode(item.load(Doctor(item.file_name)))


def classes(folder: Path, blob: bytes) -> None:
    (folder / "classes.yaml").write_bytes(blob)
    load_classes(folder / "classes.yaml")


def preset(folder: Path, blob: bytes) -> None:
    (folder / "preset.yaml").write_bytes(blob)
    configs.merge(read_yaml(folder / "preset.yaml"), [])


def override(folder: Path, blob: bytes) -> None:
    configs.merge({}, [blob.decode("latin1")])


def trainer_state(folder: Path, blob: bytes) -> None:
    (folder / "trainer_state.json").write_bytes(blob)
    checkpoint.load_trainer(folder)


def checkpoint_manifest(folder: Path, blob: bytes) -> None:
    (folder / "COMMITTED").touch()
    (folder / checkpoint.MANIFEST).write_bytes(blob)
    checkpoint.damage(folder)


def events(folder: Path, blob: bytes) -> None:
    (folder / "events.jsonl").write_bytes(blob)
    for event in eventlog.read(folder):
        event.describe()


def receipt(folder: Path, blob: bytes) -> None:
    built = BuiltShard.from_receipt(blob, _Plan())  # type: ignore[arg-type]
    assert built is None or built.shard.bytes == SHARD.bytes or built.shard


class _Plan:
    inputs = "ab"


def weights(suffix: str) -> Callable[[Path, bytes], None]:
    def parse(folder: Path, blob: bytes) -> None:
        path = folder / f"weights{suffix}"
        path.write_bytes(blob)
        try:
            tensors = read_weights(path)
        except ValueError:
            return
        assert sum(t.nbytes for t in tensors.values() if t.is_contiguous()) <= 64 * len(blob)

    return parse


def weight_seeds(folder: Path) -> dict[str, list[bytes]]:
    """Return sound files of weights by suffix."""
    tensors = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.zeros(2, dtype=torch.long)}
    arrays = {"model": {name: tensor.numpy() for name, tensor in tensors.items()}, "x": "text"}
    stream = io.BytesIO()
    torch.save({"state_dict": tensors}, stream)
    save_file(tensors, folder / "a.safetensors")
    pickles = [pickle.dumps(arrays, protocol) for protocol in range(6)]
    return {
        ".pkl": [*pickles, *(pickle.dumps(tensors, protocol) for protocol in (2, 4))],
        ".pth": [stream.getvalue()],
        ".safetensors": [(folder / "a.safetensors").read_bytes()],
        ".index.json": [json.dumps({"weight_map": {"a": "a.safetensors"}}).encode()],
    }


def parsers(folder: Path) -> list[Parser]:
    """Return every parser with its seeds; `folder` receives files that help to make them."""
    SET.save(folder)
    manifest = (folder / MANIFEST).read_bytes()
    Manifest(
        **{**SET.__dict__, "foreign": FOREIGN, "members": ("jpg", "labels.png", "instances.png"),
           "licence": ({"name": "BY"},)}
    ).save(folder)  # fmt: skip
    foreign_manifest = (folder / MANIFEST).read_bytes()
    save_rows(folder, [[ROW | {"key": k, "offset": n * len(BLOB)} for n, k in enumerate("abc")]])
    third = {"a.jpg": SAMPLE.image, "a.labels.png": LABELS, "a.instances.png": OBJECTS}
    tars = [tar_of({f"{key}{name[1:]}": part for key in "ab" for name, part in third.items()})]
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
            for name, part in third.items():
                info = tarfile.TarInfo("é" * 70 + name)
                info.size = len(part)
                archive.addfile(info, io.BytesIO(part))
        tars.append(stream.getvalue())
    kinds = (".jpg", ".png", ".webp", ".bmp", ".tiff")
    images = [cv2.imencode(kind, PIXELS)[1].tobytes() for kind in kinds]
    images += [LABELS, MEMBERS["segments.png"]]
    built = BuiltShard(SHARD, [ROW], [])
    document = json.loads(built.to_receipt(_Plan()))  # type: ignore[arg-type]
    state = json.dumps(TRAINER.to_json()).encode()
    files = json.dumps({n: {"bytes": 1, "sha256": "a"} for n in ("state.safetensors",
                        "trainer_state.json")}).encode()  # fmt: skip
    options = [
        b"optimizer.lr=1e-4",
        b"data.train=[a, b]",
        b"model.backbone_config={a: [1, {b: 2}]}",
    ]
    texts = [b"name=run.2", b"data.val=${oc.env:HOME}"]
    return [
        Parser("manifest", [manifest, foreign_manifest], manifest_of, mutated_manifest, 20),
        Parser("index", [(folder / SAMPLES).read_bytes()], store_of, mutated_index, 8),
        Parser("sample json", [MEMBERS["json"]], sample_with("json"), mutated_json, 20),
        Parser("sample map", [MEMBERS["segments.png"], LABELS], sample_with("segments.png"),
               mutated_png, 8),
        Parser("sample", [BLOB], sample_of, mutated_tar, 15),
        Parser("shard", [BLOB + bytes(1024)], scanned, mutated_tar, 15),
        Parser("third-party tar", tars, examined, mutated_tar, 15),
        Parser("picture", images, pictures, mutated_png, 20),
        Parser("json entries", [json.dumps(COCO).encode()], json_entries, mutated_json, 15),
        Parser("coco", [json.dumps(COCO).encode()], coco, mutated_json, 15),
        Parser("classes", [CLASSES], classes, mutated_yaml, 15),
        Parser("preset", [PRESET], preset, mutated_yaml, 15),
        Parser("override", [*options, *texts], override, mutated_bytes, 20),
        Parser("trainer state", [state], trainer_state, mutated_json, 15),
        Parser("checkpoint manifest", [files], checkpoint_manifest, mutated_json, 10),
        Parser("events", [EVENTS], events, mutated_bytes, 10),
        Parser("receipt", [json.dumps(document).encode()], receipt, mutated_json, 15),
        *(
            Parser(f"weights{suffix}", seeds, weights(suffix), mutate, count)
            for (suffix, seeds), (mutate, count) in zip(
                weight_seeds(folder).items(),
                [(mutated_bytes, 40), (mutated_bytes, 10), (mutated_bytes, 10), (mutated_json, 5)],
                strict=True,
            )
        ),
    ]  # fmt: skip


def main(folder: Path, seed: int, count: int, wanted: str = "") -> None:
    """Run every parser on its mutated inputs, and print those that it does not survive."""
    status = Path("/proc/self/status").read_text()
    used = int(re.search(r"VmSize:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)

    def too_slow(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, too_slow)
    for parser in parsers(folder):
        if wanted not in parser.name:
            continue
        rng, refused = random.Random(f"{seed} {parser.name}"), 0
        for sound in parser.seeds:
            parser.parse(folder, sound)
        for _ in range(parser.count * count):
            blob = parser.mutate(rng, rng.choice(parser.seeds))
            signal.alarm(INPUT_S)
            try:
                parser.parse(folder, blob)
            except (DataError, UsageError):
                refused += 1
            except (Exception, TooSlow) as error:
                report(parser, blob, error)
            finally:
                signal.alarm(0)
        print(json.dumps({"parser": parser.name, "refused": refused}), flush=True)


def report(parser: Parser, blob: bytes, error: BaseException) -> None:
    """Print an input that a parser does not survive."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    found = {"parser": parser.name, "error": f"{type(error).__name__}: {error}"[:300]}
    found |= {"line": f"{frame.filename}:{frame.lineno}", "input": blob[:4000].hex()}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
