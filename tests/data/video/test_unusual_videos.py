"""Videos that are valid but rare, or broken without FFmpeg saying so."""

import struct
import threading
import time
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.stream import Disposition

from pyratok_jax.data.sources.payloads import clip_frames, clip_payload
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video import files, limits
from pyratok_jax.data.video.files import (
    BrokenVideoError,
    count_frames,
    iter_frames,
    probe,
    read_clip,
)
from pyratok_jax.data.video.timeline import packets_of
from tests.data.video.test_video_matrix import (
    COUNT,
    FPS,
    HEIGHT,
    WIDTH,
    encode,
    numbered,
    seen,
    written_times,
)

ONE = 1 << 16


def written(path, container, codec, pipe=False):
    encode(path, container, codec, written_times("constant"), pipe)
    return path


def with_matrix(path, numbers):
    """Put a display matrix in the header of an MP4 file's track."""
    data = bytearray(path.read_bytes())
    place = data.find(b"tkhd") + 44
    data[place : place + 36] = struct.pack(">9i", *numbers, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ((-ONE, 0, 0, 0, ONE, 0), lambda f: f[:, ::-1]),
        ((ONE, 0, 0, 0, -ONE, 0), lambda f: f[::-1]),
        ((-ONE, 0, 0, 0, -ONE, 0), lambda f: f[::-1, ::-1]),
        ((0, ONE, 0, -ONE, 0, 0), lambda f: np.rot90(f, -1)),
        ((0, ONE, 0, ONE, 0, 0), lambda f: f.transpose(1, 0, 2)),
        ((0, -ONE, 0, -ONE, 0, 0), lambda f: f[::-1, ::-1].transpose(1, 0, 2)),
        ((0, 0, 0, 0, 0, 0), lambda f: f),
    ],
    ids=["mirrored", "upside down", "180", "90", "transposed", "transverse", "no matrix"],
)
def test_display_matrices_turn_and_mirror(tmp_path, numbers, shown):
    path = written(tmp_path / "film.mp4", "mp4", "h264")
    plain = next(iter_frames(path))
    with_matrix(path, numbers)
    frame = next(iter_frames(path))
    np.testing.assert_array_equal(frame, shown(plain))
    np.testing.assert_array_equal(read_clip(path, start=0, frames=1)[0], frame)
    assert (probe(path).height, probe(path).width) == frame.shape[:2]
    clip = ClipRecord("x", str(path), start=0.2, end=0.4)
    stored = clip_payload(clip, frame.shape[:2], "bytes", 0, 12, 95)
    again = ClipRecord("", "x", start=stored.start, end=stored.end, data=stored.media[0])
    for kept, source in zip(clip_frames(again), clip_frames(clip), strict=True):
        assert np.abs(kept.astype(int) - source).mean() < 3


def test_a_turn_by_another_angle_is_refused(tmp_path):
    path = written(tmp_path / "film.mp4", "mp4", "h264")
    with_matrix(path, (46341, 46341, 0, -46341, 46341, 0))
    for read in (probe, lambda p: next(iter_frames(p)), lambda p: read_clip(p, start=0, frames=2)):
        with pytest.raises(BrokenVideoError, match="another angle"):
            read(path)


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_transparent_webm_is_shown_over_the_background(tmp_path, codec):
    path = tmp_path / "film.webm"
    picture = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    picture[..., 0] = 255
    picture[:, : WIDTH // 2, 3] = 255
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuva420p"
        stream.options = {"deadline": "realtime", "auto-alt-ref": "0"}
        for n in range(6):
            frame = av.VideoFrame.from_ndarray(picture, "rgba").reformat(format="yuva420p")
            frame.pts, frame.time_base = n, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    clip = ClipRecord("x", str(path), start=0.04, end=0.16)
    payload = clip_payload(clip, (HEIGHT, WIDTH), "bytes", 0, 12, 95)
    for frame in (
        next(iter_frames(path)), read_clip(path, start=0.1, frames=1)[0],
        next(clip_frames(clip)), next(iter_frames(payload.media[0])),
    ):  # fmt: skip
        assert frame[32, 20, 0] > 240 and frame[32, 20, 1] < 15  # Red.
        assert (frame[32, 80] > 240).all()  # White.
    assert count_frames(path) == 6


def test_a_video_whose_size_changes_is_refused_from_there_on(tmp_path):
    path = tmp_path / "film.webm"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libvpx", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for part, scale in enumerate((1, 2)):
            encoder = av.CodecContext.create("libvpx", "w")
            encoder.width, encoder.height = WIDTH // scale, HEIGHT // scale
            encoder.pix_fmt, encoder.framerate = "yuv420p", Fraction(FPS)
            encoder.time_base = Fraction(1, FPS)
            encoder.options = {"deadline": "realtime"}
            for n in range(10):
                frame = av.VideoFrame.from_ndarray(numbered(n)[::scale, ::scale], "rgb24")
                frame = frame.reformat(format="yuv420p")
                frame.pts, frame.time_base = n + 10 * part, Fraction(1, FPS)
                for packet in encoder.encode(frame):
                    packet.stream, packet.time_base = stream, Fraction(1, FPS)
                    out.mux(packet)
    assert read_clip(path, start=0.0, frames=5).shape == (5, HEIGHT, WIDTH, 3)
    for start in (0.3, 0.6):
        with pytest.raises(BrokenVideoError, match="changes its size from 96x64 to 48x32"):
            read_clip(path, start=start, frames=5)
    for read in (count_frames, lambda p: list(iter_frames(p))):
        with pytest.raises(BrokenVideoError, match="changes its size"):
            read(path)


def fragmented(path):
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with av.open(str(path), "w", format="mp4", options=options) as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"g": "12", "bf": "2", "preset": "veryfast"}
        for n in range(COUNT):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(n), "rgb24")))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize("kind", ["mkv", "webm", "fragmented", "avi"])
