"""The whole product on every family of VAEs: train, reconstruct, export, decode, evaluate.

Videos of 16 frames are longer than a window of any of the tiny VAEs here.
"""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx

from pyratok_jax import decode_tokens, evaluate, export_tokens, reconstruct, tokenizer
from pyratok_jax.checkpoints.working_folder import read_parameters
from pyratok_jax.data.video.files import iter_frames
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.models.features import TokenizerFeatures
from pyratok_jax.models import cogvideox, hunyuan_video, mochi, svd
from pyratok_jax.models.vae_families import config_to_dict, vae_family
from pyratok_jax.models.video_vae import build_vae
from pyratok_jax.nn.grids import grid_shape
from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.tasks.tokenizer import TokenizerTask
from tests.training.tiny import tiny_config, write_module

# One halving of the sides, and of time where the family has one: nothing here depends on more.
SIZES = {
    "cogvideox": cogvideox.CogVideoXConfig.small((4, 8), groups=2, time_levels=1),
    "hunyuan_video": hunyuan_video.HunyuanVideoConfig.small((4, 8), groups=2, time_levels=1),
    "mochi": mochi.tiny(
        encoder_widths=(32, 32), decoder_widths=(32, 32), layers=(0, 1, 0), time_strides=(3,)
    ),
    "svd": svd.SVDConfig.small((32, 32)),
}


def family_config(world, folder, vae):
    """Two steps with few losses, since each costs seconds of tracing, and without text."""
    module = build_vae(vae, rngs=nnx.Rngs(0))
    write_module(folder / "vae", vae_family(vae.family).kind, config_to_dict(vae), module)
    config = tiny_config(world, steps=2, log_every=2)
    config.model.backbone = str(folder / "vae")
    with config.ignore_type():
        config.model.tokenizer.grids = vae.default_grids
    config.model.tokenizer.text_guidance = False
    config.checkpoint.every = 2
    config.calibration.batches = 0
    config.evaluators = ()
    config.data.buckets = (f"{1 + vae.frame_step}x32x32",)
    for name in ("drift_dinov3", "retention", "autoregressive", "ssim", "entropy", "hierarchy",
                 "text", "text_codebook"):  # fmt: skip
        config.loss.weights[name] = 0.0
    return config


def trained(world, folder, vae):
    """A working folder after two steps, without the report of a training."""
    config, work = family_config(world, folder, vae), folder / "work"
    task = TokenizerTask(config)
    train(config, work, task, on_start=lambda _: task.describe(work))
    return work


def tokens_of(loaded, frames):
    """How many a window of that many frames has, once padded."""
    size = loaded.config.vae.window(frames), 32, 32
    return sum(math.prod(grid_shape(grid, *size)) for grid in loaded.config.grids)


# Those least like Wan in every run of the tests: clips of 3k+1 frames, and of any number.
@pytest.mark.usefixtures("no_tensorboard")
@pytest.mark.parametrize(
    "family",
    ["mochi", "svd", *(pytest.param(f, marks=pytest.mark.slow) for f in list(SIZES)[:2])],
)
def test_every_command_on_a_trained_tokenizer(family, world, tmp_path, monkeypatch):
    vae = SIZES[family]
    work, window = trained(world, tmp_path, vae), 1 + vae.frame_step
    loaded = tokenizer.load_tokenizer(work)
    config = loaded.config
    assert config.vae == vae and config.grids == vae.default_grids
    # Adapters have moved away from zero, and only the encoder has any.
    arrays = read_parameters(work, 2)
    moved = [name for name, x in arrays.items() if name.endswith("adapter.b") and np.any(x)]
    assert moved and all(name.startswith("tokenizer.vae.encoder.") for name in moved)

    # The commands share its compiled programs.
    monkeypatch.setattr(tokenizer, "load_tokenizer", lambda *_, **__: loaded)
    common = ["--checkpoint", str(work), "--input", str(world / "heldout")]
    with pytest.raises(UserError, match=f"the VAE {family} cannot stream clips exactly"):
        reconstruct.main([*common, "--output", str(tmp_path / "no"), "--stream-beyond", "2"])
    options = ["--window", str(window)]
    assert reconstruct.main(
        [*common, "--output", str(tmp_path / "rebuilt"), "--lpips", "none", *options]
    ) == 0  # fmt: skip
    measured = json.loads((tmp_path / "rebuilt/metrics.json").read_text())
    tokens = sum(tokens_of(loaded, min(window, 16 - start)) for start in range(0, 16, window))
    assert measured["frames"] == 16 and measured["tokens"] == tokens
    assert measured["bpp"] == pytest.approx(tokens * 6 / (16 * 32 * 32))

    export_tokens.main([*common, "--output", str(tmp_path / "tokens"), "--shards", "1", *options])
    decode_tokens.main(["--checkpoint", str(work), "--input", str(tmp_path / "tokens"),
                        "--output", str(tmp_path / "decoded")])  # fmt: skip
    (decoded,) = (tmp_path / "decoded").rglob("*.mp4")
    assert [frame.shape for frame in iter_frames(str(decoded))] == [(32, 32, 3)] * 16

    evaluate.main(["--task", "reconstruction", "--checkpoint", str(work), "--data",
                   str(world / "heldout"), "--output", str(tmp_path / "results"),
                   "--set=side=32", f"--set=frames={window}", "--set=lpips=none"])  # fmt: skip
    results = json.loads((tmp_path / "results/results.json").read_text())
    assert results["broken"] == [] and results["metrics"]["psnr"] > 0
    assert results["bpp"] == pytest.approx(tokens_of(loaded, window) * 6 / (window * 32 * 32))


def test_features_are_of_windows_that_the_family_takes():
    frames = [
        TokenizerFeatures(
            SimpleNamespace(config=SimpleNamespace(vae=vae, grids=()), checkpoint_hash="")
        ).window
        for vae in (svd.SVD, cogvideox.COGVIDEOX_2B, mochi.MOCHI)
    ]
    assert frames == [33, 33, 37]
