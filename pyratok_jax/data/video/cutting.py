"""Turning a record into one training clip: random time, target rate, size, crop, mirroring."""

from dataclasses import dataclass

import numpy as np

from pyratok_jax.data.buckets import Bucket
from pyratok_jax.data.sources.index import Shape
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.decoding import Decoder
from pyratok_jax.data.video.files import read_image, resize_image


@dataclass(frozen=True)
class Cut:
    """How clips are cut; see `config.data_config` for the meaning."""

    fps: float = 0.0
    crop: str = "random"
    zoom: float = 1.0
    mirror: bool = False


def covering_size(height: int, width: int, bucket: Bucket, zoom: float = 1.0) -> tuple[int, int]:
    """The size, of the same aspect ratio, that just covers a bucket's, times `zoom`."""
    scale = max(bucket.height / height, bucket.width / width) * zoom
    return (
        max(round(height * scale), bucket.height),
        max(round(width * scale), bucket.width),
    )


def cut_clip(
    record: ClipRecord,
    shape: Shape,
    bucket: Bucket,
    cut: Cut,
    rng: np.random.Generator,
    decoder: Decoder,
    cache: "DecodedCache | None" = None,
) -> np.ndarray:
    """One clip of the bucket's shape, uint8 (frames, height, width, 3).

    A record with a drawing is drawn in that shape, whole: a crop or a mirrored picture could make
    its caption untrue ("left of").

    All random numbers are drawn before anything is decoded, so that decoding cannot change them.

    Raises:
        BrokenVideoError: the file cannot be decoded there.
    """
    if record.drawing is not None:
        return record.drawing.draw(bucket.frames, bucket.height, bucket.width)
    place, across, down, grow, flip = rng.random(5)
    zoom = cut.zoom**grow
    still = not np.isfinite(shape.seconds)
    fps = cut.fps or shape.fps
    needed = (bucket.frames - 1) / fps
    room = 0.0 if still else max(shape.seconds - needed - 1.0 / shape.fps, 0.0)
    offset = np.floor(place * room * shape.fps) / shape.fps
    size = covering_size(shape.height, shape.width, bucket, zoom)
    if cache is not None:
        frames = cache.frames(record, shape, decoder)
        clip = frames[_numbers(len(frames), offset, bucket.frames, fps, shape, still)]
        clip = clip if clip.shape[1:3] == size else np.stack([resize_image(f, size) for f in clip])
    elif record.stored is not None:
        numbers = _numbers(len(record.stored), offset, bucket.frames, fps, shape, still)
        images = {n: resize_image(read_image(record.stored[n]), size) for n in set(numbers)}
        clip = np.stack([images[n] for n in numbers])
    else:
        begin = (record.start or 0.0) + offset
        clip = decoder.clip(
            record.media,
            start=begin,
            frames=_available(bucket.frames, offset, fps, shape, still),
            fps=None if still else cut.fps or None,
            size=size,
        )
        if len(clip) < bucket.frames:
            # A clip that is too short for the bucket must not run into what follows it.
            rest = np.repeat(clip[-1:], bucket.frames - len(clip), axis=0)
            clip = np.concatenate([clip, rest])
    return _cropped(clip, bucket, cut, across, down, flip)


def _available(frames: int, offset: float, fps: float, shape: Shape, still: bool) -> int:
    if still:
        return frames
    return int(np.clip(np.ceil((shape.seconds - offset) * fps - 1e-6), 1, frames))


def _numbers(
    stored: int, offset: float, count: int, fps: float, shape: Shape, still: bool
) -> np.ndarray:
    """Which of the stored frames are shown at the clip's times; the last one is repeated."""
    times = offset + np.arange(count) / fps
    numbers = np.zeros(count, int) if still else np.floor(times * shape.fps + 0.25).astype(int)
    return np.minimum(numbers, stored - 1)


def _cropped(
    clip: np.ndarray, bucket: Bucket, cut: Cut, across: float, down: float, flip: float
) -> np.ndarray:
    if cut.crop == "center":
        across = down = 0.5
    top = int((clip.shape[1] - bucket.height + 1) * down * (1 - 1e-9))
    left = int((clip.shape[2] - bucket.width + 1) * across * (1 - 1e-9))
    clip = clip[:, top : top + bucket.height, left : left + bucket.width]
    if cut.mirror and flip < 0.5:
        clip = clip[:, :, ::-1]
    return np.ascontiguousarray(clip)


class DecodedCache:
    """Whole clips in memory, shrunk to cover the largest bucket (times the zoom)."""

    def __init__(self, buckets: tuple[Bucket, ...], zoom: float) -> None:
        self._buckets, self._zoom = buckets, zoom
        self._clips: dict[str, np.ndarray] = {}

    def frames(self, record: ClipRecord, shape: Shape, decoder: Decoder) -> np.ndarray:
        """All frames of a record, decoded at the first call. Raises: BrokenVideoError."""
        key = f"{record.path}\n{record.id}"
        if key not in self._clips:
            self._clips[key] = self._decoded(record, shape, decoder)
        return self._clips[key]

    def _decoded(self, record: ClipRecord, shape: Shape, decoder: Decoder) -> np.ndarray:
        size = self._size(shape)
        if record.stored is not None:
            return np.stack([resize_image(read_image(image), size) for image in record.stored])
        count = 1
        if np.isfinite(shape.seconds):
            count = max(round(shape.seconds * shape.fps), 1)
        return decoder.clip(record.media, start=record.start or 0.0, frames=count, size=size)

    def _size(self, shape: Shape) -> tuple[int, int]:
        sizes = [covering_size(shape.height, shape.width, b, self._zoom) for b in self._buckets]
        return max(sizes)
