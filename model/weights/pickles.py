"""Read arrays and tensors of numbers from a pickle without running it.

A pickle is a program for a stack machine. `pickle.Unpickler` runs it: it imports what the file
names, calls it, and hands the state in the file to `__setstate__` of numpy, which trusts it. This
module interprets the operations instead. The few names that pickles of arrays contain have a
meaning of their own here, and an array is made of its declared shape, its numeric type, and its
bytes. Nothing else can come to exist. (The bytes of a tensor are a torch file within the pickle,
which torch reads with `weights_only`.)
"""

import io
import math
import pickletools
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.storage import TypedStorage

MAX_OPERATIONS = 1 << 20  # a network of 1,000 tensors takes about 40,000
MAX_DIMENSIONS = 64  # numpy's limit

_NUMBERS = re.compile(r"[iu][1248]|f[248]|b1|\?")  # types of arrays without their byte order
_MARK: Any = object()  # lies on the stack below a variable number of items
_LITERALS = frozenset(  # the operations that push their argument: a number, a text, or bytes
    operation.name
    for operation in pickletools.opcodes
    if operation.arg
    and not operation.stack_before
    and operation.stack_after not in ([], [pickletools.anyobject])
)
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK}
_NEW: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_COLLECT: dict[str, Callable[[list[Any]], Any]] = {
    "LIST": list,
    "TUPLE": tuple,
    "DICT": lambda items: _filled({}, zip(items[::2], items[1::2], strict=True)),
}
_TAKEN = {"POP": 1, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "BUILD": 1}
_IGNORED = frozenset(["PROTO", "FRAME", "STOP"])


class _Name(NamedTuple):
    """A class or a function that the pickle names."""

    module: str
    name: str


