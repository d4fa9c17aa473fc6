"""The three-stage recipe on the procedural world, for two CPU cores or one accelerator.

    python -m pyratok_jax.train --config configs/world.py:stage1 --workdir runs/world1
    python -m pyratok_jax.train --config configs/world.py:stage2 --workdir runs/world2 \
        --config.init_from=runs/world1
    python -m pyratok_jax.train --config configs/world.py:stage3 --workdir runs/world3 \
        --config.init_from=runs/world2

Videos are drawn while training (`builtin:world`), one clip of five is of the demo's real scenes;
held-out pairs of colour and shape, shapes and phrasings are in `builtin:world-heldout` alone. What
comes of it after each stage is in docs/proof.md.

| stage | steps | two cores | what |
|---|---|---|---|
| 1 | 800 | 36 min | levels learn words and pictures from scratch, no autoregressive loss |
| 2 | 200 | 14 min | takes level 1, fits the others to what it leaves; autoregressive loss |
| 3 | 120 | 9 min | all losses |

`:ablation` is one stage with all losses: the base of
`configs/ablations.py:NAME,world`.
`:adapted` trains adapters of the encoder from the shipped tokenizer on, with all losses: what
`benchmarks/world/drift.py` takes terms away from. `:continued` trains its levels on, likewise, for
`benchmarks/world/terms.py`.
`:smoke` takes a few steps of stage 2.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from pyratok_jax.data.config import data_config
from pyratok_jax.training.config import tokenizer_training_config

# Of the shipped tokenizer, and a pyramid with a third of its tokens, for ablations.
GRIDS = ((4, 8), (1, 16), (2, 8), (4, 8))
PYRAMID = ((4, 32), (4, 16), (4, 16), (4, 8))
# Factors of the levels' learning rate by names of arrays. Beside levels that are taken over or
# fitted text modules learn many times as fast, beside fresh ones a little; adapters of an encoder
# that works already stay below 2e-4. What writes into levels that are trained keeps their rate:
# attention and the null caption that learn faster drown what a level reads of the one before it.
_TEXT = r"^alignment\.|\.attention\.|\.text_prior\.|null_text"
TEXT_MODULES = ((_TEXT, 10.0),)
FIRST_MODULES = ((_TEXT, 2.5), (r"\.adapter\.", 0.05))
LATER_MODULES = (
    (r"\.adapter\.", 5.0),
    (r"\.attention\.|null_text", 1.0),
    (_TEXT, 50.0),
)


class Stage(NamedTuple):
    """What stages differ in.

    Attributes:
        steps, clips, rate: how many, of how many clips each, at which learning rate of the levels.
        masking: progress of the masking over the recipe at the first and at the last step.
        text: weight of the text-codebook term. What a level has learned to see stays in its codes
            at a small one, while the reconstruction recovers what the term has cost.
    """

    steps: int
    clips: int
    rate: float
    masking: tuple[float, float]
    text: float


STAGES = {
    "stage1": Stage(800, 24, 2e-3, (0.0, 5 / 7), 0.4),
    "stage2": Stage(200, 16, 2e-5, (5 / 7, 6 / 7), 0.2),
    "stage3": Stage(120, 16, 2e-5, (6 / 7, 1.0), 0.12),
}


def get_config(argument: str = "stage1") -> ConfigDict:
    """One stage, `ablation`, `adapted`, `continued`, or `smoke`."""
    if argument == "ablation":
        return _ablation()
    if argument == "adapted":
        return _adapted()
    if argument == "continued":
        return _continued()
    smoke = argument == "smoke"
    stage = "stage2" if smoke else argument or "stage1"
    if stage not in STAGES:
        known = ", ".join((*STAGES, "ablation", "adapted", "continued", "smoke"))
        raise ValueError(f"world.py:{argument}: expected one of {known}")
    own = STAGES[stage]
    config = tokenizer_training_config(
        # Another order of the clips than the stage before it had.
        seed=list(STAGES).index(stage),
        steps=3 if smoke else own.steps,
        batch_size=2 if smoke else own.clips,
        checkpoint={"every": 100, "keep": 2, "keep_every": 0},
        log_every=1 if smoke else 10,
    )
    config.optimizer.update(
        {"learning_rate": own.rate, "warmup": 1 if smoke else 20, "schedule": "cosine",
         "final_share": 0.1, "groups": FIRST_MODULES if stage == "stage1" else LATER_MODULES}
    )  # fmt: skip
    config.model.tokenizer.update(
        {
            "inputs": "latent-first",
            "surrogate": "tanh",
            "width": 64,
            "heads": 4,
            "synthesis_width": 32,
            "lora_rank": 8,
            "lora_alpha": 16.0,
        }
    )
    with config.ignore_type():
        # All levels read the latent (the stage after the last one): the demo backbone's stages hold
        # what its linear path leaves over, from which neither colour nor shape can be told.
        config.model.tokenizer.grids = GRIDS
        config.model.tokenizer.stages = (5, 5, 5, 5)
    config.model.vae, config.vision.size = "demo", "demo"
    config.language.update({"length": 32, "remat": "none", "size": "smollm2-135m", "layers": 6})
    config.loss.token_budget = 64
    # A level that sees the caption can copy it into its codes; most must learn from the video.
    config.loss.hidden_captions = 0.9
    config.loss.weights.update(
        {"commitment": 0.02, "entropy": 0.02, "hierarchy": 0.0, "text_codebook": own.text}
    )
    # Straight-through targets gather codes; more entropy keeps them in use.
    config.loss.weights.autoregressive = 0.0 if stage == "stage1" else 0.3
    if stage != "stage1":
        config.loss.weights.entropy = 0.1
    if stage == "stage1":
        # A third of the step on two cores, to no effect on levels that are far from sharp.
        config.loss.weights.lpips = 0.0
    if stage == "stage3":
        config.loss.weights.update({"drift_dinov3": 0.2, "retention": 0.2})
    config.vision.projection = 64
    config.loss.settings.update(
        {"text_pooling": "peaks", "text_codebook_tokens": 96, "lpips_frames": 1, "dino_frames": 2,
         "text_levels": (1.0, 0.02, 0.02, 0.1)}
    )  # fmt: skip
    # A smoke run begins with fresh levels.
    config.masking.update({"start": 0.0 if smoke else own.masking[0], "end": own.masking[1]})
    config.data = data_config(
        sources=("builtin:world", "builtin:demo"),
        weights=(0.8, 0.2),
        cache_decoded=True,
        heldout=("builtin:world-heldout",),
        buckets=("5x32x32",) if smoke else ("9x64x64",),
        caption_dropout=0.1,
        workers=0,
    )
    # The second stage takes the level that has learned words, and fits the others to what it
    # leaves: at the rate at which words are learned they forget what they were fitted to. The third
    # starts from all levels of the second.
    config.init_levels = 1 if stage == "stage2" and not smoke else 0
    config.calibration.batches = 2 if smoke else 0 if stage == "stage3" else 32
    config.calibration.update({"steps": 3 if smoke else 300, "refine_steps": 2 if smoke else 300})
    config.report.buckets = ("5x32x32",) if smoke else ("9x64x64",)
    if not smoke:
        # Names, retrieval matrix and heat maps at the end; curves of nats under own, no and
        # another's caption on the way, once the loss has a weight.
        config.report.world = 144
        every = 200 if stage == "stage1" else 40
        config.evaluators = ({"name": "heldout", "every": every, "clips": 8},)
    return config


def _all_losses() -> ConfigDict:
    """One stage with all losses from masked to whole clips, for what takes parts away."""
    config = get_config("stage3")
    config.seed, config.batch_size = 0, 8
    config.optimizer.update({"learning_rate": 1e-4, "warmup": 30, "groups": TEXT_MODULES})
    config.loss.weights.update({"commitment": 0.1, "text_codebook": 0.05})
    config.loss.settings.text_levels = (1.0,)
    config.masking.update({"start": 0.0, "end": 1.0})
    config.data.update({"sources": ("builtin:world",), "weights": (), "cache_decoded": False})
    # What compares them measures them.
    config.evaluators = ()
    return config


def _ablation() -> ConfigDict:
    """All losses at once from fitted levels; the report names videos."""
    config = _all_losses()
    config.steps = 300
    with config.ignore_type():
        config.model.tokenizer.grids = PYRAMID
    # Each of the five terms has a weight, so that it can be taken away.
    config.loss.weights.update({"text": 0.01, "hierarchy": 0.002})
    config.calibration.batches, config.report.tasks = 32, 24
    return config


def _adapted() -> ConfigDict:
    """Adapters of the encoder, from the shipped tokenizer on; its levels hardly move."""
    config = _all_losses()
    config.steps, config.batch_size, config.init_from = 120, 4, "builtin:world"
    config.optimizer.update(
        {"learning_rate": 1e-5, "warmup": 10,
         "groups": ((r"\.adapter\.", 100.0), *TEXT_MODULES)}
    )  # fmt: skip
    config.loss.settings.text_codebook_tokens = 64
    config.report.world = 0
    return config


def _continued() -> ConfigDict:
    """The levels of the shipped tokenizer trained on, by all losses."""
    config = _adapted()
    # What is trained already keeps a low rate; text modules as the levels.
    config.optimizer.learning_rate, config.optimizer.groups = 1e-4, ()
    config.loss.weights.hierarchy = 0.01
    return config
