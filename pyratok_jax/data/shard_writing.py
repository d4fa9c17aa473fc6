"""Writing TFDS datasets: shards, their appearance under their names, and TFDS's metadata."""

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

SPLIT = "train"
FORMATS = ("array_record", "tfrecord")


def shard_name(dataset: str, kind: str, number: int, shards: int) -> str:
    """A shard's file name, as TFDS expects it."""
    return f"{dataset}-{SPLIT}.{kind}-{number:05d}-of-{shards:05d}"


class ShardWriter:
    """The writer of one shard, as a context manager with `write(bytes)`.

    Args:
        path: a local file.
        kind: one of `FORMATS`.
        options: of ArrayRecord; one record per group, so that each can be read alone.
    """

    def __init__(self, path: Path, kind: str, options: str = "group_size:1") -> None:
        if kind == "array_record":
            from array_record.python.array_record_module import ArrayRecordWriter

            self._writer: Any = ArrayRecordWriter(str(path), options)
        else:
            import tensorflow as tf

            self._writer = tf.io.TFRecordWriter(str(path))

    def __enter__(self) -> "ShardWriter":
        return self

    def write(self, data: bytes) -> None:
        """Append one record."""
        self._writer.write(data)

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def publish(local: Path, target: epath.Path) -> None:
    """Move a finished file to its place, where it appears at once or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if "://" not in str(target) and os.stat(target.parent).st_dev == os.stat(local).st_dev:
        os.replace(local, target)
        return
    scratch = _scratch(target)
    with local.open("rb") as source, scratch.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
    scratch.replace(target)


def write_text(target: epath.Path, text: str) -> None:
    """Write a text file, which appears at once or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch(target)
    scratch.write_text(text)
    scratch.replace(target)


def _scratch(target: epath.Path) -> epath.Path:
    """A name of this writer's own: several processes may write the same file at once."""
    return target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.part"


def write_tfds_metadata(
    output: epath.Path,
    *,
    dataset: str,
    kind: str,
    features: Mapping[str, Any],
    lengths: Sequence[int],
    size: int,
    description: str,
) -> None:
    """Write dataset_info.json and features.json, by which TFDS opens the folder.

    Args:
        output: the folder of the shards.
        dataset: the name in the shards' names.
        kind: one of `FORMATS`.
        features: TFDS's feature connectors by key.
        lengths: number of records of each shard.
        size: bytes of all records.
        description: for people.
    """
    template = tfds.core.ShardedFileTemplate(
        data_dir=output, dataset_name=dataset, split=SPLIT, filetype_suffix=kind
    )
    split = tfds.core.SplitInfo(
        name=SPLIT, shard_lengths=list(lengths), num_bytes=size, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(output), features=dict(features), split_infos=[split], version="1.0.0",
        filename_template=template, check_data=False, description=description,
    )  # fmt: skip
