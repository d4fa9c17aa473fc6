"""The demo's frozen backbone: a small 4x8x8 video VAE of the Wan architecture, trained on a CPU.

    python -m pyratok_jax.train --config configs/demo_backbone.py

It starts as a linear code of blocks (principal components, decoded by least squares from the
latents around); its network learns what is left. The clips are cut from Big Buck Bunny (inside the
moviepy sdist, fetched once), the demo's training scenes, OpenCV's sample of a street (inside its
sdist, fetched once), moving shapes in any colours, the world, and photographs under a moving
camera; the held-out clips are not among them. Photographs are those of `config.data.photos`:

    apt-get download tuxpaint-stamps-default mate-backgrounds
    for f in *.deb; do dpkg-deb -x $f photos/${f%%_*}; done

Without them: --config.data.clips.photos=0. To go on from the weights that are shipped:

    python -m pyratok_jax.train --config configs/demo_backbone.py --workdir runs/more \
        --config.init_from=pyratok_jax/assets/demo_backbone.safetensors

The decoder of what is shipped then learned to decode the tokens of `builtin:world` too; encoder and
tokens stayed as they are:

    python -m pyratok_jax.train --config configs/demo_backbone.py:decoder
"""

from ml_collections import ConfigDict

from pyratok_jax.models.wan_vae.config import DEMO
from pyratok_jax.training.config import training_config


def get_config(argument: str = "") -> ConfigDict:
    """The training behind the shipped weights; `smoke` is a run of a few steps.

    `decoder` is the second one, `decoder-smoke` a few steps of it.
    """
    if argument.startswith("decoder"):
        return _decoder(smoke=argument == "decoder-smoke")
    config = training_config(
        task="backbone",
        steps=2400,
        batch_size=2,
        ema_decay=0.99,
        checkpoint={"every": 100, "keep": 2, "keep_every": 0},
        log_every=10,
    )
    config.optimizer.update(
        {
            "name": "gram_muon",
            "learning_rate": 2e-3,
            "warmup": 50,
            "schedule": "trapezoid",
            "decay_share": 0.4,
            "adam_share": 0.5,
            "b2": 0.95,
        }
    )
    config.model = ConfigDict(DEMO.to_dict())
    config.loss = ConfigDict(
        {
            "kl_frames": 1e-6,
            "kl_clips": 1e-6,
            "l1": 0.0,
            "mse": 1.0,
            "rmse": 0.0,
            "chroma": 0.02,
            "lpips": 0.0,
            "lpips_frames": 2,
        }
    )
    config.data = ConfigDict(
        {
            "phases": ("2400*2x17x64",),
            "clips": {
                "film": 24000,
                "demo": 6000,
                "street": 2400,
                "shapes": 4000,
                "world": 16000,
                "photos": 4800,
            },
            "shares": {
                "film": 0.32,
                "demo": 0.32,
                "street": 0.08,
                "shapes": 0.06,
                "world": 0.12,
                "photos": 0.1,
            },
            "photos": "photos",
            "augment": {"colour": 0.3, "flat": 0.02},
            "linear_batches": 200,
        }
    )
    if argument == "smoke":
        config.steps, config.optimizer.warmup, config.loss.lpips = 4, 1, 0.0
        config.data.phases = ("2*2x1x32", "2*1x5x32")
        config.data.clips = ConfigDict({"film": 0, "demo": 8})
        config.data.shares = ConfigDict({})
        config.data.linear_batches = 4
    return config


def _decoder(*, smoke: bool) -> ConfigDict:
    """The decoder alone, on what encoder and codes give it; half an hour on one core."""
    config = training_config(
        task="decoder",
        steps=450,
        batch_size=8,
        ema_decay=0.98,
        checkpoint={"every": 100, "keep": 2, "keep_every": 0},
        log_every=10,
    )
    config.optimizer.update(
        {
            "name": "adamw",
            "learning_rate": 7e-4,
            "warmup": 20,
            "schedule": "cosine",
            "final_share": 0.02,
            "b2": 0.99,
            "weight_decay": 0.0,
        }
    )
    config.tokenizer = "builtin:world"
    config.loss = ConfigDict({"clean": 1.0, "codes": 0.5, "chroma": 0.1, "slope": 3.0})
    config.data = ConfigDict(
        {
            "phases": ("450*8x9x64",),
            # Clips of few frames: an eighth of these numbers is cut.
            "clips": {"film": 12000, "demo": 6000, "street": 2400, "world": 24000, "things": 16000},
            "shares": {"film": 0.15, "demo": 0.2, "street": 0.05, "world": 0.35, "things": 0.25},
            "augment": {"colour": 0.15, "flat": 0.02},
        }
    )
    if smoke:
        config.steps, config.optimizer.warmup = 2, 1
        config.data.phases = ("2*2x5x32",)
        config.data.clips = ConfigDict({"things": 16})
        config.data.shares = ConfigDict({})
    return config
