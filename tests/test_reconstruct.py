"""The command that reconstructs videos, on a tiny tokenizer of random weights."""

import contextlib
import json
import os

import numpy as np
import pytest
from PIL import Image

from pyratok_jax import decode_tokens, export_tokens, reconstruct, reconstruction
from pyratok_jax.data.padding import ClipSizes
from pyratok_jax.data.video.files import BrokenVideoError, iter_frames, probe
from pyratok_jax.data.video.writer import VideoWriter
from pyratok_jax.errors import EXIT_PARTIAL, UserError
from pyratok_jax.metrics import image as metrics
from pyratok_jax.metrics.rate import token_count
from pyratok_jax.reconstruction import Reconstructor, resized_frames
from pyratok_jax.tokens.blocks import WindowJoiner, cut_tiles
from tests.data.synthetic import numbered_frames, read_media, write_video
from tests.gcs_server import upload
from tests.tiny_tokenizer import GRIDS, tiny_tokenizer
from tests.tokens.tiny import PixelTokenizer


@pytest.fixture(autouse=True)
def tokenizer(monkeypatch):
    """What `--checkpoint` stands for in these tests."""
    loaded = tiny_tokenizer()
    monkeypatch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda path: loaded)
    return loaded


def run(source, output, *more):
    """The command with windows of 5 frames: few shapes, few compilations."""
    words = ["--checkpoint", "x", "--input", str(source), "--output", str(output)]
    return reconstruct.main([*words, "--lpips", "none", "--window", "5", *more])


def expected(tokenizer, video, window=5):
    """The reconstruction window by window, by the tokenizer alone."""
    parts, ids = [], []
    for start in range(0, len(video), window):
        clip = video[start : start + window]
        padded, padding = ClipSizes(4, 16).pad(clip)
        ids.append(tokenizer.encode_padded(padded[None]))
        parts.append(padding.crop(tokenizer.decode_padded(ids[-1])[0]))
    return np.concatenate(parts), ids


