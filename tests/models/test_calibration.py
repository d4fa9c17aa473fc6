"""The data-dependent start: it must leave far less of the latent than random codes do."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pyratok_jax.models.grids import depth_to_space
from pyratok_jax.models.pyratok import PyraTok
from pyratok_jax.training.calibration import calibrate
from tests.models.test_pyratok import tiny_config


def latents(seed: int) -> jax.Array:
    """Smooth latents of two clips: coarse structure, some detail, like those of real video."""
    keys = jax.random.split(jax.random.key(seed), 2)
    coarse = jnp.repeat(jnp.repeat(jax.random.normal(keys[0], (8, 5, 4, 6, 4)), 2, 2), 2, 3)
    return coarse + 0.3 * depth_to_space(jax.random.normal(keys[1], (8, 5, 4, 6, 16)), 2)


def test_each_level_lowers_what_is_left_and_held_out_latents_profit():
    model = PyraTok(tiny_config(bits=12), rngs=nnx.Rngs(0))
    left = calibrate(model, [latents(0)], steps=100)
    assert len(left) == 4 and all(a > b for a, b in zip(left, left[1:], strict=False))
    assert left[-1] < 0.25
    stages = tuple(
        jnp.zeros((8, 17 if i == 0 else 9 if i == 1 else 5, *size, channels))
        for i, (size, channels) in enumerate(
            zip(
                ((32, 48), (16, 24), (8, 12), (8, 12)), model.config.vae.stage_channels, strict=True
            )
        )
    )
    target = latents(1)
    _, synthesised = model.quantize(stages, target, None)
    assert float(jnp.mean((synthesised - target) ** 2) / jnp.mean(target**2)) < 0.4


def test_the_same_seed_gives_the_same_start():
    runs = []
    for _ in range(2):
        model = PyraTok(tiny_config(), rngs=nnx.Rngs(0))
        calibrate(model, [latents(0)], steps=10, seed=3)
        runs.append(np.asarray(model.blocks[3].analysis.rest.kernel[...]))
    np.testing.assert_array_equal(*runs)
