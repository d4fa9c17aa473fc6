"""The demo's frozen vision network: DINOv3's architecture, small, taught by VGG16 on a CPU.

    python -m pyratok_jax.train --config configs/demo_vision.py

It stands in for DINOv3, whose weights are under a licence of their own, in the demo's drift and
retention terms. Frames are cut from Big Buck Bunny (inside the moviepy sdist, fetched once) and
from the demo's training scenes; nothing of the held-out clips is seen.
"""

from ml_collections import ConfigDict

from pyratok_jax.models.dino import DinoConfig
from pyratok_jax.training.config import training_config


def get_config(argument: str = "") -> ConfigDict:
    """The training behind the shipped weights; `smoke` is a run of a few steps."""
    config = training_config(
        task="vision", steps=4000, batch_size=16, ema_decay=0.99, log_every=50,
        checkpoint={"every": 500, "keep": 2, "keep_every": 0},
    )  # fmt: skip
    config.optimizer.update(
        {"learning_rate": 1e-3, "warmup": 200, "schedule": "cosine", "weight_decay": 0.02}
    )
    sizes = DinoConfig(width=128, layers=6, heads=4, hidden=512)
    config.model = ConfigDict(sizes.to_dict())
    config.data = ConfigDict(
        {"phases": ("3600*16x1x64", "400*8x1x96"), "clips": {"film": 12000, "demo": 6000}}
    )
    if argument == "smoke":
        config.steps, config.optimizer.warmup = 4, 1
        config.data.phases = ("2*2x1x32", "2*1x1x48")
        config.data.clips = ConfigDict({"film": 0, "demo": 8})
    return config
