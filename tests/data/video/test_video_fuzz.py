"""Damaged videos and pictures: frames, or `BrokenVideoError` in one line, within a time limit."""

import io

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
)  # fmt: skip
from tests.damage import damaged, survives
from tests.data.synthetic import numbered_frames

SEED, ROUNDS = 0, 24
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


def reads(read) -> bool:
    return survives(read, BrokenVideoError)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_videos_give_frames_or_a_refusal(kind):
    data = encoded(*KINDS[kind])
    assert reads(lambda: count_frames(data))
    rng = np.random.default_rng([SEED, len(kind), *kind.encode()])
    results = []
    for _ in range(ROUNDS):
        broken = damaged(data, rng)
        results += [
            reads(lambda broken=broken: probe(broken)),
            reads(lambda broken=broken: read_clip(broken, start=0.2, frames=3)),
            reads(lambda broken=broken: count_frames(broken, 0.1, 0.3)),
        ]
    assert not all(results)


@pytest.mark.parametrize("kind", PICTURES)
def test_damaged_pictures_give_a_picture_or_a_refusal(kind):
    buffer = io.BytesIO()
    Image.fromarray(numbered_frames(1, 48, 64)[0]).save(buffer, kind)
    rng = np.random.default_rng([SEED, *kind.encode()])
    results = [
        reads(lambda broken=damaged(buffer.getvalue(), rng): read_image(broken))
        for _ in range(8 * ROUNDS)
    ]
    assert not all(results)
