import io
import os

import av
import numpy as np
import pytest
from PIL import Image

from pyratok_jax.data.sources.payloads import remux
from pyratok_jax.data.video.files import (
    BrokenVideoError,
    count_frames,
    iter_frames,
    probe,
    read_clip,
    span_times,
)
from pyratok_jax.data.video.writer import VideoWriter
from tests.data.synthetic import numbered_frames, numbers_of, read_media, write_video


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    """40 frames with a key frame every 12 and B-frames."""
    path = tmp_path_factory.mktemp("v") / "long.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"crf": "5", "g": "12", "bf": "2"}
        for frame in numbered_frames(40, 48, 64):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        out.mux(stream.encode())
    return path


def test_probe_and_iteration(long_video):
    info = probe(long_video)
    assert (info.frames, info.fps, info.height, info.width) == (40, 25.0, 48, 64)
    assert info.seconds == pytest.approx(1.6)
    assert numbers_of(np.stack(list(iter_frames(long_video)))) == list(range(40))
    assert numbers_of(np.stack(list(iter_frames(long_video, 5, 9)))) == [5, 6, 7, 8]
    assert count_frames(long_video) == 40
    assert count_frames(long_video, 0.4, 0.8) == 10


@pytest.mark.parametrize("first", [0, 1, 11, 12, 13, 29, 35])
def test_read_clip_hits_the_exact_frames(long_video, first):
    clip = read_clip(long_video, start=first / 25, frames=5)
    assert numbers_of(clip) == list(range(first, first + 5))
    whole = np.stack(list(iter_frames(long_video, first, first + 5)))
    np.testing.assert_array_equal(clip, whole)


def test_read_clip_resamples_and_repeats_the_last_frame(long_video):
    assert numbers_of(read_clip(long_video, start=0.2, frames=4, fps=12.5)) == [5, 7, 9, 11]
    assert numbers_of(read_clip(long_video, start=0.0, frames=4, fps=50)) == [0, 0, 1, 1]
    assert numbers_of(read_clip(long_video, start=1.52, frames=4)) == [38, 39, 39, 39]
    assert read_clip(long_video, start=0, frames=3, size=(24, 32)).shape == (3, 24, 32, 3)


def test_bytes_and_remuxed_bytes_read_like_the_file(long_video):
    data = long_video.read_bytes()
    assert numbers_of(read_clip(data, start=0.6, frames=3)) == [15, 16, 17]
    part, start, _, seconds = remux(long_video, 0.6, 1.0)
    assert len(part) < len(data)
    assert 0 <= start <= 0.5
    clip = read_clip(part, start=start, frames=10)
    np.testing.assert_array_equal(clip, read_clip(long_video, start=0.6, frames=10))
    assert seconds >= 0.5
    assert remux(long_video, 0.6, 1.0)[0] == part


def broken_files(folder, good):
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    (folder / "header_cut.mp4").write_bytes(good.read_bytes()[:600])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:  # A stream without a single frame.
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 64, 48
        out.start_encoding()
    (folder / "no_frames.mp4").write_bytes(buffer.getvalue())
    sound = folder / "sound.mp4"
    with av.open(str(sound), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return [folder / n for n in ("missing.mp4", "empty.mp4", "text.mp4", "header_cut.mp4",
                                 "no_frames.mp4", "sound.mp4")]  # fmt: skip


def test_broken_files_give_one_line_that_names_them(tmp_path, long_video):
    for path in broken_files(tmp_path, long_video):
        with pytest.raises(BrokenVideoError) as error:
            read_media(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        with pytest.raises(BrokenVideoError):
            read_clip(path, start=0, frames=1)


def test_a_file_that_is_cut_off_is_broken_not_short(tmp_path):
    good = write_video(tmp_path / "good.mp4", np.random.default_rng(0).integers(
        0, 255, (40, 48, 64, 3), np.uint8))  # fmt: skip
    data = good.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) // 2])  # The index is at the front, half of the frames gone.
    with pytest.raises(BrokenVideoError):
        list(iter_frames(cut))
    with pytest.raises(BrokenVideoError):
        count_frames(cut)


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (48, 64)])
def test_writer_keeps_any_size(tmp_path, size):
    video = np.full((3, *size, 3), 120, np.uint8)
    path = write_video(tmp_path / "v.mp4", video)
    back, fps = read_media(path)
    assert back.shape == video.shape and fps == 25
    assert np.abs(back.astype(int) - 120).max() <= 4


def test_writer_leaves_nothing_behind_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "v.mp4", fps=25) as writer:
        writer.write(np.zeros((16, 16, 3), np.uint8))
        raise RuntimeError
    with VideoWriter(tmp_path / "w.mp4", fps=25):
        pass
    assert os.listdir(tmp_path) == []


def test_grey_and_deep_video_and_images(tmp_path):
    for pixels, codec in (("gray", "ffv1"), ("gray16le", "ffv1"), ("yuv420p10le", "ffv1")):
        path = tmp_path / f"{pixels}.mkv"
        with av.open(str(path), "w") as out:
            stream = out.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
            for frame in numbered_frames(3, 48, 64):
                out.mux(
                    stream.encode(
                        av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format=pixels)
                    )
                )
            out.mux(stream.encode())
        assert numbers_of(read_media(path)[0]) == [0, 1, 2], pixels
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(48, 0)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    video, _ = read_media(tmp_path / "deep.png")
    assert video.shape == (1, 48, 64, 3)
    np.testing.assert_allclose(video[0, 0, :, 1], ramp[0] / 257, atol=0.51)
    Image.new("LA", (8, 6)).save(tmp_path / "grey.png")
    assert read_media(tmp_path / "grey.png")[0].shape == (1, 6, 8, 3)
    (tmp_path / "no.jpg").write_text("no image")
    with pytest.raises(BrokenVideoError, match="no.jpg"):
        probe(tmp_path / "no.jpg")


def test_remote_paths_are_read_through_epath(long_video, monkeypatch):
    from etils import epath

    real = epath.Path

    def fake(path):
        return real(str(path).replace("gs://bucket", str(long_video.parent)))

    monkeypatch.setattr("pyratok_jax.io.remote.epath.Path", fake)
    monkeypatch.setattr("pyratok_jax.io.remote._unreachable", lambda scheme: "")
    assert numbers_of(read_clip("gs://bucket/long.mp4", start=0.6, frames=2)) == [15, 16]
    with pytest.raises(BrokenVideoError) as error:
        probe("gs://bucket/missing.mp4")
    assert error.value.transient


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv"])
def test_a_span_shorter_than_a_frame_holds_the_frame_that_is_shown(tmp_path, suffix):
    """12 frames of 0.04 s: within the first, a middle and the last one, and behind them."""
    path = tmp_path / f"v.{suffix}"
    write_video(path, numbered_frames(12, 32, 32))
    spans = {(0.0, 1e-6): 0, (0.0, 5e-4): 0, (0.121, 0.122): 3, (0.4405, 0.442): 11,
             (0.478, 0.4785): 11}  # fmt: skip
    for (start, end), number in spans.items():
        assert span_times(path, start, end) == pytest.approx([number / 25], abs=1e-3)
        assert count_frames(path, start, end) == 1
    with pytest.raises(BrokenVideoError, match="no frame between"):
        span_times(path, 0.49, 0.5)
