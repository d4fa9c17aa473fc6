"""Sources of clips, by the way a config or a command names them.

`builtin:demo` and `builtin:demo-heldout`; a folder of videos and images (captions from sidecar
`NAME.txt` or `NAME.json`); a manifest file, also COCO's caption annotations; a folder (or a
pattern) of ArrayRecord or TFRecord shards; `tfds:NAME:SPLIT` for a TFDS dataset. Folders and
files may be local or remote.
"""

import os
import re
from collections.abc import Sequence

import tensorflow_datasets as tfds
from etils import epath

from pyratok_jax.data.sources.builtin import demo_records
from pyratok_jax.data.sources.manifests import MANIFEST_SUFFIXES, load_manifest, read_bytes
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.sources.shards import ShardRecords
from pyratok_jax.data.video.files import (
    IMAGE_SUFFIXES,
    MAX_TEXT_BYTES,
    VIDEO_SUFFIXES,
    BrokenVideoError,
    check_regular,
)
from pyratok_jax.data.world.films import parse_world
from pyratok_jax.errors import UserError
from pyratok_jax.io.documents import parse_json
from pyratok_jax.io.remote import is_remote, open_path
from pyratok_jax.io.shards import shard_files

MEDIA_SUFFIXES = VIDEO_SUFFIXES + IMAGE_SUFFIXES


def load_source(spec: str) -> Sequence[ClipRecord]:
    """All clips of a source, in an order that depends on its content only.

    Raises:
        UserError: unknown, missing, empty or malformed.
    """
    spec = str(spec)
    if spec.startswith("builtin:"):
        return _builtin(spec)
    if spec.startswith("tfds:"):
        return _tfds(spec)
    path = open_path(spec)
    if path.is_dir():
        files = shard_files(spec)
        return ShardRecords(files) if files else load_folder(spec)
    if re.search(r"[*?\[]", spec) and not path.exists() and path.parent.is_dir():
        return ShardRecords(sorted(str(file) for file in path.parent.glob(path.name)))
    suffix = path.suffix.lower()
    if suffix in MANIFEST_SUFFIXES:
        return load_manifest(spec)
    if suffix in MEDIA_SUFFIXES:
        if not path.exists():
            raise BrokenVideoError(spec, "no such file")
        return [ClipRecord(path.name, spec, _sidecar(path))]
    if not path.exists():
        raise UserError(
            f"no such source: {spec}; expected a folder, a manifest "
            f"({', '.join(MANIFEST_SUFFIXES)}), a video, or builtin:demo"
        )
    raise UserError(
        f"{spec} is neither a manifest ({', '.join(MANIFEST_SUFFIXES)}) nor a video or image"
    )


def _builtin(spec: str) -> Sequence[ClipRecord]:
    world = parse_world(spec)
    if world is not None:
        return world
    known = {"builtin:demo": "train", "builtin:demo-heldout": "heldout"}
    if spec not in known:
        raise UserError(
            f"unknown source {spec}; the built-in ones are {', '.join(known)}, "
            "builtin:world and builtin:world-heldout (with #SEED for another set)"
        )
    return demo_records("train" if known[spec] == "train" else "heldout")


def _tfds(spec: str) -> ShardRecords:
    """`tfds:NAME[/CONFIG][:SPLIT]`, already prepared on disk in TFDS's data folder."""
    name, _, split = spec.removeprefix("tfds:").partition(":")
    try:
        folder = str(tfds.builder(name).data_path)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"TFDS knows no dataset {name}: {reason}") from error
    files = shard_files(folder, split or "train") if epath.Path(folder).is_dir() else []
    if not files:
        raise UserError(
            f"the TFDS dataset {name} has no shards of split {split or 'train'} in {folder}; "
            "prepare it with `tfds build` or download_and_prepare, in array_record or tfrecord"
        )
    return ShardRecords(files)


def load_folder(folder: str) -> list[ClipRecord]:
    """Every video and image below a folder, sorted by path; ids are paths relative to it.

    Raises:
        UserError: it holds none.
    """
    root = epath.Path(folder)
    files = sorted(_walk(root), key=str)
    records = [ClipRecord(str(file.relative_to(root)), str(file), _sidecar(file)) for file in files]
    if not records:
        raise UserError(
            f"{folder} holds no video or image; expected files ending in "
            f"{', '.join(MEDIA_SUFFIXES)}"
        )
    return records


def _walk(folder: epath.Path) -> list[epath.Path]:
    return _walk_once(folder, set())


def _walk_once(folder: epath.Path, seen: set[str]) -> list[epath.Path]:
    """`_walk`, where links lead into each real folder once."""
    real = str(folder) if is_remote(folder) else os.path.realpath(folder)
    if real in seen:
        return []
    seen.add(real)
    found = []
    for entry in sorted(folder.iterdir(), key=str):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += _walk_once(entry, seen)
        elif entry.suffix.lower() in MEDIA_SUFFIXES:
            found.append(entry)
    return found


def _sidecar(file: epath.Path) -> str | None:
    """The caption beside a file: the whole of NAME.txt, or `caption` (or `text`) of NAME.json."""
    text, table = file.with_suffix(".txt"), file.with_suffix(".json")
    if text.exists():
        return _small(text).decode("utf-8-sig", "replace").strip() or None
    if not table.exists():
        return None
    content = parse_json(_small(table), f"{table} beside {file.name}")
    if isinstance(content, str):
        return content
    caption = None
    if isinstance(content, dict):
        caption = content.get("caption") or content.get("text")
    if caption is None:
        raise UserError(f"{table} beside {file.name} has no key caption; add it or remove the file")
    if isinstance(caption, list) and caption:
        caption = caption[0]
    if not isinstance(caption, str):
        raise UserError(f"{table}: caption is {str(caption)[:60]!r}, expected text")
    return caption.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _small(file: epath.Path) -> bytes:
    """The bytes of a sidecar. Raises: UserError, when it is no regular file or too large."""
    try:
        check_regular(str(file))
    except BrokenVideoError as error:
        raise UserError(f"cannot read {file}: {error.reason}") from error
    if file.stat().length > MAX_TEXT_BYTES:
        raise UserError(f"{file} has more than {MAX_TEXT_BYTES} bytes; it is no caption")
    return read_bytes(str(file))
