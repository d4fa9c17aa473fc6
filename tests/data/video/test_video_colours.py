"""Colours as the stream states them, against the equations of ITU-R BT.601, 709 and 2020."""

import io

import av
import numpy as np
import pytest
from PIL import Image

from pyratok_jax.data.video.display import BACKGROUND
from pyratok_jax.data.video.files import (
    BrokenVideoError,
    iter_frames,
    probe,
    read_clip,
    read_image,
)
from pyratok_jax.data.video.writer import VideoWriter

# Luma weights of red and blue.
WEIGHTS = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}
CODES = {"601": 6, "709": 1, "2020": 9, "none": 2}
YUV = np.array([[120, 90, 160], [60, 150, 110], [200, 128, 128], [180, 110, 140]])


def rgb(yuv: np.ndarray, matrix: str, full: bool) -> np.ndarray:
    """8-bit RGB of 8-bit YCbCr, by the definitions."""
    red, blue = WEIGHTS[matrix]
    y, cb, cr = yuv.astype(float).T
    y = y / 255 if full else (y - 16) / 219
    cb, cr = ((c - 128) / (255 if full else 224) for c in (cb, cr))
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    g = (y - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.stack([r, g, b], -1) * 255, 0, 255)


def patches(height: int, width: int) -> np.ndarray:
    """Planes of yuv444p: four vertical stripes of one colour each."""
    return np.repeat(YUV, width // 4, axis=0).T[:, None].repeat(height, axis=1).astype(np.uint8)


def coloured(
    path, code, full, size=(48, 64), transfer=2, primaries=2, pixels="yuv444p", codec="ffv1"
):
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        context = stream.codec_context
        context.colorspace, context.color_range = code, 2 if full else 1
        context.color_trc, context.color_primaries = transfer, primaries
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(patches(*size), "yuv444p")
            frame.colorspace, frame.color_range = code, 2 if full else 1
            frame.color_trc, frame.color_primaries = transfer, primaries
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def stripes(frame: np.ndarray) -> np.ndarray:
    wide = frame.shape[1] // 4
    return np.stack([frame[4:-4, i * wide + 4 : (i + 1) * wide - 4].mean((0, 1)) for i in range(4)])


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", ["601", "709", "2020"])
def test_matrix_and_range_are_those_that_the_stream_states(tmp_path, matrix, full):
    path = coloured(tmp_path / "a.mkv", CODES[matrix], full)
    wanted = rgb(YUV, matrix, full)
    for frame in (next(iter_frames(path)), read_clip(path, start=0, frames=1, size=(24, 48))[0]):
        np.testing.assert_allclose(stripes(frame), wanted, atol=2.0)


@pytest.mark.parametrize(("size", "matrix"), [((48, 64), "601"), ((720, 1280), "709")])
def test_unstated_colours_are_taken_as_players_do(tmp_path, size, matrix):
    path = coloured(tmp_path / "a.mkv", CODES["none"], False, size)
    np.testing.assert_allclose(stripes(next(iter_frames(path))), rgb(YUV, matrix, False), atol=2.0)


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused_in_one_line(tmp_path, transfer, name):
    path = coloured(tmp_path / "a.mkv", CODES["2020"], False, transfer=transfer)
    for read in (probe, lambda p: list(iter_frames(p)), lambda p: read_clip(p, start=0, frames=1)):
        with pytest.raises(BrokenVideoError, match=rf"HDR \({name}\)") as error:
            read(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("stated", "name"),
    [("max-cll=1000,400", "light level data"), ("atc-sei=18", "HLG"), ("atc-sei=16", "PQ"),
     ("colorprim=bt709:transfer=bt709:colormatrix=bt709:max-cll=1000,400", None)],
)  # fmt: skip
def test_hdr_that_messages_in_the_pictures_alone_state_is_refused(tmp_path, stated, name):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx265", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p10le"
        stream.options = {"preset": "ultrafast", "x265-params": f"log-level=none:{stated}"}
        out.mux(stream.encode(av.VideoFrame(96, 64, "yuv420p10le")))
        out.mux(stream.encode())
    if name is None:  # It says that it is SDR.
        assert len(list(iter_frames(path))) == 1
        return
    for read in (lambda p: list(iter_frames(p)), lambda p: read_clip(p, start=0, frames=1)):
        with pytest.raises(BrokenVideoError, match=rf"HDR \({name}\)"):
            read(path)


@pytest.mark.parametrize(("primaries", "name"), [(9, "BT.2020"), (12, "Display P3")])
def test_a_wide_gamut_is_refused_in_one_line(tmp_path, primaries, name):
    path = coloured(tmp_path / "a.mkv", CODES["709"], False, primaries=primaries)
    for read in (probe, lambda p: list(iter_frames(p)), lambda p: read_clip(p, start=0, frames=1)):
        with pytest.raises(BrokenVideoError, match=rf"wide gamut \({name}\)"):
            read(path)


def transparent(height: int = 48, width: int = 64) -> np.ndarray:
    image = np.zeros((height, width, 4), np.uint8)
    image[..., 0] = 200
    image[..., 3] = np.linspace(0, 255, width).astype(np.uint8)
    return image


def over(image: np.ndarray) -> np.ndarray:
    alpha = image[..., 3:] / 255
    return image[..., :3] * alpha + BACKGROUND * (1 - alpha)


def test_transparent_videos_and_pictures_are_shown_over_the_background(tmp_path):
    image = transparent()
    with av.open(str(tmp_path / "a.mov"), "w") as out:
        stream = out.add_stream("qtrle", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "argb"
        frame = av.VideoFrame.from_ndarray(image, "rgba").reformat(format="argb")
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    Image.fromarray(image).save(tmp_path / "a.png")
    for shown in (next(iter_frames(tmp_path / "a.mov")), read_image(tmp_path / "a.png")):
        np.testing.assert_allclose(shown, over(image), atol=1.0)
    data = io.BytesIO()
    Image.fromarray(image).convert("P").save(data, "PNG", transparency=0)
    assert read_image(data.getvalue()).shape == (48, 64, 3)


def test_the_default_stream_is_shown_and_never_a_cover(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        streams = []
        for level, default in ((40, False), (200, True)):
            stream = out.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.disposition = av.stream.Disposition.default if default else 0
            streams.append((stream, level))
        for stream, level in streams:
            picture = np.full((48, 64, 3), level, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            out.mux(stream.encode())
    assert abs(int(next(iter_frames(path)).mean()) - 200) <= 2


def test_a_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as out:
        sound = out.add_stream("aac", rate=16000)
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        noise = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        noise.sample_rate = 16000
        out.mux(sound.encode(noise))
        out.mux(sound.encode())
        picture = np.full((48, 64, 3), 90, np.uint8)
        out.mux(cover.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(cover.encode())
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(BrokenVideoError, match="no video stream"):
        probe(path)


@pytest.mark.parametrize(("height", "width", "matrix"), [(720, 1280, 1), (64, 64, 6), (63, 65, 6)])
def test_written_files_say_their_colour_matrix_and_hold_it(tmp_path, height, width, matrix):
    """Players take BT.709 for HD; what they would guess otherwise differs between them."""
    frames = np.full((2, height, width, 3), (200, 40, 40), np.uint8)
    with VideoWriter(tmp_path / "flat.mp4", fps=2, crf=4, preset="ultrafast") as writer:
        for frame in frames:
            writer.write(frame)
    with av.open(str(tmp_path / "flat.mp4")) as opened:
        decoded = next(opened.decode(video=0))
    assert (int(decoded.colorspace), int(decoded.color_range)) == (matrix, 1)
    read = next(iter_frames(tmp_path / "flat.mp4"))
    assert np.abs(read.astype(int) - frames[0]).max() <= 3
