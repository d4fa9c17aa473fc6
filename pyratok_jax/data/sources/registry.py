"""Sources of clips, by the way a config or a command names them.

`builtin:demo` and `builtin:demo-heldout`; a folder of videos and images (captions from sidecar
`NAME.txt` or `NAME.json`); a manifest file, also COCO's caption annotations; a folder (or a
pattern) of ArrayRecord or TFRecord shards; `tfds:NAME:SPLIT` for a TFDS dataset. Folders and
files may be local or remote.
"""

import codecs
import os
import re
from collections.abc import Iterable, Iterator, Sequence

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
from pyratok_jax.io.shards import check_whole, shard_files

MEDIA_SUFFIXES = VIDEO_SUFFIXES + IMAGE_SUFFIXES

_MOST_NESTED = 100


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
    if not spec:
        raise UserError("the name of a source is empty; name a folder, a manifest or a video")
    path = open_path(spec)
    if path.is_dir():
        files = shard_files(spec)
        check_whole(spec, files, f"{spec}/*-of-* as the source takes those that are there")
        return ShardRecords(files) if files else load_folder(spec)
    if re.search(r"[*?\[]", spec) and not path.exists() and path.parent.is_dir():
        return ShardRecords(sorted(str(file) for file in path.parent.glob(path.name)))
    suffix = path.suffix.lower()
    if suffix in MANIFEST_SUFFIXES:
        return load_manifest(spec)
    if suffix in MEDIA_SUFFIXES:
        if not path.exists():
            raise BrokenVideoError(spec, "no such file")
        beside = [path.with_suffix(end) for end in (".txt", ".TXT", ".json", ".JSON")]
        return [ClipRecord(path.name, spec, _caption(path, next(_existing(beside), None)))]
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
    check_whole(folder, files, "prepare it again")
    return ShardRecords(files)


def load_folder(folder: str) -> list[ClipRecord]:
    """Every video and image below a folder, sorted by path; ids are paths relative to it.

    Raises:
        UserError: it holds none.
    """
    root = epath.Path(folder)
    records = [
        ClipRecord(str(file.relative_to(root)), str(file), _caption(file, sidecar))
        for file, sidecar in sorted(_walk(root), key=lambda found: str(found[0]))
    ]
    if not records:
        raise UserError(
            f"{folder} holds no video or image; expected files ending in "
            f"{', '.join(MEDIA_SUFFIXES)}"
        )
    return records


def _walk(root: epath.Path) -> Iterator[tuple[epath.Path, epath.Path | None]]:
    """Media below a folder with the sidecars beside them; links lead into each real folder once."""
    seen: set[str | tuple[int, int]] = set()
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        if depth > _MOST_NESTED:
            raise UserError(f"{root} nests folders deeper than {_MOST_NESTED}; name one inside")
        real = str(folder) if is_remote(folder) else _identity(os.stat(folder))
        if real in seen:
            continue
        seen.add(real)
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        folders = {entry for entry in entries if entry.is_dir()}
        # In this order: a folder that is linked is found under its first name.
        waiting += [(inner, depth + 1) for inner in sorted(folders, key=str, reverse=True)]
        sidecars = _sidecars(entry for entry in entries if entry not in folders)
        for entry in entries:
            if entry not in folders and entry.suffix.lower() in MEDIA_SUFFIXES:
                yield entry, sidecars.get(entry.stem)


def _identity(found: os.stat_result) -> tuple[int, int]:
    """Of a folder, however it is named: resolving its name takes long where it is nested deep."""
    return found.st_dev, found.st_ino


def _sidecars(entries: Iterable[epath.Path]) -> dict[str, epath.Path]:
    """Files of captions by stem: .txt before .json, in any case, lower case first."""
    found: dict[str, epath.Path] = {}
    named = [entry for entry in entries if entry.suffix.lower() in (".txt", ".json")]
    for entry in sorted(named, key=lambda e: (e.suffix.lower() != ".txt", e.suffix.isupper(), e)):
        found.setdefault(entry.stem, entry)
    return found


def _existing(paths: Iterable[epath.Path]) -> Iterator[epath.Path]:
    return (path for path in paths if path.exists())


def _caption(file: epath.Path, sidecar: epath.Path | None) -> str | None:
    """The caption beside a file: the whole of NAME.txt, or `caption` (or `text`) of NAME.json."""
    if sidecar is None:
        return None
    if sidecar.suffix.lower() == ".txt":
        return _decoded(_small(sidecar), sidecar).strip() or None
    where = f"{sidecar} beside {file.name}"
    content = parse_json(_small(sidecar), where)
    caption = None
    if isinstance(content, dict):
        caption = content.get("caption") or content.get("text")
    elif isinstance(content, str):
        caption = content
    if caption is None:
        raise UserError(f"{where} has no key caption; add it or remove the file")
    if isinstance(caption, list) and caption:
        caption = next((one for one in caption if one is not None), None)
    if not isinstance(caption, str):
        raise UserError(f"{sidecar}: caption is {str(caption)[:60]!r}, expected text")
    return caption.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _decoded(data: bytes, file: epath.Path) -> str:
    """UTF-8, or UTF-16 where a byte order mark says so; what is neither becomes U+FFFD.

    Raises:
        UserError: zero bytes, which no text holds.
    """
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if marked else "utf-8-sig", "replace")
    if "\0" in text:
        raise UserError(f"{file} holds zero bytes: it is no text; write it as UTF-8 or remove it")
    return text


def _small(file: epath.Path) -> bytes:
    """The bytes of a sidecar. Raises: UserError, when it is no regular file or too large."""
    try:
        check_regular(str(file))
    except BrokenVideoError as error:
        raise UserError(f"cannot read {file}: {error.reason}") from error
    if file.stat().length > MAX_TEXT_BYTES:
        raise UserError(f"{file} has more than {MAX_TEXT_BYTES} bytes; it is no caption")
    return read_bytes(str(file))
