"""Clips as tf.train.Example messages, the content of ArrayRecord and TFRecord shards.

Ours hold the keys of `EXAMPLE_KEYS`; of others, the media and the caption are found by the names
that are common for them. An Example's bytes are parsed as a protocol buffer only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError

# Not where it is used: while TFDS is imported, imports in other threads fail.
from tensorflow_datasets.proto import tf_example_pb2

from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.files import BrokenVideoError

# Our keys: text, then numbers. `video` holds the compressed clip, or one image file per frame.
TEXT_KEYS = ("id", "caption", "path", "buckets")
FLOAT_KEYS = ("start", "end", "seconds", "fps")
INT_KEYS = ("width", "height", "frames")
MEDIA_KEY = "video"

_MEDIA = (MEDIA_KEY, "video_bytes", "mp4", "video/encoded", "image", "image/encoded", "jpg", "png")
_CAPTION = ("caption", "captions", "text", "txt", "video/caption", "image/caption")
_ID = ("id", "key", "__key__", "video_id", "filename", "image/filename")


def encode_example(values: Mapping[str, Any], media: Sequence[bytes]) -> bytes:
    """Serialise one clip; equal content gives equal bytes.

    Args:
        values: by our keys; a missing or None text is stored as "", a missing number as -1.
        media: the compressed clip as one item, or the image files of its frames.
    """
    example = tf_example_pb2.Example()
    feature = example.features.feature
    for key in TEXT_KEYS:
        feature[key].bytes_list.value.append((values.get(key) or "").encode())
    for key in FLOAT_KEYS:
        number = values.get(key)
        feature[key].float_list.value.append(-1.0 if number is None else number)
    for key in INT_KEYS:
        number = values.get(key)
        feature[key].int64_list.value.append(-1 if number is None else number)
    feature[MEDIA_KEY].bytes_list.value.extend(media)
    return example.SerializeToString(deterministic=True)


def decode_example(data: bytes, where: str) -> ClipRecord:
    """The clip in a serialised Example; `where` names shard and position in messages.

    Raises:
        BrokenVideoError: not an Example, or without media.
    """
    try:
        feature = tf_example_pb2.Example.FromString(data).features.feature
    except DecodeError as error:
        raise BrokenVideoError(where, f"not a tf.train.Example ({error})") from error
    values = {key: _values(feature[key]) for key in feature}
    media = next((values[key] for key in _MEDIA if _is_media(values.get(key))), None)
    if media is None:
        keys = ", ".join(sorted(values)) or "none"
        raise BrokenVideoError(where, f"it has none of the keys {', '.join(_MEDIA)} (its: {keys})")
    path = _text(values, ("path",)) or where
    return ClipRecord(
        id=_text(values, _ID) or where,
        path=path,
        caption=_text(values, _CAPTION),
        start=_number(values, "start"),
        end=_number(values, "end"),
        width=_whole(values, "width"),
        height=_whole(values, "height"),
        seconds=_number(values, "seconds"),
        fps=_number(values, "fps"),
        data=media[0] if len(media) == 1 else None,
        stored=tuple(media) if len(media) > 1 else None,
    )


def _values(feature: Any) -> list:
    kind = feature.WhichOneof("kind")
    return [] if kind is None else list(getattr(feature, kind).value)


def _is_media(values: list | None) -> bool:
    return (
        values is not None
        and len(values) > 0
        and isinstance(values[0], bytes)
        and len(values[0]) > 0
    )


def _text(values: Mapping[str, list], keys: tuple[str, ...]) -> str | None:
    for key in keys:
        if values.get(key) and isinstance(values[key][0], bytes):
            return values[key][0].decode("utf-8", "replace") or None
    return None


def _number(values: Mapping[str, list], key: str) -> float | None:
    found = values.get(key)
    if not found or isinstance(found[0], bytes) or found[0] < 0:
        return None
    return float(found[0])


def _whole(values: Mapping[str, list], key: str) -> int | None:
    number = _number(values, key)
    return None if number is None else int(number)
