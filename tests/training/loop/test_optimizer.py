"""Rates by group of arrays, decay of kernels alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pyratok_jax.training.optimizer import make_optimizer
from tests.training.loop.test_step import optimizer_config

PARAMS = {
    "alignment.text_in": jnp.ones((4, 4)),
    "tokenizer.blocks.0.attention.key.kernel": jnp.ones((4, 4)),
    "tokenizer.blocks.0.attention.key.bias": jnp.ones(4),
    "tokenizer.blocks.0.head.kernel": jnp.ones((4, 4)),
}


def changes(gradient=1.0, **settings):
    config = optimizer_config(learning_rate=1e-2, schedule="constant", clip_norm=0.0, **settings)
    optimizer = make_optimizer(config, 10)
    grads = jax.tree.map(lambda x: gradient * jnp.ones_like(x), PARAMS)
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    return {name: float(np.abs(value).mean()) for name, value in updates.items()}


def test_the_first_pattern_in_a_name_gives_its_rate():
    plain = changes()
    found = changes(groups=((r"^alignment\.", 30.0), (r"\.attention\.", 3.0), ("alignment", 9.0)))
    ratio = {name: found[name] / plain[name] for name in PARAMS}
    np.testing.assert_allclose(list(ratio.values()), [30.0, 3.0, 3.0, 1.0], rtol=1e-5)
    assert set(found) == set(PARAMS)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_only_kernels_decay(name):
    """With no gradient a step is decay alone."""
    found = changes(gradient=0.0, name=name, weight_decay=0.1)
    decayed = {array for array, size in found.items() if size > 0}
    assert decayed == {array for array in PARAMS if array.endswith("kernel")}
    assert not any(changes(gradient=0.0, name=name, weight_decay=0.0).values())
