"""Reading pickled weights without running them: torch `.pth` archives and plain numpy pickles.

A pickle is a program. `pickle_machine` knows a handful of names (tensor and array constructors,
ordered dictionaries) and refuses every other one, so a hostile file ends in a `UserError`.
No torch is needed: a torch archive is a zip of one pickle and raw little-endian storages.
"""

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from pyratok_jax.checkpoints.foreign.pickle_machine import Known, RefusedError, run, whole_number
from pyratok_jax.errors import UserError, short

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
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
# Published training checkpoints put the weights under one of these keys.
_WRAPPERS = ("state_dict", "model", "module", "params", "model_state", "model_state_dict")
_MAX_INDEX_BYTES = 64 << 20  # data.pkl; tensors' values are in files of their own
_MAX_INFLATED_BYTES = 1 << 30  # of a compressed storage: torch itself stores them as they are
_MAX_VISITS = 1 << 20  # entries of the nested dictionaries of one file
_MAX_NAME = 4096  # characters of a tensor's name with the names of all dictionaries around it
_MAX_ITEMS, _MAX_AXES = 1 << 48, 8
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
    storage: object, offset: object, size: object, stride: object, *_: object
) -> TorchTensor:
    if not isinstance(storage, _Storage):
        raise RefusedError("a tensor without values")
    shape, strides = _axes(size), _axes(stride)
    if len(shape) != len(strides):
        raise RefusedError(f"a tensor of {len(shape)} sizes and {len(strides)} strides")
    return TorchTensor(storage, whole_number(offset, _MAX_ITEMS, "an offset of"), shape, strides)


def _axes(sizes: object) -> tuple[int, ...]:
    if not isinstance(sizes, tuple | list) or len(sizes) > _MAX_AXES:
        raise RefusedError(f"a tensor of more than {_MAX_AXES} axes, or of none")
    return tuple(whole_number(size, _MAX_ITEMS, "a tensor's size or stride of") for size in sizes)


def _rebuild_parameter(data: object, *_: object) -> object:
    return data


class _StorageType:
    """Stands for `torch.FloatStorage` and its relatives, which only name a dtype."""

    def __init__(self, name: str) -> None:
        self.dtype = np.dtype(_STORAGE_DTYPES[name])


def _ordered_dict(*items: object) -> dict[str, object]:
    """An empty dictionary: its entries follow in the pickle."""
    if items:
        raise RefusedError("collections.OrderedDict as a function of something")
    return {}


_DICTIONARIES: dict[tuple[str, str], object] = {("collections", "OrderedDict"): _ordered_dict}
_OF_TORCH: Known = _DICTIONARIES | {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): _rebuild_parameter,
    **{
        (module, name): _StorageType(name)
        for module in ("torch", "torch.storage") for name in _STORAGE_DTYPES
    },
}  # fmt: skip


def _storage_of(identity: object) -> _Storage:
    """The storage that a persistent identity names: ("storage", its type, name, device, size).

    Files of torch older than 1.6 have a sixth entry.
    """
    if not isinstance(identity, tuple) or len(identity) not in (5, 6):
        raise RefusedError("a persistent object that is no storage")
    kind, storage_type, key, _, size = identity[:5]
    known = isinstance(kind, str) and kind == "storage" and isinstance(storage_type, _StorageType)
    if not known or not isinstance(key, str):
        raise RefusedError("a persistent object that is no storage")
    return _Storage(key, storage_type.dtype, whole_number(size, _MAX_ITEMS, "a storage of"))


_NUMBER = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c(8|16))")


