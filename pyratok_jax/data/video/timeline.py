"""Which frame a video shows at which time: the only place where this is decided.

The truth is a sequential decode. Frames count in the order in which the decoder gives them, and
times are seconds after the first one. A frame is shown from its own time until the next one's.

Random access is an optimisation, for containers with an index of key frames and the presentation
times of all packets (MP4/MOV, Matroska/WebM). What a seek delivers is checked; where it cannot be
trusted, the functions return None and the caller decodes sequentially.
"""

import collections
import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import av
import numpy as np

from pyratok_jax.data.video.display import UnshowableError

T = TypeVar("T")

_INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# No codec lets more frames precede a frame in decoding order and follow it in output order.
_MOST_REORDERED = 16
_MOST_SEEKS = 8


def tolerance(stream: Any, rate: float) -> float:
    """Seconds by which a frame's rounded time may lie behind its true one.

    Half a tick of the stream's clock. The clock of AVI counts frames, which rounds nothing.
    """
    tick = float(stream.time_base)
    return 1e-4 + (min(tick / 2, 5e-3) if tick < 0.5 / rate else 0.0)


class FrameClock:
    """Ascending times for the frames of a sequential decode, in seconds after the first one.

    AVI holds no presentation times: its frames are shown at the decoding times of its packets,
    in order. Frames without a time follow the one before by 1 / rate; where times jump back
    (streams that were joined), they continue from there.
    """

    def __init__(self, container: Any, stream: Any, rate: float) -> None:
        self._tick, self._step = float(stream.time_base), 1.0 / rate
        self._in_order = container.format.name == "avi"
        self._slots: collections.deque[int] = collections.deque()
        self._origin: float | None = None
        self._last = -self._step

    def see(self, packet: Any) -> None:
        """Every packet, before it is decoded."""
        if self._in_order and packet.size and packet.dts is not None:
            self._slots.append(packet.dts)

    def time(self, frame: Any) -> float:
        """Of the next decoded frame."""
        stamp = self._slot() if self._in_order else frame.pts
        following = self._last + self._step
        if stamp is None:
            self._last = following
            return following
        seconds = stamp * self._tick
        if self._origin is None:
            self._origin = seconds - following
        now = seconds - self._origin
        if now < self._last - self._tick / 2:
            self._origin = seconds - following
            now = following
        self._last = now
        return now

    def _slot(self) -> int | None:
        return self._slots.popleft() if self._slots else None


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream in coded order, then an empty one, which flushes the decoder.

    At its very end PyAV may ask for streams that appeared after the header (transport streams).
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, IndexError):
            return
        yield packet


def timed_frames(container: Any, stream: Any, rate: float) -> Iterator[tuple[float, Any]]:
    """(time, frame) of a whole video, from a container that was just opened."""
    clock, decoder = FrameClock(container, stream, rate), _alpha_decoder(stream)
    skipped = _Skipped(stream if container.format.name in _INDEXED else None)
    for packet in packets_of(container, stream):
        clock.see(packet)
        skipped.see(packet)
        for frame in decoder.decode(packet) if decoder is not None else packet.decode():
            skipped.refuse_before(frame.pts)
            yield clock.time(frame), frame
    skipped.refuse_before(None)


class _Skipped:
    """Notices pictures that a decoder leaves out after the first one that it gives.

    FFmpeg's decoder of HEVC does so with damaged ones, without an error; others are not looked at.

    Args:
        stream: of a container that knows the times of all packets; None for others.
    """

    def __init__(self, stream: Any | None) -> None:
        self._silent = stream is not None and stream.codec_context.name == "hevc"
        self._awaited: list[int] = []
        self._begun = False

    def see(self, packet: Any) -> None:
        """Every packet, before it is decoded."""
        if self._silent and packet.size and packet.pts is not None and not packet.is_discard:
            heapq.heappush(self._awaited, packet.pts)

    def refuse_before(self, stamp: int | None) -> None:
        """At each frame's stamp in order, None at the end. Raises: UnshowableError."""
        if not self._silent:
            return
        while self._awaited and (stamp is None or self._awaited[0] < stamp):
            heapq.heappop(self._awaited)
            if self._begun:
                raise UnshowableError("some of its pictures are damaged and cannot be decoded")
        self._begun = True
        while self._awaited and self._awaited[0] == stamp:
            heapq.heappop(self._awaited)


