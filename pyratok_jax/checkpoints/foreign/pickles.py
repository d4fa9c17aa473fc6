"""Reading pickled weights without running them: torch `.pth` archives and plain numpy pickles.

A pickle is a program. The unpicklers here know a handful of names (tensor and array constructors,
ordered dictionaries) and refuse every other one, so a hostile file ends in a `UserError`.
No torch is needed: a torch archive is a zip of one pickle and raw little-endian storages.
"""

import io
import math
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from pyratok_jax.errors import UserError

Leaf = TypeVar("Leaf")

_STORAGE_DTYPES: dict[str, DTypeLike] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "Float8_e4m3fnStorage": ml_dtypes.float8_e4m3fn,
    "Float8_e5m2Storage": ml_dtypes.float8_e5m2,
}
# Published training checkpoints put the weights under one of these keys.
_WRAPPERS = ("state_dict", "model", "module", "params", "model_state", "model_state_dict")
_MAX_INDEX_BYTES = 64 << 20  # data.pkl; tensors' values are in files of their own
_MAX_INFLATED_BYTES = 1 << 30  # of a compressed storage: torch itself stores them as they are
_MAX_VISITS = 1 << 20  # entries of the nested dictionaries of one file
_MAX_ITEMS, _MAX_AXES = 1 << 48, 8
_MAX_OPERATIONS = 1 << 21  # Of a pickle.
_MEMO_OPERATIONS = ("PUT", "BINPUT", "LONG_BINPUT")
_LOCAL_HEADER = 30  # bytes of a zip member's header before its name


class _Storage(NamedTuple):
    """A flat block of values inside the archive."""

    name: str
    dtype: np.dtype
    size: int


class TorchTensor(NamedTuple):
    """Where a tensor's values are: a strided view of one storage (offset and strides in items)."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(
    storage: _Storage, offset: int, size: tuple, stride: tuple, *_: object
) -> TorchTensor:
    tensor = TorchTensor(storage, offset, tuple(size), tuple(stride))
    numbers = (offset, *tensor.shape, *tensor.strides)
    sound = (
        isinstance(storage, _Storage)
        and all(isinstance(n, int) and 0 <= n < _MAX_ITEMS for n in numbers)
        and len(tensor.shape) == len(tensor.strides) <= _MAX_AXES
    )
    if not sound:
        raise _Refused(f"a tensor of shape {str(tensor.shape)[:80]}")
    return tensor


def _rebuild_parameter(data: TorchTensor, *_: object) -> TorchTensor:
    return data


class _StorageType:
    """Stands for `torch.FloatStorage` and its relatives, which only name a dtype."""

    def __init__(self, name: str) -> None:
        self.dtype = np.dtype(_STORAGE_DTYPES[name])


class _Refused(Exception):
    """A name that the restricted unpickler does not know."""


class _TorchUnpickler(pickle.Unpickler):
    """Builds `TorchTensor` records; refuses every constructor that tensors do not need."""

    _known = {
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "Size"): tuple,
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in self._known:
            return self._known[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _StorageType(name)
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _device, size = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise _Refused(f"persistent object {kind!r}")
        return _Storage(str(key), storage_type.dtype, int(size))


class _NDArray:
    """Stands for `numpy.ndarray`, which pickles name and never call."""

    def __init__(self, *arguments: object) -> None:
        raise _Refused("numpy.ndarray as a function")


def _empty_array(kind: object, shape: object, code: object) -> np.ndarray:
    """What numpy's `_reconstruct` makes; the values and the shape follow in the pickle."""
    return np.ndarray((0,), np.uint8)


