"""Ordinary video codecs in memory: x264, x265 and AV1, as far as PyAV's FFmpeg has them.

Rate is the bytes of all packets: parameter sets count, a container and the encoder's remarks about
itself (SEI messages, up to two kilobytes of text) do not. Encoders run in one thread; even
so their output can differ slightly from run to run, by a byte or two in most.
"""

import contextlib
import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple, cast

import av
import numpy as np

from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.task import BrokenItemError

_PIXELS = "yuv420p"
_MATRIX = "ITU709"
BEST = 1.0  # CRF 0 may switch to a lossless mode.


@dataclasses.dataclass(frozen=True)
class Codec:
    """One codec: names of its encoder and decoders in FFmpeg, options, and its quality scale.

    Attributes:
        encoder: as FFmpeg calls it.
        decoders: the first of them that is there is used.
        options: of the encoder, without the rate.
        worst: the highest CRF.
        step: the smallest difference of two CRFs that the encoder tells apart.
        remark: given the first byte of a unit (NAL), whether it is an SEI message; None where
            packets do not consist of such units.
    """

    encoder: str
    decoders: tuple[str, ...]
    options: Mapping[str, str]
    worst: float
    step: float
    remark: Callable[[int], bool] | None = None


_AV1_DECODERS = ("libdav1d", "libaom-av1", "av1")
_CANDIDATES: dict[str, tuple[Codec, ...]] = {
    "x264": (
        Codec("libx264", ("h264",), {"preset": "medium"}, 51.0, 0.1, lambda byte: byte & 31 == 6),
    ),
    "x265": (
        Codec(
            "libx265",
            ("hevc",),
            {"preset": "medium", "x265-params": "log-level=none:pools=none:frame-threads=1"},
            51.0,
            0.1,
            lambda byte: byte >> 1 & 63 in (39, 40),
        ),
    ),
    "av1": (
        Codec("libsvtav1", _AV1_DECODERS, {"preset": "4", "svtav1-params": "lp=1"}, 63.0, 1.0),
        Codec("libaom-av1", _AV1_DECODERS, {"cpu-used": "4", "b:v": "0"}, 63.0, 1.0),
    ),
}
NAMES = tuple(_CANDIDATES)


class CodedVideo(NamedTuple):
    """A coded clip: packets, their size in bits, and the CRF that made them."""

    packets: tuple[bytes, ...]
    bits: int
    crf: float


@functools.cache
def available() -> dict[str, Codec]:
    """The codecs that PyAV's FFmpeg can both write and read, by our names."""
    found = {}
    for name, candidates in _CANDIDATES.items():
        for codec in candidates:
            if _has(codec.encoder, "w") and any(_has(d, "r") for d in codec.decoders):
                found[name] = codec
                break
    return found


def _has(name: str, mode: Literal["r", "w"]) -> bool:
    try:
        av.codec.Codec(name, mode)
    except (av.error.FFmpegError, ValueError):
        return False
    return True


def _context(name: str, mode: Literal["r", "w"]) -> av.VideoCodecContext:
    return cast(av.VideoCodecContext, av.CodecContext.create(name, mode))


def choose(text: str) -> dict[str, Codec]:
    """Codecs written with commas between, or `auto` for all that there are.

    Raises:
        UserError: an unknown one, or one that PyAV's FFmpeg lacks.
    """
    known = available()
    if text == "auto":
        return known
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in known:
            reason = "PyAV's FFmpeg lacks it" if name in NAMES else "it is unknown"
            raise UserError(
                f"--set codecs={text}: {name} cannot be used, {reason}; expected auto or some of "
                f"{', '.join(known) or '(none)'}"
            )
    return {name: known[name] for name in names}


