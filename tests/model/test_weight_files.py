"""Files of weights: every readable format, and no code is executed while one is read."""

import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from model.mask2former import Mask2Former
from model.weights.files import read
from model.weights.load import fit
from tests.model.samples import tiny_settings

K = 5


class Evil:
    """An object that creates a file if it is unpickled without restrictions."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_executes_nothing(protocol: int, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pkl"
    model = Mask2Former(tiny_settings(), K)
    path.write_bytes(pickle.dumps({"model": {"a": Evil(trace)}}, protocol))
    with pytest.raises(ValueError, match=r"evil\.pkl .*asks for .*(pathlib|getattr).* not allowed"):
        fit(model, path)
    torch.save({"model": {"a": Evil(trace)}}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth is damaged or holds more than tensors"):
        fit(model, tmp_path / "evil.pth")
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists(), "an unrestricted unpickler runs the code in this file"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickled_tensor_executes_nothing(tmp_path: Path) -> None:
    """The bytes of a tensor's storage are a second pickle within the first."""
    trace, path = tmp_path / "trace", tmp_path / "evil.pkl"

    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (pickle.dumps(Evil(trace)),)

    path.write_bytes(pickle.dumps({"model": {"a": Storage()}}))
    with pytest.raises(ValueError, match=r"evil\.pkl is damaged or holds more"):
        fit(Mask2Former(tiny_settings(), K), path)
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged"),
        (b"no pickle", "damaged"),
        (pickle.dumps({"model": {"a": np.zeros(3)}})[:-9], "damaged"),
        (pickle.dumps([1, 2]), "a list instead of a dictionary"),
        (pickle.dumps({"model": {"a": "text"}}), "a is a str"),
        (
            pickle.dumps({"model": {"a": np.array([{}])}}),
            "an array of the type 'O8', not of numbers",
        ),
    ],
)
def test_files_without_tensors_are_refused(content: bytes, reason: str, tmp_path) -> None:
    model = Mask2Former(tiny_settings(), K)
    for name in ("file.pkl", "file.pth", "file.safetensors"):
        (tmp_path / name).write_bytes(content)
        expected = reason if name.endswith(".pkl") else "damaged or holds more"
        with pytest.raises(ValueError, match=rf"model\.init_from=.*{name}.*{expected}"):
            fit(model, tmp_path / name)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "<i8", "?"])
def test_arrays_of_any_pickle_protocol_and_byte_order(protocol: int, dtype: str, tmp_path) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    arrays = {
        "c": array,
        "fortran": np.asfortranarray(array),
        "scalar": array[1, 1],
        "part": array[:, 1],
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays, protocol))
    tensors = read(tmp_path / "a.pkl")
    assert tensors.keys() == arrays.keys()
    for name, tensor in tensors.items():
        assert tensor.is_contiguous()
        assert np.array_equal(tensor.numpy(), arrays[name])


# The state of a dtype without the flag that its items are objects, and an array of pointers.
OBJECTS = (
    b"\x80\x02}X\x01\0\0\0acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
    b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02O8\x89\x88\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff"
    b"\xffK=tb\x89U\x08AAAAAAAAtbs."
)


def _large_array(shape: bytes) -> bytes:
    dtype = b"cnumpy\ndtype\nX\x02\0\0\0f4\x89\x88\x87R"
    array = b"cnumpy._core.numeric\n_frombuffer\n(C\x04AAAA" + dtype + shape + b"X\x01\0\0\0CtR"
    return b"\x80\x04}X\x01\0\0\0a" + array + b"s."


HUGE = b"\x8a\x09" + (1 << 64).to_bytes(9, "little")
HOSTILE = {
    "pointers to objects": OBJECTS,
    "a memo of 2^28 entries": b"\x80\x02]r\0\0\0\x10.",
    "operations without end": b"\x80\x02" + b"(" * 2_000_000 + b".",
    "lists in lists": b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b".",
    "lists that double": b"\x80\x02]" + b"2\x86" * 300 + b".",
    "a deep tuple as a key": b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.",
    "a doubled list as a type": b"\x80\x04cnumpy\ndtype\n]" + b"2\x86" * 300 + b"\x85R.",
    "an unending name": b"\x80\x04]" + b"2\x86" * 300 + b"2\x93.",
    "a shape of 2^64": _large_array(HUGE + b"\x85"),
    "a shape of many factors": _large_array(HUGE + b"q\1" + b"(" + b"h\1" * 200_000 + b"t"),
    "a negative shape": _large_array(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86"),
    "more numbers than bytes": _large_array(b"J\xff\xff\xff\x7f\x85"),
    "the same bytes many times": (
        b"\x80\x04}(X\x40\x42\x0f\0" + b"A" * 1_000_000 + b"q\1"
        b"cnumpy\ndtype\nX\x02\0\0\0u1\x89\x88\x87Rq\2"
        + b"".join(
            b"K%ccnumpy.core.multiarray\nscalar\nh\2h\1\x86R" % (n,) for n in range(200)
        )
        + b"u."
    ),
    "the same pairs many times": (
        b"\x80\x04](" + b"K\1K\1\x86" * 100_000 + b"e\x85q\1"
        + b"ccollections\nOrderedDict\nh\1R" * 20_000 + b"."
    ),
    "bytes of any length": b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.",
}  # fmt: skip


READ_ALL = """
import re, resource, sys
from pathlib import Path
from model.weights.files import read
used = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_AS, (used * 1024 + (1 << 30),) * 2)
for path in sys.argv[1:]:
    try:
        read(Path(path))
    except ValueError as error:
        print(error)
"""


def test_hostile_pickles_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    """A process that may use 1 GiB more than torch itself reads them all."""
    paths = [tmp_path / f"{name}.pkl" for name in HOSTILE]
    for path, content in zip(paths, HOSTILE.values(), strict=True):
        path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, *paths], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for path, line in zip(paths, done.stdout.splitlines(), strict=True):
        assert line.startswith(f"{path.name} is damaged or holds more"), line
        assert "Memory" not in line, line


def test_a_torch_file_that_expands_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as stored,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as compressed,
    ):
        for name in stored.namelist():
            compressed.writestr(name, stored.read(name))
    with pytest.raises(ValueError, match=r"b\.pth .*its parts are larger than the file"):
        read(tmp_path / "b.pth")


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, device="meta"), torch.zeros(2).to_sparse(), torch.zeros(2, dtype=torch.cfloat)],
)
def test_tensors_that_are_not_dense_real_numbers_are_refused(tensor, tmp_path: Path) -> None:
    torch.save({"a": tensor}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="a is not a dense tensor of real numbers"):
        read(tmp_path / "a.pth")


@pytest.mark.parametrize("protocol", range(6))
def test_tensors_of_any_pickle_protocol(protocol: int, tmp_path: Path) -> None:
    """The converters of detectron2 pickle the tensors of a backbone as they are."""
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": base, "transposed": base.T, "part": base[1:, 1], "empty": torch.zeros(0, 3)}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(OrderedDict(tensors), protocol))
    found = read(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_arrays_of_python_2(tmp_path: Path) -> None:
    """The oldest files of detectron have strings in which latin1 stands for bytes."""
    values = np.arange(6, dtype=">f4").reshape(2, 3)
    content = (
        b"\x80\x02}U\x05model}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85"
        b"U\x01b\x87R(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02f4K\0K\x01\x87R"
        b"(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89U\x18%btbss."
    )
    (tmp_path / "R-50.pkl").write_bytes(content.replace(b"%b", values.tobytes()))
    assert np.array_equal(read(tmp_path / "R-50.pkl")["a"].numpy(), values)