def test_what_ends_before_its_header_says_is_refused(tmp_path, kind):
    path = tmp_path / f"film.{'mp4' if kind == 'fragmented' else kind}"
    if kind == "fragmented":
        fragmented(path)
    else:
        written(path, kind, {"mkv": "h264 B", "webm": "vp9", "avi": "mpeg4"}[kind])
    assert count_frames(path) == COUNT
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    for read in (count_frames, lambda p: list(iter_frames(p)),
                 lambda p: read_clip(p, start=2.0, frames=4)):  # fmt: skip
        with pytest.raises(BrokenVideoError, match="it is cut off"):
            read(path)


def test_live_recordings_have_no_length_and_are_read(tmp_path):
    path = written(tmp_path / "film.mkv", "mkv", "h264", pipe=True)
    assert seen(iter_frames(path)) == list(range(COUNT))


def test_the_length_of_fragments_is_that_of_their_frames(tmp_path):
    info = probe(fragmented(tmp_path / "film.mp4"))
    assert info.frames == COUNT and info.seconds == pytest.approx(COUNT / FPS)


def test_pictures_that_the_decoder_leaves_out_are_noticed(tmp_path):
    path = written(tmp_path / "film.mp4", "mp4", "hevc open GOP")
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.is_keyframe][2]
        place, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[place + 4 : place + size] = bytes(size - 4)
    path.write_bytes(data)
    for read in (count_frames, lambda p: list(iter_frames(p)),
                 lambda p: read_clip(p, start=1.0, frames=4),
                 lambda p: count_frames(p, 0.6, 1.9)):  # fmt: skip
        with pytest.raises(BrokenVideoError, match="pictures are damaged"):
            read(path)


@pytest.mark.parametrize(("container", "codec"), [("ts", "h264 B"), ("mpg", "mpeg2")])
def test_joined_streams_have_the_frames_of_both(tmp_path, container, codec):
    path = written(tmp_path / f"film.{container}", container, codec)
    path.write_bytes(path.read_bytes() * 2)
    info = probe(path)
    assert info.frames == count_frames(path) == 2 * COUNT
    assert info.seconds == pytest.approx(2 * COUNT / FPS, abs=0.1)
    assert seen(read_clip(path, start=(COUNT + 7) / FPS, frames=4)) == [7, 8, 9, 10]


def test_a_cover_that_is_written_as_a_track_is_not_shown(tmp_path):
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as out:
        cover, film = out.add_stream("mjpeg", rate=1), out.add_stream("libx264", rate=FPS)
        cover.width = cover.height = 32
        cover.pix_fmt, cover.disposition = "yuvj420p", Disposition.attached_pic
        film.width, film.height, film.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
        out.mux(cover.encode(picture.reformat(format="yuvj420p")))
        out.mux(cover.encode())
        for n in range(12):
            out.mux(film.encode(av.VideoFrame.from_ndarray(numbered(n), "rgb24")))
        out.mux(film.encode())
    assert (probe(path).height, probe(path).width) == (HEIGHT, WIDTH)
    assert seen(iter_frames(path)) == list(range(12))


def test_a_decoder_that_hangs_costs_its_file_alone(tmp_path, monkeypatch):
    path = written(tmp_path / "film.avi", "avi", "h264")
    released, real = threading.Event(), files.timed_frames

    def hanging(*arguments):
        frames = real(*arguments)
        yield next(frames)
        released.wait(20)
        yield from frames

    monkeypatch.setattr(files, "timed_frames", hanging)
    monkeypatch.setattr(limits, "MAX_WAIT_SECONDS", 0.3)
    begin = time.monotonic()
    for read in (count_frames, lambda p: list(iter_frames(p)),
                 lambda p: read_clip(p, start=1.0, frames=2)):  # fmt: skip
        with pytest.raises(BrokenVideoError, match="did not go on within"):
            read(path)
    assert time.monotonic() - begin < 10
    released.set()


def test_a_reader_that_is_left_ends_its_thread(tmp_path):
    path = written(tmp_path / "film.mp4", "mp4", "h264")
    before = threading.active_count()
    for _ in range(3):
        assert next(iter_frames(path)).shape == (HEIGHT, WIDTH, 3)
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_streams_that_appear_late_do_not_matter():
    """PyAV reads past its list of streams then, as memory happens to be."""

    def demux(stream):
        yield from "abc"
        raise IndexError

    assert list(packets_of(SimpleNamespace(demux=demux), None)) == ["a", "b", "c"]


def test_a_rate_that_a_broken_clock_gives_is_measured(tmp_path):
    path = written(tmp_path / "film.mp4", "mp4", "h264")
    data = bytearray(path.read_bytes())
    place = data.find(b"mdhd") + 16  # The time scale: seconds per tick become years.
    data[place : place + 4] = bytes(3) + b"\x01"
    place = data.find(b"stts") + 16
    data[place : place + 4] = b"\x00\x01\x00\x00"
    path.write_bytes(data)
    assert probe(path).fps >= 1e-3
