"""Text embeddings computed once and stored beside the data, read instead of running the model.

A folder holds `shard-NNNNN.safetensors`, each with `values` (tokens, width), the embeddings of its
captions one after the other, and `index.json`: the width, the tokens per caption at most, the model
that made them and the bits of its kernels, and for every caption's hash its shard, first row and
number of rows.
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float, Num
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pyratok_jax.assets.fetch import file_hash, sha256_of
from pyratok_jax.checkpoints.verification import enabled
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json, text_bytes
from pyratok_jax.io.atomic import write_bytes, write_json
from pyratok_jax.io.documents import read_json
from pyratok_jax.io.locks import folder_lock

FORMAT = "pyratok-jax-caption-embeddings-1"
Embed = Callable[[list[str]], tuple[Num[np.ndarray, "b l d"], Bool[np.ndarray, "b l"]]]


def caption_hash(caption: str) -> str:
    """The name under which a caption's embedding is stored."""
    return hashlib.sha256(text_bytes(caption.strip())).hexdigest()[:24]


_Number = Annotated[int, Field(ge=0, lt=1 << 40)]
_Size = Annotated[int, Field(ge=0, le=1 << 17)]


def partial_folder(output: str | Path) -> Path:
    """Where the finished shards of an unfinished output are kept: `OUTPUT.part`."""
    output = Path(output)
    return output.with_name(f"{output.name}.part")


def write_embeddings(
    output: str | Path,
    captions: Iterable[str],
    embed: Embed,
    *,
    length: int,
    model: str,
    bits: int = 0,
    batch: int = 16,
    shard_tokens: int = 1 << 16,
    progress: Callable[[int], None] = lambda count: None,
) -> Path:
    """Embed every distinct caption and store the values as float16. The folder appears whole.

    Until then finished shards are kept in `partial_folder(output)`: a later call with the same
    model, length and bits goes on after them, and ends with the files of a call that was not
    interrupted.

    Args:
        output: the folder to make.
        captions: all captions; repetitions are stored once, spaces around them do not count.
        embed: a batch of captions to embeddings and mask.
        length: tokens per caption at most.
        model: what made them, for the index.
        bits: of the model's kernels where it was quantised, else 0.
        batch: captions per call of `embed`.
        shard_tokens: rows per file.
        progress: called with the number of captions just done, or found done.

    Raises:
        UserError: the output exists or cannot be written, an unfinished one is of another model,
            length or number of bits, or a value is too large for float16.
    """
    output, part = Path(output), partial_folder(output)
    if output.exists():
        raise UserError(f"{output} exists; name a new folder")
    made = _Made(FORMAT, length, model, bits)
    try:
        if part.is_dir() and not _is_unfinished(part):
            raise UserError(f"{part} holds no unfinished embeddings; move it, or name a new folder")
        part.mkdir(parents=True, exist_ok=True)
        with folder_lock(part, 0, 1, "embedding to", "name another folder"):
            kept = _fill(part, made, captions, embed, batch, shard_tokens, progress)
            os.replace(part, output)
            for path in output.iterdir():
                if path.name not in kept:
                    path.unlink()
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from error
    return output


@dataclasses.dataclass(frozen=True)
class _Made:
    """`made.json` of an unfinished output: what its embeddings are of."""

    format: str
    length: _Size
    model: str
    bits: _Size


@dataclasses.dataclass(frozen=True)
class _Shard:
    """`shard-NNNNN.json` of an unfinished output, written after the shard itself.

    Attributes:
        sha256: of the shard's bytes.
        width: of the embeddings.
        captions: (first row, rows) by the hash of a caption.
    """

    sha256: str
    width: _Size
    captions: dict[str, tuple[_Number, _Number]]


_MADE = "made.json"


def _is_unfinished(part: Path) -> bool:
    """Whether a folder is of an interrupted call, and not of the user."""
    names = [path.name for path in part.iterdir()]
    return _MADE in names or all(name.startswith((".lock.", ".part-")) for name in names)


def _fill(
    part: Path,
    made: _Made,
    captions: Iterable[str],
    embed: Embed,
    batch: int,
    shard_tokens: int,
    progress: Callable[[int], None],
) -> set[str]:
    """Write the shards that are missing and the index; the names of what is to stay."""
    shards = _Shards(part)
    if shards.done:
        _compare(part, made)
    else:
        write_json(part / _MADE, dataclasses.asdict(made))
    try:
        for group in _groups(captions, batch, shards.known(), progress):
            values, mask = embed(group)
            for caption, one, real in zip(group, values, mask, strict=True):
                shards.add(caption, np.asarray(one[real], np.float16))
            progress(len(group))
            if shards.used >= shard_tokens:
                shards.close()
        shards.close()
    except BaseException:
        if not shards.done:  # Nothing to go on after.
            shutil.rmtree(part, ignore_errors=True)
        raise
    index = shards.index()
    write_json(part / "index.json", index | dataclasses.asdict(made), indent=None)
    return {"index.json", *index["files"]}


def _compare(part: Path, made: _Made) -> None:
    advice = "remove the folder to begin anew"
    found = read_json(part / _MADE, _Made, advice=advice)
    if found != made:
        raise UserError(
            f"{part} holds unfinished embeddings of model {found.model[:24]}, {found.length} "
            f"tokens, {found.bits} bits, not of {made.model[:24]}, {made.length}, {made.bits}; go "
            f"on with those, or {advice}"
        )


