"""Damaged videos and pictures: frames, or `BrokenVideoError` in one line, within a time limit."""

import io
import time

import av
import numpy as np
import pytest
from PIL import Image

from pyratok_jax.data.video.files import (
    BrokenVideoError,
    count_frames,
    probe,
    read_clip,
    read_image,
)
from tests.data.synthetic import numbered_frames

SEED, ROUNDS, SECONDS = 0, 24, 5.0
KINDS = {
    "mp4": ("mp4", "libx264", "yuv420p"), "mkv": ("matroska", "mpeg4", "yuv420p"),
    "webm": ("webm", "libvpx", "yuv420p"), "avi": ("avi", "mpeg4", "yuv420p"),
    "ts": ("mpegts", "libx264", "yuv420p"), "mpg": ("mpeg", "mpeg2video", "yuv420p"),
    "gif": ("gif", "gif", "bgr8"),
}  # fmt: skip
PICTURES = ("PNG", "JPEG", "BMP", "WEBP")


def encoded(container: str, codec: str, pixels: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, pixels, 5
        stream.codec_context.thread_count = 1
        for picture in numbered_frames(12, 48, 64):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One of: cut off, bytes changed, a part moved, a part repeated, a length made absurd."""
    copy = bytearray(data)
    way, place = rng.integers(5), int(rng.integers(8, len(data)))
    if way == 0:
        return data[:place]
    if way == 1:
        for at in rng.integers(8, len(data), int(rng.integers(1, 20))):
            copy[at] = rng.integers(256)
    elif way == 2:
        size = int(rng.integers(1, 200))
        part = copy[place : place + size]
        del copy[place : place + size]
        other = int(rng.integers(8, len(copy)))
        copy[other:other] = part
    elif way == 3:
        copy[place:place] = data[place : place + int(rng.integers(1, 500))]
    else:
        place = int(rng.integers(8, min(len(data), 400)))
        copy[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0" * 4])
    return bytes(copy)


def survives(read) -> bool:
    """Whether a reader gave a result; it may refuse in one line, and must not take long."""
    begin = time.process_time()
    try:
        read()
        good = True
    except BrokenVideoError as error:
        assert "\n" not in error.reason and len(error.reason) < 500
        good = False
    assert time.process_time() - begin < SECONDS
    return good


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_videos_give_frames_or_a_refusal(kind):
    data = encoded(*KINDS[kind])
    assert survives(lambda: count_frames(data))
    rng = np.random.default_rng([SEED, len(kind), *kind.encode()])
    results = []
    for _ in range(ROUNDS):
        broken = damaged(data, rng)
        results += [
            survives(lambda broken=broken: probe(broken)),
            survives(lambda broken=broken: read_clip(broken, start=0.2, frames=3)),
            survives(lambda broken=broken: count_frames(broken, 0.1, 0.3)),
        ]
    assert not all(results)


@pytest.mark.parametrize("kind", PICTURES)
def test_damaged_pictures_give_a_picture_or_a_refusal(kind):
    buffer = io.BytesIO()
    Image.fromarray(numbered_frames(1, 48, 64)[0]).save(buffer, kind)
    rng = np.random.default_rng([SEED, *kind.encode()])
    results = [
        survives(lambda broken=damaged(buffer.getvalue(), rng): read_image(broken))
        for _ in range(8 * ROUNDS)
    ]
    assert not all(results)
