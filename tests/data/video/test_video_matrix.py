"""Every container x codec x timing: all readers give the frames of a sequential decode.

Frames show their number as bars, and the times are known from the writing, so that the truth
needs none of the code under test.
"""

import bisect
import io
import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pyratok_jax.data.sources import payloads
from pyratok_jax.data.sources.payloads import clip_frames, clip_payload
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video import timeline
from pyratok_jax.data.video.files import (
    BrokenVideoError,
    count_frames,
    iter_frames,
    iter_span,
    opened,
    probe,
    read_clip,
    read_image,
)
from pyratok_jax.evaluation.data.clips import sample_frames
from pyratok_jax.tokens.blocks import open_clip

HEIGHT, WIDTH, COUNT, FPS = 64, 96, 60, 25
X264 = "scenecut=0:b-adapt=0:"
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"crf": "14", "g": "12", "bf": "0", "preset": "ultrafast"}),
    "h264 B": ("libx264", {"crf": "14", "g": "12", "bf": "3", "preset": "veryfast",
                           "x264-params": X264 + "b-pyramid=normal"}),
    "h264 open GOP": ("libx264", {"crf": "14", "g": "12", "bf": "2", "preset": "veryfast",
                                  "x264-params": X264 + "open-gop=1"}),
    "hevc open GOP": ("libx265", {"crf": "12", "preset": "ultrafast", "x265-params":
                                  "keyint=12:min-keyint=12:bframes=3:open-gop=1:scenecut=0:"
                                  "b-adapt=0:log-level=none"}),
    "vp9": ("libvpx-vp9", {"crf": "14", "b": "0", "g": "12", "deadline": "good", "cpu-used": "5",
                           "lag-in-frames": "12", "auto-alt-ref": "1"}),
    "av1": ("libsvtav1", {"crf": "20", "preset": "12", "g": "12", "svtav1-params": "lp=1"}),
    "mpeg4": ("mpeg4", {"qscale": "2", "g": "12", "bf": "2", "b": "4000000"}),
    "mpeg2": ("mpeg2video", {"g": "12", "bf": "2", "b": "4000000"}),
    "mjpeg": ("mjpeg", {"b": "8000000"}),
    "gif": ("gif", {}),
}  # fmt: skip
CONTAINERS = {
    "mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm", "avi": "avi", "ts": "mpegts",
    "mpg": "mpeg", "gif": "gif",
}  # fmt: skip
TIMINGS = ("constant", "variable", "late start", "cut", "no duration", "equal stamps")
# What exists in the world; FFmpeg muxes more, which nothing plays.
TAKES = {
    "mp4": set(CODECS) - {"gif"}, "mov": set(CODECS) - {"gif", "vp9", "av1"},
    "mkv": set(CODECS) - {"gif"}, "webm": {"vp9", "av1"},
    "avi": {"h264", "h264 B", "mpeg4", "mjpeg"},
    "ts": {"h264", "h264 B", "h264 open GOP", "hevc open GOP", "mpeg2"},
    "mpg": {"mpeg2"}, "gif": {"gif"},
}  # fmt: skip


def possible(container: str, codec: str, timing: str) -> bool:
    if codec not in TAKES[container]:
        return False
    if container in ("avi", "gif"):
        return timing == "constant" or (container == "gif" and timing == "variable")
    if timing == "no duration":  # MP4 without a duration is not MP4: its fragments have some.
        return container in ("mkv", "webm", "ts", "mpg")
    if timing == "cut":
        # Without its key frame, MPEG-4 shows damaged pictures, whose numbers nobody can read.
        return container != "mpg" and (codec != "mpeg4" or container in ("mp4", "mov"))
    if timing == "equal stamps":  # Frames that are reordered have no equal times.
        return container == "mkv" and codec in ("h264", "mjpeg", "vp9")
    return timing == "constant" or codec != "mpeg2" or container not in ("mpg", "ts")


CELLS = [
    cell for cell in itertools.product(CONTAINERS, CODECS, TIMINGS) if possible(*cell)
]  # fmt: skip
FAST = [
    ("mp4", "h264 B", "constant"), ("mp4", "h264 B", "variable"), ("mp4", "h264 open GOP", "cut"),
    ("mp4", "hevc open GOP", "late start"), ("mov", "mpeg4", "constant"),
    ("mkv", "h264 B", "constant"), ("mkv", "h264", "equal stamps"), ("mkv", "mpeg2", "constant"),
    ("webm", "vp9", "no duration"), ("avi", "h264 B", "constant"), ("avi", "mpeg4", "constant"),
    ("ts", "h264 B", "constant"), ("ts", "h264 open GOP", "cut"), ("mpg", "mpeg2", "constant"),
    ("gif", "gif", "variable"),
]  # fmt: skip