class _NumpyUnpickler(pickle.Unpickler):
    """Builds dictionaries of numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if module == "numpy" and name == "ndarray":
            return _NDArray
        if module == "numpy" and name == "dtype":
            return np.dtype
        # numpy 2 moved the module; older pickles name the old place.
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            if name == "_reconstruct":
                return _empty_array
            if name == "scalar":
                return np._core.multiarray.scalar  # type: ignore[attr-defined]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise _Refused(f"{module}.{name}")


def _check_operations(file: BinaryIO) -> None:
    """Walk over the operations of a pickle without doing them; the file is at its beginning again.

    Python's unpickler makes room for as many places as the largest number that is given to one.

    Raises:
        ValueError: more operations than any weights file has, or places that nothing needs.
    """
    for number, (operation, argument, _) in enumerate(pickletools.genops(file), start=1):
        place = argument if operation.name in _MEMO_OPERATIONS else 0
        if number > _MAX_OPERATIONS or (isinstance(place, int) and place > number):
            raise ValueError(f"operation {number} is {operation.name} {argument}")
    file.seek(0)


def _load(kind: type[pickle.Unpickler], file: BinaryIO, path: Path) -> object:
    try:
        _check_operations(file)
        return kind(file).load()
    except _Refused as error:
        raise UserError(
            f"{path}: the pickle asks for {error}, which is no part of a weights file; it was not "
            "executed. Re-save the weights as safetensors, or get them from a source you trust"
        ) from error
    except Exception as error:
        raise UserError(
            f"{path}: not a readable pickle of weights ({type(error).__name__}: {error}); "
            "the file may be cut off, so fetch it again"
        ) from error


def flatten(tree: Mapping[str, object], leaf: type[Leaf], separator: str) -> dict[str, Leaf]:
    """The leaves of type `leaf` in nested mappings, keyed by the joined path. Others are left out.

    Iterative, since a hostile file may nest deeper than Python's stack.

    Raises:
        UserError: more entries than any weights file has.
    """
    found: dict[str, Leaf] = {}
    visits = 0
    stack: list[tuple[str, object, int]] = [("", tree, 0)]
    while stack:
        prefix, node, depth = stack.pop()
        visits += 1
        # Dictionaries may be shared, so that a small file spells out any number of paths.
        if visits + len(stack) > _MAX_VISITS:
            raise UserError(f"more than {_MAX_VISITS} entries; no weights file has so many")
        if isinstance(node, leaf):
            found[prefix] = node
        elif isinstance(node, Mapping) and depth < 64:
            for key, value in reversed(list(node.items())):
                name = f"{prefix}{separator}{key}" if prefix else str(key)
                stack.append((name, value, depth + 1))
    return found


def read_numpy_pickle(path: Path) -> dict[str, np.ndarray]:
    """A pickle of nested dictionaries of numpy arrays, flattened: keys joined by `/`.

    Raises:
        UserError: when the file is no pickle, or asks for anything but numpy arrays.
    """
    with path.open("rb") as file:
        tree = _load(_NumpyUnpickler, file, path)
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: holds a {type(tree).__name__}, expected a dictionary of arrays")
    arrays = _flattened(path, tree, np.ndarray, "/")
    if any(array.dtype.hasobject for array in arrays.values()):
        raise UserError(f"{path}: holds arrays of Python objects, expected numbers")
    return arrays


def _flattened(
    path: Path, tree: Mapping[str, object], leaf: type[Leaf], separator: str
) -> dict[str, Leaf]:
    try:
        return flatten(tree, leaf, separator)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


_ENCRYPTED = 1
# An unknown compression, an encrypted member, damaged data.
_BAD_MEMBER = (NotImplementedError, RuntimeError, zlib.error, EOFError, struct.error)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """A member of a zip file.

    Raises:
        RuntimeError: it is encrypted, or inflates to more than `limit` bytes.
    """
    if info.flag_bits & _ENCRYPTED:
        raise RuntimeError(f"{info.filename} is encrypted")
    with archive.open(info) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise RuntimeError(f"{info.filename} inflates to more than {limit} bytes")
    return data


class TorchArchive:
    """A torch zip archive (`.pth`, `.pt`, `.bin`), memory-mapped; tensors are read one by one."""

    def __init__(self, path: Path) -> None:
        """Read the archive's index; no tensor values are read yet.

        Raises:
            UserError: when the file is no torch archive or its pickle is refused.
        """
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = {info.filename: info for info in archive.infolist()}
                index = next((name for name in members if name.endswith("/data.pkl")), None)
                if index is None:
                    raise UserError(f"{path}: a zip without data.pkl, expected a torch archive")
                pickled = _read_member(archive, members[index], _MAX_INDEX_BYTES)
        except _BAD_MEMBER as error:
            raise UserError(f"{path}: {error}; fetch it again") from error
        except zipfile.BadZipFile as error:
            raise UserError(
                f"{path}: not a torch zip archive (cut off, or written before torch 1.6); fetch it "
                "again or re-save it with a newer torch"
            ) from error
        root = index[: -len("data.pkl")]
        self._members = {
            name[len(root) + 5 :]: info
            for name, info in members.items()
            if name.startswith(root + "data/")
        }
        tree = _load(_TorchUnpickler, io.BytesIO(pickled), path)
        for key in _WRAPPERS:
            if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
                tree = tree[key]
        if not isinstance(tree, Mapping):
            raise UserError(f"{path}: holds a {type(tree).__name__}, expected a state dictionary")
        self.tensors: dict[str, TorchTensor] = _flattened(path, tree, TorchTensor, ".")
        self._data = np.memmap(path, np.uint8, "r")

    def read(self, key: str) -> np.ndarray:
        """One tensor as a read-only view of the file (of a copy where the member is compressed)."""
        tensor = self.tensors[key]
        raw = self._storage(tensor.storage)
        last = tensor.offset + sum(
            (n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)
        )
        empty = math.prod(tensor.shape) == 0
        if (
            min(tensor.strides, default=0) < 0
            or tensor.offset < 0
            or (not empty and last >= raw.size)
            or math.prod(tensor.shape) > max(raw.size, _MAX_VISITS)
        ):
            raise UserError(f"{self.path}: tensor {key} reaches outside its storage; fetch again")
        if empty:
            return np.zeros(tensor.shape, raw.dtype)
        item = raw.dtype.itemsize
        return np.lib.stride_tricks.as_strided(
            raw[tensor.offset :],
            tensor.shape,
            [s * item for s in tensor.strides],
            writeable=False,
        )

    def _storage(self, storage: _Storage) -> np.ndarray:
        info = self._members.get(storage.name)
        if info is None or info.file_size % storage.dtype.itemsize:
            raise UserError(f"{self.path}: storage {storage.name} is missing or damaged")
        if info.compress_type != zipfile.ZIP_STORED:
            try:
                with zipfile.ZipFile(self.path) as archive:
                    data = _read_member(archive, info, _MAX_INFLATED_BYTES)
            except (*_BAD_MEMBER, zipfile.BadZipFile) as error:
                raise UserError(f"{self.path}: {error}; fetch it again") from error
            return np.frombuffer(data, storage.dtype)
        if info.flag_bits & _ENCRYPTED:
            raise UserError(f"{self.path}: {info.filename} is encrypted; fetch it again")
        start = info.header_offset
        if start + _LOCAL_HEADER + info.file_size > self._data.size:
            raise UserError(f"{self.path}: storage {storage.name} is cut off; fetch it again")
        name_length, extra_length = struct.unpack(
            "<HH", self._data[start + 26 : start + _LOCAL_HEADER].tobytes()
        )
        start += _LOCAL_HEADER + name_length + extra_length
        return self._data[start : start + info.file_size].view(storage.dtype)