def describe(codec: Codec) -> str:
    """The encoder with its options, for a protocol."""
    options = " ".join(f"{key}={value}" for key, value in codec.options.items())
    return f"{codec.encoder} {options}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """SVT-AV1 writes a banner unless this is set while its encoder starts."""
    before = os.environ.get("SVT_LOG")
    os.environ["SVT_LOG"] = "-1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["SVT_LOG"]
        else:
            os.environ["SVT_LOG"] = before


def encode(codec: Codec, video: np.ndarray, fps: float, crf: float) -> CodedVideo:
    """Code a clip uint8 (t, h, w, 3) at a constant rate factor.

    Raises:
        BrokenItemError: the encoder refuses this size.
    """
    frames = _even(video)
    context = _context(codec.encoder, "w")
    context.width, context.height = frames.shape[2], frames.shape[1]
    context.pix_fmt = _PIXELS
    context.framerate = Fraction(fps).limit_denominator(1001)
    context.time_base = 1 / context.framerate
    context.thread_count = 1
    shown = f"{crf:g}" if codec.step < 1 else str(round(crf))
    context.options = dict(codec.options) | {"crf": shown}
    packets: list[av.Packet] = []
    try:
        with _quiet():
            for number, frame in enumerate(frames):
                picture = _to_yuv(frame)
                picture.pts, picture.time_base = number, context.time_base
                packets += context.encode(picture)
            packets += context.encode(None)
    except (av.error.FFmpegError, ValueError) as error:
        size = f"{frames.shape[2]}x{frames.shape[1]}"
        raise BrokenItemError(
            f"{codec.encoder} cannot encode {size} at CRF {shown} ({error}); "
            "choose other codecs with --set codecs=..."
        ) from error
    data = tuple(_without_remarks(bytes(packet), codec) for packet in packets)
    return CodedVideo(data, 8 * sum(len(packet) for packet in data), float(shown))


def _without_remarks(packet: bytes, codec: Codec) -> bytes:
    """A packet less its SEI messages."""
    if codec.remark is None:
        return packet
    units = [unit for unit in re.split(rb"\x00*\x00\x00\x01", packet) if unit]
    return b"".join(b"\x00\x00\x00\x01" + unit for unit in units if not codec.remark(unit[0]))


def decode(codec: Codec, coded: CodedVideo, shape: Sequence[int]) -> np.ndarray:
    """The clip uint8 of `shape` (t, h, w, 3) behind packets.

    Raises:
        BrokenItemError: the decoder gives another number of frames.
    """
    name = next(name for name in codec.decoders if _has(name, "r"))
    context = _context(name, "r")
    frames: list[av.VideoFrame] = []
    for packet in coded.packets:
        frames += context.decode(av.Packet(packet))
    frames += context.decode(None)
    if len(frames) != shape[0]:
        raise BrokenItemError(f"{name} decoded {len(frames)} of {shape[0]} frames")
    return np.stack([_to_rgb(frame) for frame in frames])[:, : shape[1], : shape[2]]


def converted(video: np.ndarray) -> np.ndarray:
    """The clip after conversion to the codecs' pixels and back: no codec can do better."""
    frames = np.stack([_to_rgb(_to_yuv(frame)) for frame in _even(video)])
    return frames[:, : video.shape[1], : video.shape[2]]


def _even(video: np.ndarray) -> np.ndarray:
    """4:2:0 needs even sides: the last row and column are repeated where they are odd."""
    pads = [(0, 0), (0, video.shape[1] % 2), (0, video.shape[2] % 2), (0, 0)]
    return np.ascontiguousarray(np.pad(video, pads, mode="edge"))


def _to_yuv(frame: np.ndarray) -> av.VideoFrame:
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
    return picture.reformat(format=_PIXELS, dst_colorspace=_MATRIX, interpolation="BICUBIC")


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    picture = frame.reformat(format="rgb24", src_colorspace=_MATRIX, interpolation="BICUBIC")
    return picture.to_ndarray()


def match_rate(
    code: Callable[[float], CodedVideo], codec: Codec, target: float, steps: int = 9
) -> CodedVideo:
    """The encoding whose size comes closest to `target` bits, by bisection over the CRF.

    The bits fall with the CRF, nearly always; where even the worst quality takes more than the
    target (or the best less), that one is returned.

    Args:
        code: encodes at a CRF.
        codec: names its scale.
        target: bits.
        steps: encodings at most, beside the two ends.
    """
    low, high = BEST, codec.worst
    tried = [code(high)]
    if tried[0].bits < target:
        tried.append(code(low))
    if len(tried) == 2 and tried[1].bits > target:
        for _ in range(steps):
            middle = round((low + high) / 2 / codec.step) * codec.step
            if high - low <= codec.step or middle in (low, high):
                break
            tried.append(code(middle))
            low, high = (middle, high) if tried[-1].bits > target else (low, middle)
    return min(tried, key=lambda coded: abs(math.log(coded.bits / target)))