class _Shards:
    """The shards of an unfinished folder: those on the disk, and the one that is being filled.

    Attributes:
        done: the finished ones, in order.
        used: rows of the one that is being filled.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self.done = folder, _finished(folder)
        self._rows: dict[str, tuple[int, int]] = {}
        self._parts: list[np.ndarray] = []
        self.used = 0

    def known(self) -> set[str]:
        """Hashes of the captions in the finished shards."""
        return {name for shard in self.done for name in shard.captions}

    def add(self, caption: str, values: np.ndarray) -> None:
        """One caption's embeddings, float16 (tokens, width).

        Raises:
            UserError: they are not finite.
        """
        if not np.isfinite(values).all():
            raise UserError(f"the embedding of {caption[:40]!r} does not fit float16")
        self._rows[caption_hash(caption)] = (self.used, len(values))
        self._parts.append(values)
        self.used += len(values)

    def close(self) -> None:
        """Write the shard that was being filled, and then what it holds."""
        if not self._parts:
            return
        values, number = np.concatenate(self._parts), len(self.done)
        path = self._folder / _shard_name(number)
        write_bytes(path, save({"values": values}))
        shard = _Shard(sha256_of(path), values.shape[1], self._rows)
        write_json(path.with_suffix(".json"), dataclasses.asdict(shard), indent=None)
        self.done.append(shard)
        self._rows, self._parts, self.used = {}, [], 0

    def index(self) -> dict[str, Json]:
        """The part of `index.json` that tells where captions are."""
        rows = {
            name: (number, *place)
            for number, shard in enumerate(self.done)
            for name, place in shard.captions.items()
        }
        files = {_shard_name(number): shard.sha256 for number, shard in enumerate(self.done)}
        return {"width": self.done[-1].width if self.done else 0, "captions": rows, "files": files}


def _finished(folder: Path) -> list[_Shard]:
    """The shards of an unfinished folder up to the first that is missing or damaged."""
    found: list[_Shard] = []
    with contextlib.suppress(UserError, OSError):
        while True:
            path = folder / _shard_name(len(found))
            shard = read_json(path.with_suffix(".json"), _Shard)
            if sha256_of(path) != shard.sha256:
                break
            found.append(shard)
    return found


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _groups(
    captions: Iterable[str], batch: int, known: set[str], progress: Callable[[int], None]
) -> Iterator[list[str]]:
    """Distinct captions in batches, without spaces around them and without those that are known."""
    seen, group = set[str](), list[str]()
    for caption in map(str.strip, captions):
        name = caption_hash(caption)
        if not caption or name in seen:
            continue
        seen.add(name)
        if name in known:
            progress(1)
            continue
        group.append(caption)
        if len(group) == batch:
            yield group
            group = []
    if group:
        yield group


@dataclasses.dataclass(frozen=True)
class _Index:
    """`index.json`: sizes, (shard, first row, rows) by the hash of a caption, hashes of shards.

    Indices from before shards were hashed name no `files`; those from before models could be
    quantised name no `bits`.
    """

    format: str
    width: _Size
    length: _Size
    model: str
    captions: dict[str, tuple[_Number, _Number, _Number]]
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    bits: _Size = 0


class StoredCaptions:
    """Reads a folder of embeddings; takes the place of a `CaptionTokenizer` in the pipeline.

    Where that one gives ids, this one gives the embeddings themselves.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a folder.

        Raises:
            UserError: not a folder of embeddings.
        """
        self.folder = Path(folder)
        path = self.folder / "index.json"
        if not path.is_file():
            raise UserError(f"{folder}: no readable index.json of caption embeddings")
        index = read_json(path, _Index, max_bytes=4 << 30, advice="store the embeddings again")
        if index.format != FORMAT:
            raise UserError(f"{folder}: index.json is not of caption embeddings")
        self.width, self.length = index.width, index.length
        self.model, self.bits = index.model, index.bits
        self._rows, self._hashes = index.captions, index.files
        self._files: dict[int, Any] = {}

    def __call__(
        self, captions: Sequence[str | None]
    ) -> tuple[Float[np.ndarray, "b l d"], Bool[np.ndarray, "b l"]]:
        """Embeddings (float32, zero where there is no token) and mask.

        Raises:
            UserError: a caption that is not stored.
        """
        values = np.zeros((len(captions), self.length, self.width), np.float32)
        mask = np.zeros((len(captions), self.length), bool)
        for row, caption in enumerate(captions):
            if caption and caption.strip():
                one = self._read(caption)
                values[row, : len(one)] = one
                mask[row, : len(one)] = True
        return values, mask

    def _read(self, caption: str) -> np.ndarray:
        place = self._rows.get(caption_hash(caption))
        if place is None:
            raise UserError(
                f"{self.folder}: no embedding of the caption {caption[:60]!r}; store them again "
                "for the data that is used now"
            )
        shard, first, count = place
        if shard not in self._files:
            path = self.folder / _shard_name(shard)
            recorded = self._hashes.get(path.name)
            if enabled() and recorded and path.is_file() and file_hash(path) != recorded:
                raise UserError(
                    f"{path}: holds other bytes than were stored; store the embeddings again"
                )
            try:
                self._files[shard] = safe_open(path, "np").get_slice("values")
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"{path}: missing or damaged; store the embeddings again"
                ) from error
        values = self._files[shard]
        rows, width = values.get_shape()
        if width != self.width or first + count > rows or count > self.length:
            raise UserError(
                f"{self.folder}/index.json: rows {first} to {first + count} are not in shard "
                f"{shard} of {rows} rows x {width}; store the embeddings again"
            )
        return values[first : first + count]
