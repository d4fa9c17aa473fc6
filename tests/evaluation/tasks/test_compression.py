"""Rate-distortion: real codecs, raw videos, the task from end to end."""

import json

import av
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pyratok_jax import evaluate
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.clips import raw_videos, read_raw
from pyratok_jax.evaluation.models import codecs
from pyratok_jax.evaluation.models.reconstructors import BaselineReconstructor
from pyratok_jax.evaluation.task import BrokenItemError
from pyratok_jax.evaluation.tasks.compression import Compression
from pyratok_jax.metrics.image import frame_errors, psnr_of
from pyratok_jax.tokens.coding import pack
from tests.data.synthetic import write_video
from tests.tokens.tiny import PixelTokenizer


def moving(rng, frames=9, height=64, width=64):
    """Smooth textures that move."""
    still = gaussian_filter(rng.standard_normal((height, width, 3)), (3, 3, 0)) * 400 + 128
    grain = rng.normal(0, 3, (frames, height, width, 3))
    moved = np.stack([np.roll(still, (n, 2 * n), (0, 1)) for n in range(frames)])
    return np.clip(moved + grain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", list(codecs.available()))
def test_codecs_trade_rate_for_quality(name, rng):
    codec, video = codecs.available()[name], moving(rng)
    ceiling = psnr_of(frame_errors(video, codecs.converted(video))).mean()
    found = []
    for crf in (10, 35, codec.worst):
        coded = codecs.encode(codec, video, 25.0, crf)
        assert coded.bits == 8 * sum(len(packet) for packet in coded.packets) and coded.crf == crf
        assert codecs.encode(codec, video, 25.0, crf).bits == pytest.approx(coded.bits, rel=0.01)
        decoded = codecs.decode(codec, coded, video.shape)
        found.append((coded.bits, psnr_of(frame_errors(video, decoded)).mean()))
    assert found[0][0] > 2 * found[1][0] > 2 * found[2][0]
    assert ceiling > found[0][1] > found[1][1] > found[2][1] > 15
    # Nothing about the encoder itself is counted: the smallest file would hold little else.
    text = b"".join(codecs.encode(codec, video, 25.0, codec.worst).packets)
    assert b"x26" not in text and b"options" not in text


def test_odd_sizes_are_coded_and_cropped(rng):
    codec, video = codecs.available()["x264"], moving(rng, 3, 65, 71)
    decoded = codecs.decode(codec, codecs.encode(codec, video, 25.0, 10), video.shape)
    assert decoded.shape == video.shape
    ceiling = psnr_of(frame_errors(video, codecs.converted(video))).mean()
    assert ceiling > 28 and abs(psnr_of(frame_errors(video, decoded)).mean() - ceiling) < 1


def test_the_rate_is_matched_by_bisection(rng):
    codec, video = codecs.available()["x264"], moving(rng)

    def code(crf):
        return codecs.encode(codec, video, 25.0, crf)

    target = code(27.3).bits
    assert codecs.match_rate(code, codec, target).bits == pytest.approx(target, rel=0.03)
    assert codecs.match_rate(code, codec, 8).crf == codec.worst
    assert codecs.match_rate(code, codec, 1e9).crf == codecs.BEST
    calls = []

    def known(crf):
        calls.append(crf)
        return codecs.CodedVideo((), round(1e6 * 2 ** (-crf / 6)), crf)

    best = codecs.match_rate(known, codec, 1e6 * 2 ** (-30.04 / 6))
    assert best.crf == pytest.approx(30.0, abs=0.11) and len(calls) <= 11


def test_unknown_codecs_are_refused(monkeypatch):
    with pytest.raises(UserError, match="vp9 cannot be used, it is unknown"):
        codecs.choose("x264,vp9")
    monkeypatch.setattr(codecs, "available", lambda: {"x264": None})
    with pytest.raises(UserError, match="x265 cannot be used, PyAV's FFmpeg lacks it"):
        codecs.choose("x265")
    for changes in ({"crfs": "0,20"}, {"crfs": "a"}, {"lpips": "squeeze"}, {"frames": 0}):
        with pytest.raises(UserError, match="--set"):
            Compression("x", **{"codecs": "x264"} | changes).check()


def write_raw(path, video):
    """As MCL-JCV: planes of luma, then chroma at half the size, frame by frame."""
    data = b""
    for frame in video:
        picture = av.VideoFrame.from_ndarray(frame, "rgb24")
        data += picture.reformat(format="yuv420p", dst_colorspace="ITU709").to_ndarray().tobytes()
    path.write_bytes(data)


def test_raw_videos_are_read_from_the_middle(tmp_path, rng):
    video = np.repeat(moving(rng, 1, 48, 64), 9, axis=0)
    video[2:7] = np.clip(video[2:7] * 0.5 + 20 * np.arange(5)[:, None, None, None], 0, 255)
    write_raw(tmp_path / "videoSRC01_64x48_24.yuv", video)
    (tmp_path / "nameless.yuv").write_bytes(b"123")
    (tmp_path / "cut_64x48_30fps_420.yuv").write_bytes(b"123")
    cut, nameless, whole = raw_videos(tmp_path)
    assert (whole.width, whole.height, whole.fps, whole.frames) == (64, 48, 24.0, 9)
    assert (cut.width, cut.fps) == (64, 30.0)
    clip = read_raw(whole, 5, 0)
    assert psnr_of(frame_errors(video[2:7], clip)).min() > 30
    assert read_raw(whole, 50, 32).shape == (9, 32, 32, 3)
    with pytest.raises(Exception, match="NAME_1920x1080_30.yuv"):
        read_raw(nameless, 5, 0)
    with pytest.raises(Exception, match="smaller than one frame"):
        read_raw(cut, 5, 0)


@pytest.mark.parametrize(
    "name",
    [
        "Beauty_3840x2160_120fps_420_10bit_YUV.yuv", "a_64x48_30_10bits.yuv", "a_64x48_30_p010.yuv",
        "a_64x48_30_yuv420p10le.yuv", "a_64x48_24fps_422.yuv", "a_64x48_30_444p.yuv",
        "a_10-bit_64x48_30.yuv", "a_64x48_30_4:2:2_8bit.yuv", "a_64x48_444.yuv",
    ],
)  # fmt: skip
def test_raw_videos_of_other_samples_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(bytes(64 * 48 * 3))
    (video,) = raw_videos(tmp_path)
    assert (video.width, video.height) == (0, 0)
    with pytest.raises(BrokenItemError, match="expected 8 bits 4:2:0"):
        read_raw(video, 1, 0)


@pytest.mark.parametrize(
    "name", ["Beauty_64x48_120fps_420_8bit_YUV.yuv", "b_422_64x48_50.yuv", "c_64x48_444fps.yuv"]
)
def test_raw_videos_have_whole_frames(tmp_path, name):
    (tmp_path / name).write_bytes(bytes(64 * 48 * 3))
    (video,) = raw_videos(tmp_path)
    assert read_raw(video, 5, 0).shape == (2, 48, 64, 3)
    (tmp_path / name).write_bytes(bytes(64 * 48 * 3 + 64))
    with pytest.raises(BrokenItemError, match="64 bytes are left over after 2 frames"):
        read_raw(video, 5, 0)


SETTINGS = ("--set=lpips=none", "--set=side=64", "--set=frames=5", "--set=crfs=15,30,45,51")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(2):
        write_video(folder / f"clip{i}.mp4", moving(np.random.default_rng(i), 7, 64, 80))
    return folder


def run(data, output, *arguments):
    evaluate.main(["--task=compression", f"--data={data}", f"--output={output}", *arguments])
    return json.loads((output / "results.json").read_text())


def test_two_checkpoints_beside_all_codecs(videos, tmp_path, monkeypatch):
    tokenizers = {"small": PixelTokenizer(0, 6), "large": PixelTokenizer(1, 8)}
    monkeypatch.setattr(
        "pyratok_jax.tokenizer.load_tokenizer", lambda spec: tokenizers[spec.rpartition("/")[2]]
    )
    results = run(videos, tmp_path, "--checkpoint=runs/small", "--checkpoint=runs/large", *SETTINGS)
    metrics, rows = results["metrics"], results["metrics"]["rows"]
    assert results["broken"] == [] and results["checkpoint"]["name"] == "runs/small, runs/large"
    assert results["checkpoint"]["hash"] == "tiny-0-6+tiny-1-8"
    # 5 frames of 64 x 64: grids 5x4x4, 3x4x4, 2x4x4 and 2x8x8 of cells of 16 and 8 pixels.
    tokens = 5 * 16 + 3 * 16 + 2 * 16 + 2 * 64
    by_key = {tuple(row["key"]): row for row in rows}
    assert by_key["tokens", "small"]["bpp"]["raw"] == pytest.approx(tokens * 6 / (5 * 64 * 64))
    assert by_key["tokens", "large"]["bpp"]["raw"] == pytest.approx(tokens * 8 / (5 * 64 * 64))
    assert results["bpp"] == pytest.approx(tokens * 6 / (5 * 64 * 64))
    assert metrics["psnr"] == by_key["tokens", "small"]["psnr"]
    for codec in codecs.available():
        points = [by_key["codec", codec, crf] for crf in ("15", "30", "45", "51")]
        rates = [point["bpp"]["raw"] for point in points]
        assert rates == sorted(rates, reverse=True)
        matched = by_key["matched", codec, "large", "raw"]
        assert matched["bpp"]["raw"] == pytest.approx(
            by_key["tokens", "large"]["bpp"]["raw"], rel=1
        )
        assert matched["psnr"] > by_key["tokens", "large"]["psnr"]
        assert codec not in metrics["bd_rate"][codec]
    assert -100 < metrics["bd_rate"]["x265"]["x264"] < 100
    text = (tmp_path / "row.md").read_text()
    assert "At equal rate" in text and "| small, raw tokens |" in text and "bpp coded" in text
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 1 and "data:image/png;base64" in page and "libx264" in page
    assert (tmp_path / "rate_distortion.png").read_bytes()[:4] == b"\x89PNG"


def test_entropy_coded_bits_are_those_of_the_coder(videos):
    task = Compression(str(videos), lpips="none", side=64, frames=5, codecs="x264", crfs="51")
    tokenizer = PixelTokenizer()
    model = task.join({"a": task.wrap(tokenizer)})
    part = task.evaluate_item(model, task.items()[0])
    first = part["measured"][0]
    ids = model.models["a"].reconstruct(task._clip(task.items()[0].content)[0], None).ids
    assert first["bits"]["coded"] == 8 * sum(len(pack(x, 6)) for x in ids)
    assert first["bits"]["raw"] == 6 * sum(x.size for x in ids) == part["clip"]["bits"]


def test_an_oracle_is_perfect_noise_is_not_and_shares_merge(videos, tmp_path, monkeypatch):
    known, encode = {}, codecs.encode

    def once(codec, video, fps, crf):
        # Encoders may differ by a few bytes from run to run; what is merged must not.
        key = (codec.encoder, video.tobytes(), crf)
        if key not in known:
            known[key] = encode(codec, video, fps, crf)
        return known[key]

    monkeypatch.setattr(codecs, "encode", once)
    arguments = (*SETTINGS, "--set=codecs=x264")
    best = run(videos, tmp_path / "a", "--checkpoint=oracle", *arguments)["metrics"]
    assert best["psnr"] == 100.0 and best["ssim"] == pytest.approx(1.0)
    worst = run(videos, tmp_path / "b", "--checkpoint=random", *arguments)["metrics"]
    assert 4.7 < worst["psnr"] < 10.8
    # Noise cannot be coded.
    assert worst["bpp_coded"] == pytest.approx(worst["bpp_raw"], rel=0.02)
    for shard in ("1/2", "0/2"):
        evaluate.main(
            ["--task=compression", f"--data={videos}", f"--output={tmp_path / 'c'}"]
            + ["--checkpoint=random", f"--shard={shard}", *arguments]
        )
    merged = json.loads((tmp_path / "c" / "results.json").read_text())["metrics"]
    assert merged == worst


def test_raw_videos_pictures_and_broken_files(tmp_path, rng):
    write_raw(tmp_path / "videoSRC01_80x64_24.yuv", moving(rng, 7, 64, 80))
    (tmp_path / "videoSRC02_80x64_24.yuv").write_bytes(b"1")
    arguments = (*SETTINGS, "--set=codecs=x264", "--checkpoint=oracle")
    results = run(tmp_path, tmp_path / "out", *arguments)
    assert results["items"] == {"total": 2, "evaluated": 1}
    assert "smaller than one frame" in results["broken"][0]["reason"]
    task = Compression("x", codecs="x264")
    from pyratok_jax.data.sources.records import ClipRecord

    with pytest.raises(Exception, match="still image"):
        task._clip(ClipRecord("a", "a.png"))


def test_checkpoints_are_told_apart_and_other_tasks_take_one(videos, tmp_path, monkeypatch):
    monkeypatch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda spec: PixelTokenizer())
    task = Compression(str(videos))
    assert list(evaluate.load_models(task, ["a/run", "b/run"]).models) == ["a/run", "b/run"]
    assert list(evaluate.load_models(task, ["a/one", "b/two"]).models) == ["one", "two"]
    with pytest.raises(UserError, match="the same folder twice"):
        evaluate.load_models(task, ["a/run", "a/run"])
    with pytest.raises(UserError, match="given 2 times; the task reconstruction takes one"):
        evaluate.main(
            ["--task=reconstruction", f"--data={videos}", f"--output={tmp_path}"]
            + ["--checkpoint=oracle", "--checkpoint=random", "--set=fvd=False"]
        )
    assert isinstance(
        evaluate.load_models(task, ["oracle"]).models["oracle"], BaselineReconstructor
    )
