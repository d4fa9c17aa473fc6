"""Text embeddings computed once and stored beside the data, read instead of running the model.

A folder holds `shard-NNNNN.safetensors`, each with `values` (tokens, width), the embeddings of its
captions one after the other, and `index.json`: the width, the tokens per caption at most, the model
that made them, and for every caption's hash its shard, first row and number of rows.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float, Num
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pyratok_jax.assets.fetch import file_hash, sha256_of
from pyratok_jax.checkpoints.verification import enabled
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json, text_bytes
from pyratok_jax.io.atomic import new_folder
from pyratok_jax.io.documents import read_json

FORMAT = "pyratok-jax-caption-embeddings-1"
Embed = Callable[[list[str]], tuple[Num[np.ndarray, "b l d"], Bool[np.ndarray, "b l"]]]


def caption_hash(caption: str) -> str:
    """The name under which a caption's embedding is stored."""
    return hashlib.sha256(text_bytes(caption.strip())).hexdigest()[:24]


def write_embeddings(
    output: str | Path,
    captions: Iterable[str],
    embed: Embed,
    *,
    length: int,
    model: str,
    batch: int = 16,
    shard_tokens: int = 1 << 16,
    progress: Callable[[int], None] = lambda count: None,
) -> Path:
    """Embed every distinct caption and store the values as float16. The folder appears whole.

    Args:
        output: the folder to make.
        captions: all captions; repetitions are stored once.
        embed: a batch of captions to embeddings and mask.
        length: tokens per caption at most.
        model: what made them, for the index.
        batch: captions per call of `embed`.
        shard_tokens: rows per file.
        progress: called with the number of captions just done.

    Raises:
        UserError: the output exists or cannot be written, or a value is too large for float16.
    """
    output = Path(output)
    if output.exists():
        raise UserError(f"{output} exists; name a new folder")
    with new_folder(output) as folder:
        index = _write_shards(folder, captions, embed, batch, shard_tokens, progress)
        index |= {"format": FORMAT, "length": length, "model": model}
        (folder / "index.json").write_text(json.dumps(index))
    return output


def _write_shards(
    folder: Path,
    captions: Iterable[str],
    embed: Embed,
    batch: int,
    shard_tokens: int,
    progress: Callable[[int], None],
) -> dict[str, Json]:
    rows: dict[str, tuple[int, int, int]] = {}
    parts: list[np.ndarray] = []
    shard = used = width = 0
    for group in _groups(captions, batch):
        values, mask = embed(group)
        for caption, one, real in zip(group, values, mask, strict=True):
            kept = np.asarray(one[real], np.float16)
            if not np.isfinite(kept).all():
                raise UserError(f"the embedding of {caption[:40]!r} does not fit float16")
            rows[caption_hash(caption)] = (shard, used, len(kept))
            used, width = used + len(kept), kept.shape[1]
            parts.append(kept)
        progress(len(group))
        if used >= shard_tokens:
            save_file({"values": np.concatenate(parts)}, folder / _shard_name(shard))
            parts, used, shard = [], 0, shard + 1
    if parts:
        save_file({"values": np.concatenate(parts)}, folder / _shard_name(shard))
    files = {path.name: sha256_of(path) for path in sorted(folder.glob("shard-*"))}
    return {"width": width, "captions": rows, "files": files}


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _groups(captions: Iterable[str], batch: int) -> Iterator[list[str]]:
    """Distinct captions in batches."""
    seen, group = set(), []
    for caption in captions:
        if caption.strip() and caption_hash(caption) not in seen:
            seen.add(caption_hash(caption))
            group.append(caption)
        if len(group) == batch:
            yield group
            group = []
    if group:
        yield group


_Number = Annotated[int, Field(ge=0, lt=1 << 40)]
_Size = Annotated[int, Field(ge=0, le=1 << 17)]


@dataclasses.dataclass(frozen=True)
class _Index:
    """`index.json`: sizes, (shard, first row, rows) by the hash of a caption, hashes of shards.

    Indices from before shards were hashed name no `files`.
    """

    format: str
    width: _Size
    length: _Size
    model: str
    captions: dict[str, tuple[_Number, _Number, _Number]]
    files: dict[str, str] = dataclasses.field(default_factory=dict)


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
        self.width, self.length, self.model = index.width, index.length, index.model
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
