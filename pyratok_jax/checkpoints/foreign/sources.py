"""Weight files of every kind, opened lazily behind one interface.

A `TensorSource` knows the names, shapes and dtypes of all tensors from the headers alone and reads
one tensor at a time, so a conversion never holds a whole checkpoint in memory.
"""

import dataclasses
import os
import pickle
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pyratok_jax.checkpoints.foreign.pickles import TorchArchive, check_legacy, read_numpy_pickle
from pyratok_jax.errors import UserError
from pyratok_jax.io.documents import read_json

MAX_FACTS, MAX_TENSORS, MAX_NESTING = 1 << 16, 1 << 20, 8
MAX_TEXTS = 1 << 20  # In all arrays of a header: tokens and merges.
MAX_NUMBERS = 1 << 22  # Likewise: scores and types of tokens.
MAX_LISTS = 1 << 12  # In lists.
_STRING, _ARRAY = 8, 9
# Bytes of a value by its type: (u)int8, (u)int16, (u)int32, float32, bool, (u)int64, float64.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def check_header(path: Path) -> None:
    """Walk over the facts of a GGUF file without unpacking them.

    Raises:
        ValueError: a count or length that the file cannot hold, or an unknown type.
    """
    with path.open("rb") as file:
        _Header(file, os.fstat(file.fileno()).st_size).check()


class _Header:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._texts, self._numbers, self._lists = file, size, 0, 0, 0

    def check(self) -> None:
        _, version = self._file.read(4), self._number(4)
        if version not in (2, 3):
            raise ValueError(f"version {version}, expected 2 or 3, little-endian")
        tensors, facts = self._number(8), self._number(8)
        if tensors > MAX_TENSORS or facts > MAX_FACTS:
            raise ValueError(f"{tensors} tensors and {facts} facts, more than any model has")
        for _ in range(facts):
            self._skip(self._number(8))  # the key
            self._value(self._number(4), 0)

    def _value(self, kind: int, depth: int) -> None:
        if kind in _SIZES:
            self._skip(_SIZES[kind])
        elif kind == _STRING:
            self._skip(self._number(8))
        elif kind == _ARRAY and depth < MAX_NESTING:
            inner, count = self._number(4), self._number(8)
            if inner in _SIZES:
                self._skip(count * _SIZES[inner])
                self._numbers += count
                if self._numbers > MAX_NUMBERS:
                    raise ValueError(f"more than {MAX_NUMBERS} numbers in its arrays")
                return
            if count * 8 > self._left():
                raise ValueError(f"an array of {count} entries in {self._left()} bytes")
            self._texts += count
            self._lists += count if inner == _ARRAY else 0
            if self._texts > MAX_TEXTS or self._lists > MAX_LISTS:
                raise ValueError(f"{count} more entries in its lists, more than any tokenizer has")
            for _ in range(count):
                self._value(inner, depth + 1)
        else:
            raise ValueError(f"a value of type {kind}, nested {depth} deep")

    def _left(self) -> int:
        return self._size - self._file.tell()

    def _number(self, size: int) -> int:
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError("it ends within its header")
        return struct.unpack("<I" if size == 4 else "<Q", data)[0]

    def _skip(self, size: int) -> None:
        if size > self._left():
            raise ValueError(f"{size} bytes announced, {self._left()} left")
        self._file.seek(size, os.SEEK_CUR)


class TensorInfo(NamedTuple):
    """Shape and dtype name of a stored tensor (dtype as stored: `float32`, `bfloat16`, `Q4_1`)."""

    shape: tuple[int, ...]
    dtype: str


