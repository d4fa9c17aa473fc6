"""Every published ablation as a config: `configs/ablations.py:NAME`, small by default.

    python -m pyratok_jax.train --config configs/ablations.py:no_text --workdir runs/no_text
    python -m pyratok_jax.train --config configs/ablations.py:no_text,full --workdir ...
    python -m pyratok_jax.ablate --names full,no_text,rvq --seeds 3 --workdir runs/ablations

NAME is a key of `pyratok_jax.training.ablations.table.ABLATIONS` (`python -m pyratok_jax.ablate
--list` explains each); after a comma the scale: `demo` (`configs/demo.py:pyramid`), `world`
(`configs/world.py:ablation`, whose results say what the tokens name) or `full`
(`configs/tpu_v5.py:stage3`).
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from pyratok_jax.training.ablations.table import apply

# The published rate, which the ablations of equal rate are made for.
BASES = {
    "demo": ("demo.py", "pyramid"),
    "world": ("world.py", "ablation"),
    "full": ("tpu_v5.py", "stage3"),
}


def get_config(argument: str = "full") -> ConfigDict:
    """The base of the scale with the ablation's changes."""
    name, _, scale = argument.partition(",")
    scale = scale or "demo"
    if scale not in BASES:
        raise ValueError(f"ablations.py:{argument}: the scale is one of {', '.join(BASES)}")
    file, base = BASES[scale]
    make = runpy.run_path(str(Path(__file__).with_name(file)))["get_config"]
    config = apply(make(base), name or "full", scale)
    grids, factors = config.model.tokenizer.grids, config.loss.settings.text_levels
    if not isinstance(grids, str):
        # Those of the base's levels; an ablation may have fewer.
        config.loss.settings.text_levels = tuple(factors[: len(grids)])
    if scale == "full":
        # One training from fresh levels sees the whole schedule.
        config.seed, config.masking.start = 0, 0.0
        config.optimizer.groups = make("stage1").optimizer.groups  # All text modules are fresh.
    if scale == "world":
        # All levels read the latent there, however many an ablation has.
        config.model.tokenizer.stages = (5,) * len(config.model.tokenizer.grids)
    return config