def test_a_long_odd_sized_video(tmp_path, tokenizer):
    source = write_video(tmp_path / "in" / "clip.mp4", numbered_frames(12, 11, 27), fps=12.5)
    video, _ = read_media(source)
    assert run(source, tmp_path / "out", "--crf", "0") == 0
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    wanted, ids = expected(tokenizer, video)

    # 5 + 5 + 2 frames, the last padded to 5; sides padded to 16 and 32.
    tokens = 3 * token_count([(1 + 4 // dt, 16 // ds, 32 // ds) for dt, ds in GRIDS])
    assert result["tokens"] == tokens == sum(level.size for part in ids for level in part)
    assert result["bpp"] == pytest.approx(6 * tokens / (12 * 11 * 27))
    assert (result["frames"], result["size"], result["window"]) == (12, [11, 27], 5)
    assert result["seconds"] > 0 and result["video_seconds"] == pytest.approx(12 / 12.5)
    for level in range(4):
        used = np.unique(np.concatenate([part[level].reshape(-1) for part in ids]))
        assert result["utilisation"][level] == len(used) / 64
    measured = metrics.quality([video], [wanted])
    assert {key: result[key] for key in measured} == pytest.approx(measured)
    assert result["lpips"] is None

    shown, fps = read_media(tmp_path / "out" / "clip_reconstruction.mp4")
    assert shown.shape == video.shape and fps == 12.5
    assert np.abs(shown.astype(int) - wanted).mean() < 1
    beside = probe(tmp_path / "out" / "clip_side_by_side.mp4")
    assert (beside.frames, beside.height, beside.width) == (12, 12, 3 * 27 + 2 * 4 + 1)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "clip_reconstruction.mp4",
        "clip_side_by_side.mp4",
        "metrics.json",
    ]


def test_a_video_streamed_as_one_clip(tmp_path, tokenizer, frames=14):
    """Segments of 5, 4, 4 ... frames give what the whole clip gives: no seams, fewer tokens."""
    source = write_video(tmp_path / "clip.mp4", numbered_frames(frames, 16, 27), fps=12.5)
    video, _ = read_media(source)
    assert run(source, tmp_path / "out", "--crf", "0", "--stream-beyond", "13") == 0
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    wanted, ids = expected(tokenizer, video, window=17)
    said = result["videos"][0]
    assert (said["streamed"], said["windows"], said["frames"]) == (True, 4, frames)
    assert result["tokens"] == sum(level.size for level in ids[0])
    measured = metrics.quality([video], [wanted])
    assert {key: result[key] for key in measured} == pytest.approx(measured, rel=1e-3)
    shown, _ = read_media(tmp_path / "out" / "clip_reconstruction.mp4")
    assert np.abs(shown.astype(int) - wanted).mean() < 1


def test_streamed_tiles_are_each_one_clip(tmp_path, tokenizer):
    """Four tiles, 14 frames in segments of 5, 4, 4 and 1: as if each had been encoded at once."""
    source = write_video(tmp_path / "clip.mp4", numbered_frames(14, 24, 27), fps=12.5)
    video, _ = read_media(source)
    cut = ("--tile", "16", "--overlap", "4", "--stream-beyond", "13")
    assert run(source, tmp_path / "out", *cut) == 0
    said = json.loads((tmp_path / "out" / "metrics.json").read_text())["videos"][0]
    joiner, tokens = WindowJoiner(*video.shape[:3]), 0
    for tile in cut_tiles(video, 16, 4):
        found, ids = expected(tokenizer, tile.frames, window=17)
        joiner.add(found, tile.top, tile.left, 4)
        tokens += sum(level.size for level in ids[0])
    assert (said["streamed"], said["tile"], said["windows"]) == (True, 16, 4)
    assert said["tokens"] == tokens
    measured = metrics.quality([video], [joiner.frames()])
    assert {key: said[key] for key in measured} == pytest.approx(measured, rel=1e-3)


def test_short_videos_are_not_streamed(tmp_path):
    source = write_video(tmp_path / "clip.mp4", numbered_frames(9, 16, 16))
    assert run(source, tmp_path / "out", "--stream-beyond", "9") == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["videos"][0]["windows"] == 2


def test_one_frame_video_and_one_pixel_video(tmp_path):
    for name, video in (("one", numbered_frames(1, 16, 32)), ("dot", np.full((3, 1, 1, 3), 9))):
        source = write_video(tmp_path / f"{name}.mp4", video.astype(np.uint8))
        assert run(source, tmp_path / name) == 0
        result = json.loads((tmp_path / name / "metrics.json").read_text())
        assert result["frames"] == len(video) and result["size"] == list(video.shape[1:3])
        shown = probe(tmp_path / name / f"{name}_reconstruction.mp4")
        assert (shown.height, shown.width) == video.shape[1:3]
        assert len(list(iter_frames(tmp_path / name / f"{name}_reconstruction.mp4"))) == len(video)
    assert result["ssim"] is None and result["psnr"] > 0


def test_a_folder_in_a_bucket_is_reconstructed_into_another(bucket, tmp_path):
    source = write_video(tmp_path / "in" / "clip.mp4", numbered_frames(5, 16, 16))
    (source.parent / "bad.mp4").write_text("no video")
    upload(bucket, source.parent, "in")
    assert run("gs://bucket/in", "gs://bucket/out") == EXIT_PARTIAL
    assert run(source.parent, tmp_path / "out") == EXIT_PARTIAL
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    written = [name for name in bucket.names() if name.startswith("out/")]
    assert written == [f"out/{name}" for name in names]
    for name in names[:2]:
        assert bucket.objects[f"out/{name}"][0] == (tmp_path / "out" / name).read_bytes()
    found = json.loads(bucket.objects["out/metrics.json"][0])
    assert found["videos"][0]["outputs"] == [f"gs://bucket/out/{name}" for name in names[:2]]
    for _ in range(2):  # What the first left below the inputs is no input of the second.
        assert run("gs://bucket/in", "gs://bucket/in/results") == EXIT_PARTIAL
    again = json.loads(bucket.objects["in/results/metrics.json"][0])
    assert [video["input"] for video in again["videos"]] == ["gs://bucket/in/clip.mp4"]
    with pytest.raises(UserError, match="no bucket other"):
        run(source, "gs://other/out")


def test_what_is_finished_is_uploaded_before_the_next(bucket, tmp_path, monkeypatch):
    for number in range(2):
        write_video(tmp_path / "in" / f"{number}.mp4", numbered_frames(5, 16, 16))
    real, seen = Reconstructor.run, []

    def second_is_interrupted(*arguments, **options):
        seen.append([name for name in bucket.names() if name.startswith("two/")])
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(Reconstructor, "run", second_is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "in", "gs://bucket/two")
    first = ["0_reconstruction.mp4", "0_side_by_side.mp4", "metrics.json"]
    assert seen == [[], [f"two/{name}" for name in first]]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_gives_pictures(tmp_path, tokenizer, suffix):
    frame = numbered_frames(1, 15, 29)[0]
    Image.fromarray(frame).save(tmp_path / f"photo.{suffix}")
    assert run(tmp_path / f"photo.{suffix}", tmp_path / "out") == 0
    video, _ = read_media(tmp_path / f"photo.{suffix}")
    wanted, _ = expected(tokenizer, video)
    shown = np.asarray(Image.open(tmp_path / "out" / "photo_reconstruction.png"))
    np.testing.assert_array_equal(shown, wanted[0])  # Written without loss.
    beside = np.asarray(Image.open(tmp_path / "out" / "photo_side_by_side.png"))
    np.testing.assert_array_equal(beside[:15, :29], video[0])
    np.testing.assert_array_equal(beside[:15, 33:62], wanted[0])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["frames"] == 1


def test_a_folder_with_broken_files_and_equal_names(tmp_path, capsys):
    folder, output = tmp_path / "in", tmp_path / "in" / "results"
    frames = numbered_frames(3, 16, 32)
    write_video(folder / "a.mp4", frames)
    Image.fromarray(frames[0]).save(folder / "a.png")
    write_video(folder / "sub" / "a.mp4", frames)
    (folder / "text.mp4").write_text("not a video")
    good = write_video(tmp_path / "long.mp4", numbered_frames(30, 16, 32)).read_bytes()
    (folder / "cut.mkv").write_bytes(good[: len(good) * 2 // 3])
    assert run(folder, output) == EXIT_PARTIAL
    said = capsys.readouterr().out
    assert "2 of 5 inputs were skipped" in said and "text.mp4" in said and "cut.mkv" in said
    result = json.loads((output / "metrics.json").read_text())
    assert sorted(entry["input"].rpartition("/")[2] for entry in result["skipped"]) == [
        "cut.mkv",
        "text.mp4",
    ]
    assert len(result["videos"]) == 3 and result["frames"] == 7
    # What was decoded of the video that is cut off is not counted.
    assert sum(level["tokens"] for level in result["levels"]) == result["tokens"]
    written = {str(p.relative_to(output)) for p in output.rglob("*") if p.is_file()}
    stems = ("a.mp4", "a.png", "sub/a")
    assert written == {"metrics.json"} | {
        f"{stem}_{kind}.{'png' if stem == 'a.png' else 'mp4'}"
        for stem in stems
        for kind in ("reconstruction", "side_by_side")
    }
    # A second run does not take its own results for inputs.
    assert run(folder, output) == EXIT_PARTIAL
    assert len(json.loads((output / "metrics.json").read_text())["videos"]) == 3


def test_means_over_videos_of_unequal_sizes(tmp_path):
    write_video(tmp_path / "in" / "a.mp4", numbered_frames(5, 16, 32))
    write_video(tmp_path / "in" / "b.mp4", numbered_frames(2, 13, 20))
    assert run(tmp_path / "in", tmp_path / "out") == 0
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    a, b = result["videos"]
    assert result["psnr"] == pytest.approx((a["psnr"] + b["psnr"]) / 2)
    pixels = 5 * 16 * 32 + 2 * 13 * 20
    assert result["bpp"] == pytest.approx(6 * (a["tokens"] + b["tokens"]) / pixels)
    assert result["size"] is None


def test_captions_reach_the_tokenizer(tmp_path, tokenizer, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(tokenizer, "embed", lambda captions: asked.extend(captions))
    write_video(tmp_path / "in" / "a.mp4", numbered_frames(1, 16, 32))
    (tmp_path / "in" / "a.txt").write_text("its own words\n")
    run(tmp_path / "in", tmp_path / "out")
    run(tmp_path / "in", tmp_path / "out", "--caption", "other words")
    assert [caption for caption in asked if caption] == ["its own words", "other words"]
    asked.clear()
    for more in ((), ("--caption", "")):
        run(tmp_path / "in" / "a.mp4", tmp_path / "out", *more)
    assert [caption for caption in asked if caption] == ["its own words"]
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["videos"][0]["caption"] is None
    assert "no language model" in capsys.readouterr().out


def test_memory_does_not_grow_with_the_length(tmp_path, tokenizer, monkeypatch):
    """No array that the tokenizer sees, and no stack of frames, is longer than the window."""
    lengths = []
    encode = tokenizer.encode_padded
    monkeypatch.setattr(
        tokenizer, "encode_padded", lambda v, text: lengths.append(v.shape[1]) or encode(v, text)
    )
    with VideoWriter(tmp_path / "long.mp4", fps=25) as writer:
        for number in range(31):
            writer.write(np.full((16, 32, 3), number, np.uint8))
    run(tmp_path / "long.mp4", tmp_path / "out")
    assert lengths == [5] * 6 + [1]


def test_tiles_give_what_exported_tiles_decode_to(tmp_path, monkeypatch, capsys):
    tokenizer = PixelTokenizer()
    tokenizer.embed = lambda captions: None
    monkeypatch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda path: tokenizer)
    source = write_video(tmp_path / "in" / "clip.mp4", numbered_frames(7, 40, 56))
    cut = ("--tile", "32", "--overlap", "8")
    given = ["--checkpoint", "0", "--input", str(source.parent), "--window", "5", *cut]
    assert export_tokens.main([*given, "--output", str(tmp_path / "tokens")]) == 0
    given = ["--checkpoint", "0", "--input", str(tmp_path / "tokens")]
    assert decode_tokens.main([*given, "--output", str(tmp_path / "decoded")]) == 0
    (decoded,) = (path.read_bytes() for path in (tmp_path / "decoded").iterdir())

    def written(output, *options):
        assert run(source, tmp_path / output, *options) == 0
        video = json.loads((tmp_path / output / "metrics.json").read_text())["videos"][0]
        return video, (tmp_path / output / "clip_reconstruction.mp4").read_bytes()

    capsys.readouterr()
    tiled, whole = written("tiled", *cut), written("whole")
    assert tiled[1] == decoded != whole[1]
    # Two windows of 2 x 2 tiles of 32x32, all of their tokens counted, against frames of 48x64.
    per_tile = token_count([(1 + 4 // dt, 32 // ds, 32 // ds) for dt, ds in GRIDS])
    assert tiled[0]["tokens"] == 2 * 4 * per_tile and tiled[0]["tile"] == 32
    assert whole[0]["tile"] == 0
    assert "encoded in tiles" not in capsys.readouterr().out
    # The same of itself where a window is too large.
    monkeypatch.setattr(reconstruction, "LARGE", 5 * 40 * 56 - 1)
    monkeypatch.setattr(reconstruction, "TILES", reconstruction.Tiling(32, 8))
    assert written("large")[1] == decoded
    assert "encoded in tiles of 32 that share 8 pixels" in capsys.readouterr().out
    assert written("forced", "--tile", "0")[1] == whole[1]
    assert "GB of memory" in capsys.readouterr().out
    with pytest.raises(UserError, match="at most half a tile"):
        run(source, tmp_path / "x", "--tile", "32", "--overlap", "17")


@pytest.mark.parametrize("window", ["0", "4", "16"])
def test_a_window_that_is_not_4k_plus_1_is_refused(tmp_path, window):
    source = write_video(tmp_path / "a.mp4", numbered_frames(2, 16, 32))
    with pytest.raises(UserError, match="4k"):
        run(source, tmp_path / "out", "--window", window)
    assert not (tmp_path / "out").exists()


def test_the_built_in_clips_are_read_by_their_times(tmp_path):
    from pyratok_jax.reconstruction import _frames, find_jobs

    jobs = find_jobs("builtin:demo-heldout", tmp_path)
    wall = next(job for job in jobs if job.name == "bikes-wall")
    info = probe(wall.record.media)
    count = sum(1 for _ in _frames(wall))
    assert abs(count - (9.68 - 7.48) * info.fps) <= 1


def test_outputs_of_a_folder_have_different_names_that_fit(tmp_path):
    from pyratok_jax.io.atomic import atomic_path
    from pyratok_jax.reconstruction import find_jobs, output_paths

    names = [
        "a.mp4", "a.mkv", "a.mp4.mov", "_a.mp4.avi", "a [1].png", "x" * 251 + ".mp4",
        "x" * 250 + "y.mp4", "\u00e9" * 125 + ".mp4", "b" * 200 + ".mp4", "b" * 200 + ".mkv",
        os.fsdecode(b"latin\xe9.mp4"),
    ]  # fmt: skip
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for folder in (tmp_path / "in", tmp_path / "in" / "sub"):
        for name in names:
            (folder / name).touch()
    jobs = find_jobs(str(tmp_path / "in"), tmp_path / "out")
    paths = [path for job in jobs for path in output_paths(job, tmp_path / "out")]
    assert len(set(paths)) == len(paths) == 4 * len(names)
    for path in paths:
        with atomic_path(path) as scratch:
            scratch.touch()
    assert (tmp_path / "out" / "a [1]_reconstruction.png").exists()
    assert (tmp_path / "out" / "sub" / "a.mkv_side_by_side.mp4").exists()


@pytest.mark.parametrize("shape", [(30, 47), (47, 30), (9, 9)])
def test_frames_are_resized_as_by_the_released_code(shape):
    import torch
    import torch.nn.functional as F

    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    size = (32, 64) if shape[1] > shape[0] else (64, 32)
    planes = torch.from_numpy(frame).float().permute(2, 0, 1)[None]
    expected = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    (found,) = resized_frames([frame], (32, 64))
    assert found.dtype == np.uint8 and found.shape == (*size, 3)
    assert np.abs(found - expected[0].permute(1, 2, 0).numpy()).max() <= 0.501


def test_resized_videos_are_compared_with_resized_frames(tmp_path):
    write_video(tmp_path / "clip.mp4", numbered_frames(5, 24, 40))
    assert run(tmp_path / "clip.mp4", tmp_path / "out", "--resize", "16x32") == 0
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    assert report["size"] == [16, 32] and report["resize"] == [16, 32]
    with pytest.raises(SystemExit):
        run(tmp_path / "clip.mp4", tmp_path / "no", "--resize", "16")


def test_fewer_frames_and_a_shorter_side(tmp_path, capfd):
    source = write_video(tmp_path / "in" / "clip.mp4", numbered_frames(20, 48, 64), fps=20)
    assert run(source, tmp_path / "out", "--fps", "10", "--short-side", "24") == 0
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (result["frames"], result["size"]) == (10, [24, 32])
    assert result["video_seconds"] == pytest.approx(1.0)
    info = probe(result["videos"][0]["outputs"][0])
    assert (info.frames, info.height, info.width, info.fps) == (10, 24, 32, 10)
    # The line for a file: nothing was left over.
    assert "10/10" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile", "32", "--overlap", "17"], "at most half a tile"),
        (["--tile", "-1"], "at most half a tile"),
        (["--overlap", "8"], "--overlap goes with --tile"),
        (["--stream-beyond", "-1"], "expected frames, from 0"),
        (["--crf", "52"], "within 0"),
    ],
)
def test_options_are_refused_before_anything_is_loaded(tmp_path, monkeypatch, options, message):
    source = write_video(tmp_path / "a.mp4", numbered_frames(2, 16, 32))
    monkeypatch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda path: pytest.fail("loaded"))
    with pytest.raises(UserError, match=message):
        run(source, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--lpips-every", "0"], ["--fps", "-1"], ["--fps", "nan"]])
def test_impossible_options_are_refused(tmp_path, option):
    with pytest.raises(UserError, match="must be at least"):
        run(tmp_path, tmp_path / "out", *option)


def test_sampled_lpips_looks_at_every_nth_frame_of_all_windows():
    seen = []

    class Network:
        def __call__(self, a, b):
            seen.extend(np.asarray(a)[:, 0, 0, 0].round(3).tolist())
            return np.zeros(len(a))

    shades = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    frames = np.broadcast_to(shades, (10, 40, 40, 3))
    measured = metrics.Quality({"vgg": Network()}, lpips_every=4)
    for part in (frames[:5], frames[5:7], frames[7:]):
        measured.add(part, part)
    assert measured.result()["lpips"] == 0.0
    assert len(set(seen)) == 3  # Frames 0, 4 and 8.


def test_videos_that_h264_does_not_hold(tmp_path):
    """Three times 6000 pixels are shrunk; 17,000 are refused."""
    from pyratok_jax.data.sources.records import ClipRecord
    from pyratok_jax.reconstruction import Job, _Outputs, output_paths

    for width in (6000, 17_000):
        job = Job(ClipRecord("a.mp4", "a.mp4"), f"wide{width}")
        paths, clip = output_paths(job, tmp_path), np.zeros((1, 16, width, 3), np.uint8)
        refused = pytest.raises(BrokenVideoError, match="at most 16384 a side")
        with (
            refused if width > 16384 else contextlib.nullcontext(),
            _Outputs(job, paths, 25.0, 12) as outputs,
        ):
            outputs.write(clip, clip)
        assert [path.exists() for path in paths] == [width == 6000] * 2
    assert probe(tmp_path / "wide6000_side_by_side.mp4").width <= 16384