class _Type:
    """A numeric type; its byte order is set by a later operation."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            text = repr(code[:20]) if isinstance(code, str) else type(code).__name__
            raise ValueError(f"it has an array of the type {text}, not of numbers")
        self.dtype = np.dtype(code)


class _Array:
    """An array; its values are set by a later operation."""

    values: np.ndarray | None = None


class _Machine:
    """The stack of a pickle, and the values that it keeps for later use.

    Args:
        size: The number of bytes in the pickle, which all arrays together cannot exceed.
    """

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.left = size

    def run(self, operation: str, argument: Any) -> None:
        """Carry out an operation."""
        stack = self.stack
        if operation in _LITERALS:
            stack.append(argument)
        elif operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation])
        elif operation in _NEW:
            stack.append(_NEW[operation]())
        elif operation in _COLLECT:
            stack.append(_COLLECT[operation](self._since_mark()))
        elif operation in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif operation == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif operation in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif operation == "GLOBAL":
            stack.append(_known(*argument.split(" ", 1)))
        elif operation == "STACK_GLOBAL":
            stack.append(_known(*self._take(2)))
        elif operation in ("REDUCE", "NEWOBJ"):
            stack.append(self._call(*self._take(2)))
        elif operation not in _IGNORED:
            count = _TAKEN.get(operation)
            items = self._since_mark() if count is None else self._take(count)
            self._use(operation, items)

    def _use(self, operation: str, items: list[Any]) -> None:
        """Carry out an operation that takes items off the stack and changes the one below."""
        if operation.startswith("TUPLE"):
            self.stack.append(tuple(items))
        elif operation in ("APPEND", "APPENDS"):
            self._target(list).extend(items)
        elif operation in ("SETITEM", "SETITEMS"):
            _filled(self._target(dict), zip(items[::2], items[1::2], strict=True))
        elif operation == "BUILD":
            self._set_state(self.stack[-1], items[0])
        elif operation not in ("POP", "POP_MARK"):
            raise ValueError(f"a pickle of arrays has no operation {operation}")

    def _take(self, count: int) -> list[Any]:
        """Remove the last items from the stack and return them."""
        if len(self.stack) < count:
            raise ValueError("its stack is empty")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _since_mark(self) -> list[Any]:
        """Remove the items above the last mark, and the mark; return the items."""
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _target(self, kind: type) -> Any:
        target = self.stack[-1]
        if not isinstance(target, kind):
            raise ValueError(f"it adds items to a {type(target).__name__}")
        return target

    def _call(self, name: Any, arguments: Any) -> Any:
        """Return what a call stands for."""
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise ValueError(f"it calls a {type(name).__name__}")
        if name.name == "OrderedDict":
            self._spend(sum(map(len, arguments)))
            return _filled({}, *arguments)
        if name.name == "encode":  # of pickles of protocol 2, which have no bytes; see `_bytes`
            text, encoding = arguments
            if encoding != "latin1":
                raise ValueError("it encodes text, but not as latin1")
            return text
        if name.name == "bytes" and not arguments:  # the same pickles call it for no bytes
            return b""
        if name.name == "dtype":
            return _Type(arguments[0])
        if name.name == "scalar":
            kind, content = arguments
            return self._array(kind, (), "C", content)
        if name.name == "_frombuffer":
            content, kind, shape, order = arguments
            return self._array(kind, shape, order, content)
        if name.name == "_load_from_bytes":
            return self._storage(*arguments)
        if name.name == "_rebuild_tensor_v2":
            return _tensor(*arguments[:4])
        if name.name in ("_reconstruct", "ndarray"):
            return _Array()
        raise ValueError(f"it calls {name.name} with arguments")

    def _set_state(self, target: Any, state: Any) -> None:
        """Set the byte order of a type or the values of an array; ignore what others have."""
        if isinstance(target, _Type):
            target.dtype = target.dtype.newbyteorder(state[1])
        elif isinstance(target, _Array):
            _, shape, kind, is_fortran, content = state
            target.values = self._array(kind, shape, "F" if is_fortran else "C", content)

    def _array(self, kind: Any, shape: Any, order: str, content: Any) -> np.ndarray:
        """Return the array of these bytes, contiguous and in native byte order."""
        content, size = self._bytes(content), math.prod(_counts(shape))
        if not isinstance(kind, _Type) or size * kind.dtype.itemsize != len(content):
            raise ValueError(f"it has an array of {size} numbers in {len(content)} bytes")
        values = np.frombuffer(content, kind.dtype, size) if size else np.zeros(0, kind.dtype)
        values = values.reshape(shape, order="F" if order == "F" else "C")
        return values.astype(kind.dtype.newbyteorder("="), order="C")

    def _storage(self, content: Any) -> TypedStorage:
        """Return the storage of a tensor from the torch file that `torch.save` wrote of it."""
        content = self._bytes(content)
        if content[:2] == b"PK":  # a zip, which could expand; pickles hold the older format
            raise ValueError("it has a tensor whose bytes are a zip")
        storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(storage, TypedStorage):
            raise ValueError(f"it has a tensor of a {type(storage).__name__}")
        return storage

    def _bytes(self, content: Any) -> bytes | bytearray:
        """Return the bytes of an array."""
        if isinstance(content, str):  # of Python 2, or of `encode`
            content = content.encode("latin1")
        if not isinstance(content, bytes | bytearray):
            raise ValueError(f"it has an array of a {type(content).__name__}, not of bytes")
        self._spend(len(content))
        return content

    def _spend(self, count: int) -> None:
        """Count bytes or items, because a few operations could use those of the file repeatedly."""
        self.left -= count
        if self.left < 0:
            raise ValueError("it holds more than the bytes of the file")


# Every name that pickles of arrays contain. `_Machine._call` says what a call of each means.
_NAMES = frozenset([
    _Name("collections", "OrderedDict"),
    _Name("_codecs", "encode"),
    _Name("__builtin__", "bytes"),
    _Name("numpy", "ndarray"),
    _Name("numpy", "dtype"),
    _Name("torch._utils", "_rebuild_tensor_v2"),
    _Name("torch.storage", "_load_from_bytes"),
    *(
        _Name(f"{package}.{module}", name)
        for package in ("numpy.core", "numpy._core")  # before numpy 2, since numpy 2
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
])  # fmt: skip


def read_pickle(content: bytes) -> Any:
    """Return the value of a pickle: dicts, lists, tuples, texts, numbers, and arrays of numbers.

    Memory is bounded by a multiple of the size of the pickle, and time by MAX_OPERATIONS.

    Raises:
        Exception: The pickle is damaged, or asks for anything except arrays of numbers. The
            exception is of almost any class.
    """
    machine = _Machine(len(content))
    for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if count == MAX_OPERATIONS:
            raise ValueError(f"it has more than {MAX_OPERATIONS} operations")
        machine.run(operation.name, argument)
    [value] = machine.stack
    return value


def _known(module: Any, name: Any) -> _Name:
    """Return a name of `_NAMES`.

    Raises:
        ValueError: It is another name.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("it asks for a name that is not text")
    if (module, name) not in _NAMES:
        text = f"{module}.{name}"
        raise ValueError(f"a pickle asks for {text[:100]}, which is not allowed")
    return _Name(module, name)


def _counts(value: Any) -> tuple[int, ...]:
    """Return a shape, or the strides of a tensor.

    Raises:
        ValueError: It is not a short tuple of whole numbers of at least 0.
    """
    if not isinstance(value, tuple) or len(value) > MAX_DIMENSIONS:
        raise ValueError(f"it has a shape that is not a tuple of up to {MAX_DIMENSIONS} numbers")
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in value):
        raise ValueError("it has a shape of numbers that are not sizes")
    return value


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    """Return a tensor on a storage; torch would enlarge a storage that is too small."""
    if not isinstance(storage, TypedStorage):
        raise ValueError(f"it has a tensor in a {type(storage).__name__}")
    content, kind = storage._untyped_storage, storage.dtype  # the public method warns
    ends = zip(_counts(shape), _counts(strides), strict=True)
    last = _counts((offset,))[0] + sum((n - 1) * stride for n, stride in ends)
    if 0 not in shape and (last + 1) * kind.itemsize > content.nbytes():
        raise ValueError("it has a tensor that reaches beyond its bytes")
    return torch.empty(0, dtype=kind).set_(content, offset, shape, strides)


def _filled(target: dict[Any, Any], items: Iterable[Any] = ()) -> dict[Any, Any]:
    """Add items to a dict and return it."""
    for key, value in items:
        if not isinstance(key, str | int):  # the hash of a deep tuple overflows the stack
            raise ValueError(f"a key is a {type(key).__name__}, not a text")
        target[key] = value.values if isinstance(value, _Array) else value
    return target
