"""Clips as tf.train.Example messages, the content of ArrayRecord and TFRecord shards.

Ours hold the keys of `CLIP_SCHEMA` and `MEDIA_KEY`; of others, the media and the caption are found
by the names that are common for them.
"""

from collections.abc import Mapping, Sequence

from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.files import BrokenVideoError, is_image
from pyratok_jax.io import Json
from pyratok_jax.io.records import ExampleSchema, Values, feature_values, parse_example

CLIP_SCHEMA = ExampleSchema(
    texts=("id", "caption", "path", "buckets"),
    floats=("start", "end", "seconds", "fps"),
    integers=("width", "height", "frames"),
)
# The compressed clip, or one image file per frame.
MEDIA_KEY = "video"

_MEDIA = (MEDIA_KEY, "video_bytes", "mp4", "video/encoded", "image", "image/encoded", "jpg", "png")
_CAPTION = ("caption", "captions", "text", "txt", "video/caption", "image/caption")
_ID = ("id", "key", "__key__", "video_id", "filename", "image/filename")


def encode_example(values: Mapping[str, Json], media: Sequence[bytes]) -> bytes:
    """Serialise one clip; equal content gives equal bytes.

    Args:
        values: by the keys of `CLIP_SCHEMA`; a missing or None text is stored as "", a missing
            number as -1.
        media: the compressed clip as one item, or the image files of its frames.
    """
    return CLIP_SCHEMA.encode(values, {MEDIA_KEY: media})


def decode_example(data: bytes, where: str) -> ClipRecord:
    """The clip in a serialised Example; `where` names shard and position in messages.

    Raises:
        BrokenVideoError: not an Example, or without media.
    """
    try:
        features = parse_example(data)
    except ValueError as error:
        raise BrokenVideoError(where, str(error)) from error
    values = {key: feature_values(features[key]) for key in features}
    media = next((found for key in _MEDIA if (found := _media(values.get(key)))), None)
    if media is None:
        keys = ", ".join(sorted(values)) or "none"
        raise BrokenVideoError(where, f"it has none of the keys {', '.join(_MEDIA)} (its: {keys})")
    path = _text(values, ("path",)) or where
    # One image where the path names no image: the only frame of a video, or another's picture.
    frames = len(media) > 1 or (is_image(media[0]) and not is_image(path))
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
        data=None if frames else media[0],
        stored=tuple(media) if frames else None,
    )


def _media(values: Values | None) -> list[bytes]:
    """The values of a key, if they are bytes and the first is not empty; else none."""
    found = [value for value in values or () if isinstance(value, bytes)]
    return found if found and found[0] else []


def _text(values: Mapping[str, Values], keys: tuple[str, ...]) -> str | None:
    for key in keys:
        first = next(iter(values.get(key) or ()), None)
        if isinstance(first, bytes):
            return first.decode("utf-8", "replace") or None
    return None


def _number(values: Mapping[str, Values], key: str) -> float | None:
    found = values.get(key)
    if not found or isinstance(found[0], bytes) or found[0] < 0:
        return None
    return float(found[0])


def _whole(values: Mapping[str, Values], key: str) -> int | None:
    number = _number(values, key)
    return None if number is None else int(number)