def numbered(n: int) -> np.ndarray:
    """A grey frame whose upper half shows the number as eight bars."""
    frame = np.full((HEIGHT, WIDTH, 3), 30 + n * 5 % 200, np.uint8)
    for bit in range(8):
        frame[: HEIGHT // 2, bit * WIDTH // 8 : (bit + 1) * WIDTH // 8] = 255 * (n >> bit & 1)
    return frame


def number(frame: np.ndarray) -> int:
    bars = frame[8:24, :, 1].mean(axis=0).reshape(8, -1)[:, 3:-3].mean(axis=1)
    return int((bars > 128) @ (1 << np.arange(8)))


def written_times(timing: str) -> list[float]:
    """Seconds at which the frames are shown, before any cut."""
    steps = np.ones(COUNT)
    if timing == "variable":
        steps = np.random.default_rng(0).choice([1, 1, 1, 2, 6], COUNT).astype(float)
    times = (np.cumsum(steps) - steps[0]) / FPS
    if timing == "equal stamps":
        times[[20, 41]] = times[[19, 40]]
    return (times + (9.6 if timing == "late start" else 0.0)).tolist()


class Pipe(io.RawIOBase):
    """Where a muxer cannot return to write a duration."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, part) -> int:
        self.data += bytes(part)
        return len(part)


def encode(path: Path, container: str, codec: str, times: list[float], pipe: bool) -> None:
    name, options = CODECS[codec]
    base = Fraction(1, 100 if codec == "gif" else FPS)
    target = Pipe() if pipe else str(path)
    with av.open(target, "w", format=CONTAINERS[container]) as out:
        stream = out.add_stream(name, rate=FPS)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "bgr8"}.get(codec, "yuv420p")
        stream.codec_context.time_base = base
        stream.codec_context.thread_count = 1
        stream.options = options
        for n, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(n), "rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = round(time / base), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    if pipe:
        path.write_bytes(target.data)


def rewrite(source: Path, path: Path, container: str, timing: str) -> None:
    """Copy packets with other times: cut in a group of pictures, or two frames at one time."""
    with (
        av.open(str(source)) as old,
        av.open(str(path), "w", format=CONTAINERS[container]) as new,
    ):
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream, opaque=True)
        shift = round(Fraction(17, FPS) / stream.time_base)
        packets = [p for p in old.demux(stream) if p.size]
        if timing == "cut" and container not in ("mp4", "mov"):
            packets = packets[17:]  # Begins between key frames.
        before = 0
        for n, packet in enumerate(packets):
            if timing == "cut" and container in ("mp4", "mov"):
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            if timing == "equal stamps":
                packet.pts = packet.dts = before if n in (20, 41) else packet.pts
                before = packet.pts
            packet.stream = copy
            new.mux(packet)


def make(folder: Path, container: str, codec: str, timing: str) -> Path:
    path = folder / f"film.{container}"
    if timing in ("cut", "equal stamps"):
        whole = folder / "whole.mkv"
        inner = "mp4" if timing == "cut" and container in ("mp4", "mov") else "mkv"
        encode(whole, inner, codec, written_times("constant"), False)
        rewrite(whole, path, container, timing)
    else:
        encode(path, container, codec, written_times(timing), timing == "no duration")
    return path


def truth(path: Path, timing: str) -> tuple[list[int], list[float]]:
    """Numbers of the frames of a sequential decode, and when they are shown, from the first on."""
    with av.open(str(path)) as container:
        numbers = [number(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    times = written_times(timing)
    return numbers, [times[n] - times[numbers[0]] for n in numbers]


def shown(numbers: list[int], times: list[float], at: float) -> int:
    return numbers[max(bisect.bisect_right(times, at + 1e-6) - 1, 0)]


def seen(frames) -> list[int]:
    return [number(frame) for frame in frames]


def check_cell(folder: Path, container: str, codec: str, timing: str, spans: int = 20) -> str:
    """Compare all readers with the truth: how random access is done."""
    path = make(folder, container, codec, timing)
    try:
        numbers, times = truth(path, timing)
    except av.error.FFmpegError:
        with pytest.raises(BrokenVideoError):
            list(iter_frames(path))
        return "refused"
    assert len(set(numbers)) == len(numbers) >= COUNT // 2
    rng = np.random.default_rng(0)
    assert seen(iter_frames(path)) == numbers
    assert count_frames(path) == len(numbers)
    info = probe(path)
    if timing not in ("variable", "cut"):  # Headers know these roughly.
        assert abs(info.seconds - times[-1] - 1 / FPS) < 1.5 / FPS
        assert abs(info.frames - len(numbers)) <= 1
    for _ in range(spans):
        check_span(path, numbers, times, rng)
    check_stored(path, numbers, times, rng, timing)
    with opened(path) as (opened_container, stream):
        at = [times[len(times) // 2] + 1e-3]
        return "sequential" if timeline.frames_at(opened_container, stream, at) is None else "seeks"


def check_span(path: Path, numbers: list[int], times: list[float], rng) -> None:
    first = int(rng.integers(0, len(numbers) - 6))
    last = first + int(rng.integers(2, 6))
    while times[first] == times[first - 1] or times[last] == times[last - 1]:
        first, last = first + 1, last + 1  # No span begins between frames of one time.
    record = ClipRecord("x", str(path), start=times[first], end=times[last])
    assert seen(clip_frames(record)) == numbers[first:last], (first, last)
    found = list(iter_span(path, times[first], times[last]))
    np.testing.assert_allclose([t for t, _ in found], times[first:last], atol=6e-3)
    assert count_frames(path, times[first], times[last]) == last - first
    assert seen(open_clip(record).frames) == numbers[first:last]
    at = [times[first] + n / FPS for n in range(6)]
    wanted = [shown(numbers, times, t) for t in at]
    assert seen(read_clip(path, start=at[0], frames=6, fps=FPS)) == wanted, at
    start = float(rng.uniform(0, times[-1]))
    start += 8e-3 * (min(abs(t - start) for t in times) < 6e-3)  # Clocks round; stay away.
    assert seen(read_clip(path, start=start, frames=1)) == [shown(numbers, times, start)], start
    thinned = seen(open_clip(record, fps=FPS / 2).frames)
    slots = np.arange(0, times[last - 1] - times[first] + 1e-6, 2 / FPS)
    wanted = [shown(numbers, times, times[first] + t) for t in slots]
    assert thinned[: len(wanted)] == wanted or probe(path).fps <= FPS / 2


def check_stored(path: Path, numbers: list[int], times: list[float], rng, timing: str) -> None:
    first = int(rng.integers(1, 15))  # Before the frames of one time.
    last = first + 4
    clip = ClipRecord("x", str(path), start=times[first], end=times[last])
    payload = clip_payload(clip, (HEIGHT, WIDTH), "bytes", 0, 12, 95)
    stored = ClipRecord("x", "x", start=payload.start, end=payload.end, data=payload.media[0])
    steady = timing not in ("variable", "equal stamps")
    if payload.start is not None or steady:
        assert seen(clip_frames(stored)) == numbers[first:last]
        back = read_clip(stored.data, start=payload.start or 0.0, frames=1)
        assert seen(back) == [numbers[first]]
    for store in ("frames", "reencode") if steady else ():
        payload = clip_payload(clip, (HEIGHT, WIDTH), store, 0, 12, 95)
        again = (
            map(read_image, payload.media) if store == "frames" else iter_frames(payload.media[0])
        )
        assert seen(again) == numbers[first:last], store


@pytest.mark.parametrize("cell", FAST, ids="-".join)
def test_all_readers_agree_with_a_sequential_decode(tmp_path, cell):
    check_cell(tmp_path, *cell, spans=8)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_the_whole_matrix(tmp_path, cell):
    check_cell(tmp_path, *cell)


def test_samples_of_a_span_follow_the_frames_own_times(tmp_path):
    """One second at 25 frames per second, then three at 5."""
    times = [n / 25 for n in range(25)] + [1 + n / 5 for n in range(15)]
    encode(tmp_path / "screen.mp4", "mp4", "h264", times, False)
    found = sample_frames(str(tmp_path / "screen.mp4"), 8, 0, start=2.0, end=4.0)
    numbers = list(range(len(times)))
    assert seen(found) == [shown(numbers, times, 2 + (i + 0.5) / 4) for i in range(8)]


def test_prepare_rejects_what_it_cannot_read_back(tmp_path, monkeypatch):
    encode(tmp_path / "film.mp4", "mp4", "h264", written_times("constant"), False)
    clip = ClipRecord("x", str(tmp_path / "film.mp4"), start=0.2, end=0.6)
    write = payloads._encoded

    def shifted(frames, fps, crf):
        return write((np.roll(f, f.shape[0] // 2, 0) for f in frames), fps, crf)

    def shortened(frames, fps, crf):
        return write(itertools.islice(frames, 3), fps, crf)

    for encoder, reason in ((shifted, "differs from the clip by"), (shortened, "fewer frames")):
        monkeypatch.setattr(payloads, "_encoded", encoder)
        with pytest.raises(BrokenVideoError, match=reason):
            clip_payload(clip, (HEIGHT, WIDTH), "reencode", 0, 12, 95)


def main() -> None:
    """Print the matrix as a table: `python -m tests.data.video.test_video_matrix`."""
    import tempfile

    for container, codec in itertools.product(CONTAINERS, CODECS):
        results = []
        for timing in TIMINGS:
            if not possible(container, codec, timing):
                results.append("-")
                continue
            with tempfile.TemporaryDirectory() as folder:
                try:
                    results.append(check_cell(Path(folder), container, codec, timing))
                except Exception as error:
                    results.append(f"FAILS: {type(error).__name__}: {str(error)[:300]}")
        if set(results) != {"-"}:
            print(f"| {container} | {codec} | " + " | ".join(results) + " |", flush=True)


if __name__ == "__main__":
    main()