# FFmpeg's own decoders of VP8 and VP9 leave out the transparency that Matroska keeps beside them.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def _alpha_decoder(stream: Any) -> Any | None:
    """A decoder for streams of VP8 or VP9 with transparency, None for others.

    Raises:
        UnshowableError: FFmpeg was built without it.
    """
    name = _ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        return None
    try:
        decoder = av.CodecContext.create(name, "r")
    except ValueError as error:
        raise UnshowableError(f"its transparency needs FFmpeg with {name}") from error
    decoder.thread_count = 1
    return decoder


def shown_at(frames: Iterable[tuple[float, T]], times: Sequence[float]) -> list[T]:
    """What is shown at each of the ascending times; fewer where the frames end before.

    The last frame is given once for the first time after it, since nobody knows how long it is
    shown.
    """
    picked: list[T] = []
    previous: list[T] = []
    for time, frame in frames:
        while previous and len(picked) < len(times) and time > times[len(picked)]:
            picked.append(previous[0])
        if len(picked) == len(times):
            return picked
        previous = [frame]
    return picked + previous


def resampled(
    frames: Iterable[tuple[float, T]], fps: float, margin: float, last: float
) -> Iterator[T]:
    """The frame shown at n / fps, for n from 0 on; frames are left out or repeated.

    Args:
        frames: ascending times and what is shown.
        fps: frames per second wanted.
        margin: see `tolerance`; a frame that begins so much later counts as shown already.
        last: seconds for which the last frame is shown.
    """
    number, held, time, begin = 0, None, 0.0, None
    for time, frame in frames:
        begin = time if begin is None else begin
        while held is not None and time - begin > number / fps + margin:
            yield held
            number += 1
        held = frame
    # The slack of a clock does not make room for one frame more.
    while held is not None and begin is not None and number / fps + margin < time - begin + last:
        yield held
        number += 1


def within(
    frames: Iterable[tuple[float, T]], start: float, end: float, margin: float, step: float
) -> Iterator[tuple[float, T]]:
    """The frames that begin in [start, end); the one shown there when none begins there.

    Args:
        frames: times in seconds, ascending, with frames; from one at or before `start` on.
        start: of the span, in seconds.
        end: likewise.
        margin: see `tolerance`.
        step: seconds for which the last frame is shown.
    """
    held: tuple[float, T] | None = None
    found = False
    for time, frame in frames:
        if time >= end - margin:
            # A span that is shorter than the margin may hold the very first frame.
            shown = (time, frame) if held is None and time < end else held
            if not found and shown is not None:
                yield shown
            return
        if time >= start - margin:
            found = True
            yield time, frame
        held = time, frame
    if not found and held is not None and start + margin < held[0] + step:
        yield held


def frames_at(container: Any, stream: Any, times: Sequence[float]) -> list[Any] | None:
    """The frame shown at each time by random access, or None where it cannot be trusted.

    Args:
        container: PyAV's container, just opened.
        stream: its video stream.
        times: ascending seconds after the first frame, with the tolerance.
    """
    try:
        landed = land(container, stream, times[0])
        if landed is None:
            return None
        origin, key, packets = landed
        stamps = [origin + time / float(stream.time_base) for time in times]
        gathered = gather(container, key, packets, stamps[-1])
        return None if gathered is None else _decode_wanted(gathered, stream, stamps)
    except av.error.FFmpegError:
        return None


def frames_from(container: Any, stream: Any, time: float) -> Iterator[tuple[float, Any]] | None:
    """(time, frame) from a key frame at or before `time` on, or None as in `frames_at`.

    The iterator raises `UntrustedTimes` when the stream turns out not to be as it should.
    """
    try:
        landed = land(container, stream, time)
    except av.error.FFmpegError:
        return None
    return None if landed is None else _decode_on(stream, *landed)


class UntrustedTimes(Exception):
    """Random access met time stamps that cannot be trusted; decode sequentially."""