class _Dtype:
    """Stands for `numpy.dtype`, of numbers alone."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not _NUMBER.fullmatch(code):
            found = short(code, 60) if isinstance(code, str) else type(code).__name__
            raise RefusedError(f"numpy.dtype {found}, which is no type of numbers")
        self.dtype = np.dtype(code)

    def set_state(self, state: object) -> None:
        """(version, byte order, ...): all else belongs to types that are no numbers."""
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if isinstance(order, str) and order in ("<", ">"):
            self.dtype = np.dtype(order + self.dtype.str[1:])


class _NDArray:
    """Stands for `numpy.ndarray`, which pickles name and never call."""

    def __init__(self, *arguments: object) -> None:
        raise RefusedError("numpy.ndarray as a function")


class _Array:
    """An array of numpy, whose values come with its state."""

    def __init__(self, *_: object) -> None:
        self.values = np.zeros((0,), np.uint8)

    def set_state(self, state: object) -> None:
        """(version, shape, dtype, whether in the order of Fortran, bytes), which are not copied."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise RefusedError("an array without values")
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise RefusedError("an array of Python objects, expected numbers")
        sizes = _axes(shape)
        if math.prod(sizes) * dtype.dtype.itemsize != len(data):
            raise RefusedError(f"an array of shape {sizes} in {len(data)} bytes")
        flat = np.frombuffer(data, dtype.dtype) if data else np.zeros((0,), dtype.dtype)
        self.values = flat.reshape(sizes, order="F" if fortran else "C")


def _scalar(dtype: object, data: object = None) -> np.generic:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise RefusedError("a number without its type")
    if len(data) != dtype.dtype.itemsize:
        raise RefusedError(f"a number of {len(data)} bytes")
    return np.frombuffer(data, dtype.dtype)[0]


# numpy 2 moved the module; older pickles name the old place.
_OF_NUMPY: Known = _DICTIONARIES | {
    ("numpy", "ndarray"): _NDArray,
    ("numpy", "dtype"): _Dtype,
    **{(module, "_reconstruct"): _Array for module in _MULTIARRAY},
    **{(module, "scalar"): _scalar for module in _MULTIARRAY},
}


def _nowhere(identity: object) -> object:
    raise RefusedError("an object that is not in the file")


def _load(
    known: Known, file: BinaryIO, path: Path, persistent: Callable[[object], object] = _nowhere
) -> object:
    try:
        return run(file, known, persistent)
    except RefusedError as error:
        raise UserError(
            f"{path}: the pickle asks for {error}, which is no part of a weights file; it was not "
            "executed. Re-save the weights as safetensors, or get them from a source you trust"
        ) from error
    except Exception as error:
        reason = short(f"{type(error).__name__}: {error}")
        raise UserError(
            f"{path}: not a readable pickle of weights ({reason}); the file may be cut off, so "
            "fetch it again"
        ) from error


def check_legacy(path: Path) -> None:
    """Walk over the pickles at the beginning of a file of torch older than 1.6.

    They are: its magic number, version, facts about the system, tensors, names of storages.

    Raises:
        UserError: one holds what no weights need.
    """
    with path.open("rb") as file:
        for _ in range(5):
            _load(_OF_TORCH, file, path, _storage_of)


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
                if len(name) > _MAX_NAME:
                    raise UserError(f"a name of more than {_MAX_NAME} characters")
                stack.append((name, value, depth + 1))
    return found


def read_numpy_pickle(path: Path) -> dict[str, np.ndarray]:
    """A pickle of nested dictionaries of numpy arrays, flattened: keys joined by `/`.

    Raises:
        UserError: when the file is no pickle, or asks for anything but numpy arrays.
    """
    with path.open("rb") as file:
        tree = _load(_OF_NUMPY, file, path)
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: holds a {type(tree).__name__}, expected a dictionary of arrays")
    return {name: array.values for name, array in _flattened(path, tree, _Array, "/").items()}


def _flattened(
    path: Path, tree: Mapping[str, object], leaf: type[Leaf], separator: str
) -> dict[str, Leaf]:
    try:
        found = flatten(tree, leaf, separator)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not found:
        raise UserError(f"{path}: holds no tensor; get the file of the weights")
    return found


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
        tree = _load(_OF_TORCH, io.BytesIO(pickled), path, _storage_of)
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
        if start < 0 or start + _LOCAL_HEADER > self._data.size:
            raise UserError(f"{self.path}: storage {storage.name} is cut off; fetch it again")
        name_length, extra_length = struct.unpack(
            "<HH", self._data[start + 26 : start + _LOCAL_HEADER].tobytes()
        )
        start += _LOCAL_HEADER + name_length + extra_length
        if start + info.file_size > self._data.size:
            raise UserError(f"{self.path}: storage {storage.name} is cut off; fetch it again")
        return self._data[start : start + info.file_size].view(storage.dtype)
