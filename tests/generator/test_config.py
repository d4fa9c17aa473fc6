"""The configs of `configs/generator.py` build priors of their sizes."""

import importlib.util
from pathlib import Path

import pytest

from pyratok_jax.losses.settings import PriorObjective
from pyratok_jax.models.prior.config import PriorConfig, Sampling
from pyratok_jax.nn.settings import PRESETS

FILE = Path(__file__).parents[2] / "configs" / "generator.py"


def read():
    spec = importlib.util.spec_from_file_location("generator_config", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("argument", ["blocks", "raster", "masked", "demo", "smoke", ""])
def test_every_argument_is_a_prior(argument):
    config = read().get_config(argument)
    made = PriorConfig(strides=PRESETS["pyramid"], **config.model.to_dict())
    assert made.order == (argument if argument in ("raster", "masked") else "blocks")
    small = argument in ("demo", "smoke")
    parameters = 12 * made.width**2 * made.layers
    assert parameters < 4e6 if small else 2e8 < parameters < 4e8
    PriorObjective(**config.objective)
    Sampling.from_dict(config.sampling.to_dict())
    assert (config.objective.tasks > 0) == (argument == "masked")


def test_an_unknown_argument_is_refused():
    with pytest.raises(ValueError, match="expected one of blocks, raster, masked, demo, smoke"):
        read().get_config("gan")
