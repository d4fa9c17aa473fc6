"""What users get wrong: one clear line, exit code 2, and nothing left behind."""

import av
import numpy as np
import pytest
from PIL import Image

from pyratok_jax import reconstruct
from pyratok_jax.errors import run_cli
from tests.data.synthetic import numbered_frames, write_video
from tests.tiny_tokenizer import tiny_tokenizer


@pytest.fixture
def fake_checkpoint(monkeypatch):
    monkeypatch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda path: tiny_tokenizer())


def run(source, output, checkpoint="x"):
    """Exit code of the command."""
    words = ["--checkpoint", str(checkpoint), "--input", str(source), "--output", str(output)]
    with pytest.raises(SystemExit) as caught:
        run_cli(lambda: reconstruct.main([*words, "--lpips", "none", "--window", "5"]))
    return caught.value.code


def missing(folder):
    return folder / "nowhere.mp4"


def empty(folder):
    (folder / "empty.mp4").write_bytes(b"")
    return folder / "empty.mp4"


def text_renamed(folder):
    (folder / "text.mp4").write_text("these are words, not pictures\n" * 99)
    return folder / "text.mp4"


def truncated(folder):
    """Cut in the middle of its frames, its index being at the front."""
    data = write_video(folder / "whole.mp4", numbered_frames(40, 16, 32)).read_bytes()
    (folder / "whole.mp4").unlink()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    return folder / "cut.mp4"


def without_frames(folder):
    with av.open(str(folder / "zero.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 32, 32
    return folder / "zero.mp4"


def sound_only(folder):
    with av.open(str(folder / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return folder / "sound.mp4"


def picture_in_name_only(folder):
    (folder / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return folder / "photo.png"


def empty_folder(folder):
    return folder


def only_broken(folder):
    empty(folder), text_renamed(folder)
    return folder


MISTAKES = [
    missing, empty, text_renamed, truncated, without_frames, sound_only, picture_in_name_only,
    empty_folder, only_broken,
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_unusable_inputs(tmp_path, capfd, fake_checkpoint, mistake):
    (tmp_path / "in").mkdir()
    source = mistake(tmp_path / "in")
    assert run(source, tmp_path / "out") == 2
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and str(source) in said[0]
    assert len(said[0]) > len("error: ") + len(str(source)) + 20  # It says more than the name.
    assert not (tmp_path / "out").exists()


def write_lossless(path, pixels, pixel_format):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=25)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = pixel_format
        for frame in pixels:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, pixel_format)))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize("kind", ["gray", "gray16le", "rgb48le"])
def test_grey_and_16_bit_videos_are_read_in_8_bit_colour(tmp_path, fake_checkpoint, kind):
    ramp = np.linspace(0, 1, 32)[None, None].repeat(16, axis=1).repeat(3, axis=0)
    deep = np.rint(ramp * (255 if kind == "gray" else 65535))
    pixels = deep.astype(np.uint8 if kind == "gray" else np.uint16)
    if kind == "rgb48le":
        pixels = pixels[..., None].repeat(3, axis=-1)
        if "rgb48le" not in [f.name for f in av.Codec("ffv1", "w").video_formats or []]:
            Image.fromarray(pixels[0, ..., 0]).save(tmp_path / "deep.png")
            source = tmp_path / "deep.png"
        else:
            source = write_lossless(tmp_path / "deep.mkv", pixels, kind)
    else:
        source = write_lossless(tmp_path / "deep.mkv", pixels, kind)
    from tests.data.synthetic import read_media

    video, _ = read_media(source)
    wanted = np.rint(ramp[0] * 255)
    assert np.abs(video[0].astype(float) - wanted[..., None]).max() <= 2
    assert run(source, tmp_path / "out") == 0


def test_an_output_that_is_a_file(tmp_path, capfd, fake_checkpoint):
    source = write_video(tmp_path / "a.mp4", numbered_frames(1, 16, 32))
    (tmp_path / "out").write_text("mine")
    assert run(source, tmp_path / "out") == 2
    assert run(source, tmp_path / "out" / "below") == 2
    assert capfd.readouterr().err.count("error: --output") == 2
    assert (tmp_path / "out").read_text() == "mine"


def test_an_output_that_is_the_input_folder(tmp_path, capfd, fake_checkpoint):
    write_video(tmp_path / "a.mp4", numbered_frames(1, 16, 32))
    assert run(tmp_path, tmp_path) == 2
    assert "give another one" in capfd.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("what", ["missing", "file", "empty folder", "other folder"])
def test_a_checkpoint_that_is_none(tmp_path, capfd, what):
    source = write_video(tmp_path / "a.mp4", numbered_frames(1, 16, 32))
    path = tmp_path / "checkpoint"
    if what == "file":
        path.write_text("words")
    elif what != "missing":
        path.mkdir()
        if what == "other folder":
            (path / "checkpoints" / "7").mkdir(parents=True)
    assert run(source, tmp_path / "out", path) == 2
    said = capfd.readouterr().err
    assert said.count("error:") == 1 and str(path) in said
    assert not (tmp_path / "out").exists()