def _decode_on(
    stream: Any, origin: int, key: Any, packets: Iterator[Any]
) -> Iterator[tuple[float, Any]]:
    last, skipped = key.pts - 1, _Skipped(stream)
    for packet in _with_first(key, packets):
        if packet.size and (packet.pts is None or packet.is_discard):
            raise UntrustedTimes
        skipped.see(packet)
        for frame in packet.decode():
            if frame.pts is None or frame.is_corrupt:
                raise UntrustedTimes
            if frame.pts < key.pts:
                continue  # It refers to frames before the key frame (open GOP).
            if frame.pts <= last:
                raise UntrustedTimes
            skipped.refuse_before(frame.pts)
            last = frame.pts
            yield (frame.pts - origin) * float(stream.time_base), frame
    skipped.refuse_before(None)


def _with_first(first: T, rest: Iterator[T]) -> Iterator[T]:
    yield first
    yield from rest


def land(container: Any, stream: Any, time: float) -> tuple[int, Any, Iterator[Any]] | None:
    """The first frame's stamp, a key packet shown at or before `time`, and the packets after it.

    None where the container knows no presentation times or its index cannot be trusted.
    """
    if container.format.name not in _INDEXED or stream.time_base is None:
        return None
    if _alpha_decoder(stream) is not None:
        return None
    packets = packets_of(container, stream)
    first = next(packets, None)
    if first is None or first.pts is None:
        return None
    origin = first.pts
    if first.is_discard or not first.is_keyframe or first.pts != stream.start_time:
        # The first packets are hidden by an edit list or not decodable: ask the decoder.
        shown = next((f for p in _with_first(first, packets) for f in p.decode()), None)
        if shown is None or shown.pts is None:
            return None
        origin = shown.pts
    wanted = origin + time / float(stream.time_base)
    target, before = int(np.floor(wanted)), None
    for _ in range(_MOST_SEEKS):
        container.seek(target, stream=stream, backward=True)
        packets = packets_of(container, stream)
        key = next(packets, None)
        if key is None or key.pts is None or not key.is_keyframe or key.is_discard:
            return None
        if key.pts <= wanted:
            return origin, key, packets
        lowest = key.pts if key.dts is None else min(key.dts, key.pts)
        if before is not None and lowest >= before:
            return None
        # The seek landed late: its index is wrong, or knows decoding times only.
        target, before = lowest - 1, lowest
    return None


def gather(container: Any, key: Any, packets: Iterator[Any], stamp: float) -> list[Any] | None:
    """The packets from the key frame to the last that may be shown at `stamp`, in coded order.

    None where one has no presentation time or is hidden by an edit list.
    """
    has_decoding_times = container.format.name == _INDEXED[0]
    found, later = [], 0
    for packet in _with_first(key, packets):
        if packet.size:
            if packet.pts is None or packet.is_discard:
                return None
            found.append(packet)
            later += packet.pts > stamp
            # No packet is shown before its decoding time.
            passed = has_decoding_times and packet.dts is not None and packet.dts > stamp
            if passed or later > _MOST_REORDERED:
                break
    return found


def _decode_wanted(
    packets: Sequence[Any], stream: Any, stamps: Sequence[float]
) -> list[Any] | None:
    """Decode the frames shown at the stamps; others that no frame refers to are skipped."""
    first = packets[0].pts
    known = np.array(sorted(p.pts for p in packets if p.pts >= first))
    if (np.diff(known) == 0).any():
        return None
    wanted = known[np.searchsorted(known, stamps, side="right") - 1].tolist()
    missing, frames = set(wanted), {}
    decoder = stream.codec_context
    skips = decoder.name == "h264"  # What other decoders call unreferenced differs.
    for packet in (*packets, None):
        if skips and packet is not None:
            decoder.skip_frame = "DEFAULT" if packet.pts in missing else "NONREF"
        for frame in decoder.decode(packet):
            if frame.pts in missing:
                if frame.is_corrupt:
                    return None
                frames[frame.pts] = frame
                missing.discard(frame.pts)
        if not missing:
            break
    decoder.skip_frame = "DEFAULT"
    return None if missing else [frames[stamp] for stamp in wanted]
