"""Finding the frames that a video shows at given times, with as little decoding as possible."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def frames_at(container: Any, stream: Any, times: Sequence[float], rate: float) -> list[Any]:
    """The frame shown at each time; fewer than asked where the stream ends early.

    The packets from the key frame on tell which frames are shown; all others that no frame refers
    to are skipped undecoded. A seek that lands too late (wrong indices) is repeated from further
    ahead. Streams whose packets or frames bear no usable time stamps are decoded in full.

    Args:
        container: PyAV's open container.
        stream: its video stream.
        times: seconds on the stream's own clock, ascending.
        rate: frames per second, for streams without time stamps.
    """
    for earlier in (0.0, 2.0, float("inf")):
        target = max(times[0] - earlier, 0.0)
        container.seek(int(target / stream.time_base), stream=stream, backward=True)
        packets = _packets_until(container, stream, times[-1])
        if packets is None:
            break
        stamps = np.array(sorted(p.pts for p in packets if p.pts is not None and not p.is_discard))
        if len(stamps) and float(stamps[0] * stream.time_base) <= max(times[0], 0.0) or not target:
            found = _decode_stamps(packets, stream, stamps, times)
            if found is not None:
                return found
            break
    container.seek(0, stream=stream, backward=True)
    return _pick_from_start(container, stream, times, rate)


def _packets_until(container: Any, stream: Any, time: float) -> list[Any] | None:
    """The packets from here to the last that may be shown at `time`, None without time stamps."""
    packets = []
    for packet in container.demux(stream):
        if packet.size and (packet.pts is None or packet.dts is None):
            return None
        packets.append(packet)
        # No packet is shown before its decoding time.
        if packet.dts is not None and float(packet.dts * stream.time_base) > time:
            break
    return packets


def _decode_stamps(
    packets: Sequence[Any], stream: Any, stamps: np.ndarray, times: Sequence[float]
) -> list[Any] | None:
    """Decode the frames shown at the times; None when the decoder renumbers frames."""
    if not len(stamps):
        return None
    shown = np.searchsorted(stamps, np.array(times) / float(stream.time_base), side="right") - 1
    wanted = [int(stamps[max(i, 0)]) for i in shown]
    missing, frames = set(wanted), {}
    decoder = stream.codec_context
    for packet in packets:
        decoder.skip_frame = "DEFAULT" if packet.pts in missing else "NONREF"
        for frame in packet.decode():
            # Of two frames with one time stamp, the first is kept.
            if frame.pts in missing or frame.pts not in frames:
                frames[frame.pts] = frame if frame.pts in missing else None
            missing.discard(frame.pts)
        if not missing:
            break
    decoder.skip_frame = "DEFAULT"
    for frame in decoder.decode(None) if missing else ():
        frames[frame.pts] = frame
        missing.discard(frame.pts)
    return None if missing else [frames[stamp] for stamp in wanted]


def _pick_from_start(container: Any, stream: Any, times: Sequence[float], rate: float) -> list[Any]:
    picked: list[Any] = []
    previous = None
    for number, frame in enumerate(container.decode(stream)):
        time = number / rate if frame.time is None else frame.time
        while previous is not None and len(picked) < len(times) and time > times[len(picked)]:
            picked.append(previous)
        if len(picked) == len(times):
            return picked
        previous = frame
    return picked + [previous] * (previous is not None)
