"""The configs of `configs/generator.py` build priors of their sizes."""

import importlib.util
import math
from pathlib import Path

import pytest
from flax import nnx

from pyratok_jax.checkpoints.partition import module_shapes
from pyratok_jax.losses.settings import PriorObjective
from pyratok_jax.models.prior.config import PriorConfig, Sampling
from pyratok_jax.models.prior.model import Prior
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.wan_vae.config import WAN21
from pyratok_jax.nn.settings import PRESETS
from pyratok_jax.training.generator_system import prior_sizes

FILE = Path(__file__).parents[2] / "configs" / "generator.py"


def read():
    spec = importlib.util.spec_from_file_location("generator_config", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("argument", [*read().ARGUMENTS, ""])
def test_every_argument_is_a_prior(argument):
    config = read().get_config(argument)
    made = PriorConfig(strides=PRESETS["pyramid"], **config.model.to_dict())
    order, _, size = argument.partition("-")
    assert made.order == (order if order in ("raster", "masked") else "blocks")
    small = argument in ("demo", "smoke")
    parameters = 12 * made.width**2 * made.layers
    assert parameters < 4e6 if small else size or 2e8 < parameters < 4e8
    PriorObjective(**config.objective)
    Sampling.from_dict(config.sampling.to_dict())
    assert (config.objective.tasks > 0) == (order == "masked")


@pytest.mark.parametrize(
    ("argument", "count"),
    [
        ("blocks-1b", 1_031_245_585), ("raster-1b", 1_026_088_721), ("masked-1b", 1_030_377_233),
        ("blocks", 0),
    ],
)  # fmt: skip
def test_a_billion_parameters(argument, count):
    """Over tokens of the full-size tokenizer, with text of Qwen2.5-VL-3B's width."""
    config = read().get_config(argument)
    sizes = prior_sizes(config, PyraTokConfig(vae=WAN21, text_width=2048), 2048)
    shapes = module_shapes(lambda: Prior(sizes, rngs=nnx.Rngs(0)))
    found = sum(math.prod(shape) for shape in shapes.values())
    assert found == count if count else 2.5e8 < found < 3e8


def test_an_unknown_argument_is_refused():
    with pytest.raises(ValueError, match="expected one of blocks, raster, masked, blocks-1b, "):
        read().get_config("gan")
