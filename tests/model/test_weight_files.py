"""Files of weights: every readable format, and no code is executed while one is read."""

import pickle
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
        (pickle.dumps({"model": {"a": np.array([{}])}}), "a is a ndarray, not an array of numbers"),
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