class TensorSource:
    """Named tensors of one or more files.

    Attributes:
        path: what was opened, for messages.
        files: every file that holds tensors.
        kind: `safetensors`, `torch`, `gguf` or `numpy`.
        info: name -> shape and dtype, known without reading values.
        metadata: key-value facts in the file's header (GGUF metadata, safetensors metadata).
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        files: Iterable[Path],
        info: dict[str, TensorInfo],
        read: Callable[[str], np.ndarray],
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.kind = kind
        self.files = list(files)
        self.info = info
        self.metadata = metadata or {}
        self._read = read

    def keys(self) -> list[str]:
        """All tensor names, in the file's order."""
        return list(self.info)

    def __contains__(self, key: str) -> bool:
        return key in self.info

    def read(self, key: str) -> np.ndarray:
        """The values of one tensor, in the dtype stored (float32 for quantised GGUF types)."""
        return self._read(key)


def sources_from_arrays(arrays: dict[str, np.ndarray], path: str = "memory") -> TensorSource:
    """A source over arrays in memory, for tests and for programs that made the weights."""
    info = {k: TensorInfo(tuple(v.shape), v.dtype.name) for k, v in arrays.items()}
    return TensorSource(Path(path), "numpy", [], info, arrays.__getitem__)


def open_tensors(path: str | Path) -> TensorSource:
    """Open a weights file, or the weights inside a folder.

    Accepted: `.safetensors`; `*.safetensors.index.json` / `*.bin.index.json` and its shards; torch
    archives (`.pth`, `.pt`, `.bin`, `.ckpt`); GGUF; plain pickles of numpy arrays; or a folder
    holding exactly one such set. What a file is, is decided by its first bytes, not by its name.

    Raises:
        UserError: nothing there, several candidates, a shard missing, or an unreadable file.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    if path.is_dir():
        path = _weights_in(path)
    if not path.is_file():
        raise UserError(f"{path} is no regular file; name a weights file or a folder of one")
    if path.name.endswith(".index.json"):
        return _open_index(path)
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise UserError(f"{path}: the file is empty; fetch it again")
    if head.startswith(b"GGUF"):
        return _open_gguf(path)
    if head.startswith(b"PK\x03\x04"):
        return _open_torch(path)
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _open_safetensors(path)
    if head[:1] == b"\x80":
        return _open_pickle(path)
    raise UserError(
        f"{path}: not a weights file that can be read; expected safetensors, a torch archive, GGUF "
        "or a pickle of numpy arrays"
    )


def _weights_in(folder: Path) -> Path:
    """The one set of weights in a folder; an index file beats the shards beside it."""
    for patterns in (
        ("*.safetensors.index.json", "*.bin.index.json"),
        ("*.safetensors",),
        ("*.gguf",),
        ("*.pth", "*.pt", "*.bin", "*.ckpt"),
    ):
        found = sorted(f for pattern in patterns for f in folder.glob(pattern))
        # Hub folders carry pickles that are no weights.
        found = [f for f in found if f.name not in ("training_args.bin", "optimizer.pt")]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(f.name for f in found[:4])
            shards = [f for f in found if "-of-" in f.name]
            advice = (
                "its index file (*.index.json) is missing: fetch it too"
                if len(shards) == len(found)
                else "name the file to read instead of the folder"
            )
            raise UserError(f"{folder}: holds {len(found)} weights files ({names}); {advice}")
    raise UserError(
        f"{folder}: no weights found; expected *.safetensors, *.index.json, *.pth, *.bin or *.gguf"
    )


@dataclasses.dataclass(frozen=True)
class _Index:
    """Of a sharded checkpoint: tensor -> file."""

    weight_map: dict[str, str]


def _open_index(path: Path) -> TensorSource:
    index = read_json(path, _Index, advice="expected a shard index with weight_map")
    weight_map = index.weight_map
    names = sorted(set(weight_map.values()))
    if not names:
        raise UserError(f"{path}: its weight_map is empty; fetch it again")
    for name in names:
        if Path(name).name != name or name.endswith(".index.json"):
            raise UserError(f"{path}: {name[:80]!r} is no name of a weights file beside it")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(names)} shards missing, first {missing[0]}; fetch "
            "them into the same folder"
        )
    parts = {name: open_tensors(path.parent / name) for name in names}
    info: dict[str, TensorInfo] = {}
    for key, name in weight_map.items():
        if key not in parts[name]:
            raise UserError(f"{path}: says that {name} holds {key}, but it does not; fetch again")
        info[key] = parts[name].info[key]
    return TensorSource(
        path,
        next(iter(parts.values())).kind,
        [file for part in parts.values() for file in part.files],
        info,
        lambda key: parts[weight_map[key]].read(key),
    )


_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "U32": "uint32", "U16": "uint16",
}  # fmt: skip


def _open_safetensors(path: Path) -> TensorSource:
    import safetensors

    try:
        handle = safetensors.safe_open(path, "np")
        info = {}
        for key in handle.keys():  # noqa: SIM118 - the handle is no mapping
            view = handle.get_slice(key)
            dtype = _SAFETENSORS_DTYPES.get(view.get_dtype(), view.get_dtype())
            info[key] = TensorInfo(tuple(view.get_shape()), dtype)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({error}); the download may be cut off, so "
            "fetch it again"
        ) from error

    def read(key: str) -> np.ndarray:
        try:
            return handle.get_tensor(key)
        except (safetensors.SafetensorError, ValueError, AttributeError) as error:
            # Absurd empty shapes, and types that NumPy has not.
            raise UserError(
                f"{path}: tensor {key} of {info[key].dtype} {list(info[key].shape)} cannot be read "
                f"({error}); convert it to bfloat16 or float32 first"
            ) from error

    return TensorSource(path, "safetensors", [path], info, read, handle.metadata())


def _open_torch(path: Path) -> TensorSource:
    archive = TorchArchive(path)
    info = {
        key: TensorInfo(tensor.shape, tensor.storage.dtype.name)
        for key, tensor in archive.tensors.items()
    }
    return TensorSource(path, "torch", [path], info, archive.read)


# What torch older than 1.6 begins a file with: a pickle of its magic number.
_LEGACY_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def _open_pickle(path: Path) -> TensorSource:
    """A plain numpy pickle, or a torch file older than 1.6 (a run of pickles)."""
    with path.open("rb") as file:
        if file.read(len(_LEGACY_TORCH)) == _LEGACY_TORCH:
            return _open_legacy_torch(path)
    arrays = read_numpy_pickle(path)
    source = sources_from_arrays(arrays, str(path))
    source.files = [path]
    return source


def _open_legacy_torch(path: Path) -> TensorSource:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: written by a torch older than 1.6; install torch to read it, or re-save it "
            "as safetensors"
        ) from error
    check_legacy(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: torch refuses it as weights ({error})") from error
    tensors = {k: v for k, v in tensors.items() if isinstance(v, torch.Tensor)}
    info = {k: TensorInfo(tuple(v.shape), str(v.dtype)[6:]) for k, v in tensors.items()}

    def read(key: str) -> np.ndarray:
        tensor = tensors[key].detach()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        return tensor.numpy()

    return TensorSource(path, "torch", [path], info, read)


def _open_gguf(path: Path) -> TensorSource:
    import gguf

    from pyratok_jax.checkpoints.foreign.gguf_header import Facts, HeaderReader

    try:
        check_header(path)
        reader = HeaderReader(path)
    except Exception as error:
        raise UserError(
            f"{path}: not a whole GGUF file ({type(error).__name__}: {error}); fetch it again"
        ) from error
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    # GGUF lists dimensions fastest first.
    info = {
        name: TensorInfo(tuple(int(n) for n in reversed(t.shape)), t.tensor_type.name)
        for name, t in tensors.items()
    }

    def read(key: str) -> np.ndarray:
        tensor = tensors[key]
        if tensor.data.dtype in (np.float32, np.float16):
            return tensor.data.reshape(info[key].shape)
        try:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise UserError(
                f"{path}: tensor {key} is stored as {tensor.tensor_type.name}, which the gguf "
                "package cannot unpack; use a F16, Q8_0, Q4_0, Q4_1, Q4_K or Q6_K file"
            ) from error
        return values.reshape(info[key].shape)

    return TensorSource(path, "gguf", [path], info, read, Facts(reader.fields))
