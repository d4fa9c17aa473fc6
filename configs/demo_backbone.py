"""The demo's frozen backbone: a small 4x8x8 video VAE of the Wan architecture, trained on a CPU.

    python -m pyratok_jax.train --config configs/demo_backbone.py

Single frames come first (they are cheap and teach the spatial code), then clips. The clips are cut
from Big Buck Bunny (inside the moviepy sdist, fetched once) and from the demo's training scenes;
nothing of the held-out clips is seen.
"""

from ml_collections import ConfigDict

from pyratok_jax.models.wan_vae.config import tiny
from pyratok_jax.training.config import training_config


def get_config(argument: str = "") -> ConfigDict:
    """The training behind the shipped weights; `smoke` is a run of a few steps."""
    config = training_config(
        task="backbone",
        steps=2300,
        batch_size=16,
        ema_decay=0.99,
        checkpoint={"every": 250, "keep": 2, "keep_every": 0},
        log_every=20,
    )
    config.optimizer.update(
        {
            "name": "muon",
            "learning_rate": 4e-3,
            "warmup": 100,
            "schedule": "trapezoid",
            "decay_share": 0.27,
            "adam_share": 0.5,
            "b2": 0.95,
        }
    )
    config.model = ConfigDict(tiny().to_dict())
    config.loss = ConfigDict(
        {"kl_frames": 1e-4, "kl_clips": 2e-4, "mse": 0.5, "lpips": 0.05, "lpips_frames": 2}
    )
    config.data = ConfigDict(
        {
            "phases": ("800*16x1x64", "520*2x9x64", "980*1x17x64"),
            "clips": {"film": 12000, "demo": 6000},
        }
    )
    if argument == "smoke":
        config.steps, config.optimizer.warmup, config.loss.lpips = 4, 1, 0.0
        config.data.phases = ("2*2x1x32", "2*1x5x32")
        config.data.clips = ConfigDict({"film": 0, "demo": 8})
    return config
