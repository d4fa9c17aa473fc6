"""What a prior reads and what it predicts, of codes that were quantised again after flips."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pyratok_jax.losses.prior import block_masks, clip_masks, prior_loss
from pyratok_jax.losses.settings import PriorObjective
from pyratok_jax.models.prior.conditioning import Condition
from pyratok_jax.models.prior.latents import known_latents
from pyratok_jax.models.prior.model import Prior
from tests.losses.test_prior import synthesize
from tests.models.prior.tiny import BITS, LAYOUT, codes

ROWS, KEY = 6, jax.random.key(3)


def recorder(order):
    """In the place of a prior: what it is asked, and itself."""
    kept = {}

    def nats(hidden, targets, key):
        kept["targets"] = targets
        return jnp.ones(targets.shape[:2])

    def keep(seen, **more):
        kept.update({"seen": seen, **more})
        return jnp.zeros_like(seen)

    class Recorder(Prior):
        config = SimpleNamespace(order=order, bits=BITS)
        head = SimpleNamespace(nats=nats, predict=lambda hidden: hidden)
        conditioner = SimpleNamespace(tracking=lambda condition: 0.0)

        def __init__(self):
            pass

        def raster(self, seen, condition, layout):
            return keep(seen)

        def masked(self, seen, share, condition, layout):
            return keep(seen)

        def blocks(self, seen, share, latents, context, condition, layout):
            return keep(seen, latents=latents, context=context)

    return kept, Recorder()


def asked(order, targets, read):
    kept, prior = recorder(order)
    prior_loss(prior, targets, Condition(ROWS, None), KEY, layout=LAYOUT,
               synthesize=synthesize, read=read)  # fmt: skip
    return jax.tree.map(np.asarray, kept)


@pytest.mark.parametrize("order", ["raster", "blocks", "masked"])
def test_read_codes_are_inputs_and_targets_are_predicted(order):
    targets, read, other = (codes(ROWS, seed) for seed in range(3))
    found = asked(order, targets, read)
    np.testing.assert_array_equal(found["targets"], targets)
    changed = asked(order, targets, other)
    np.testing.assert_array_equal(changed["targets"], targets)
    mask_key = jax.random.split(KEY, 3)[0]
    if order == "raster":
        expected = read
    elif order == "blocks":
        masked, *_ = block_masks(ROWS, mask_key, LAYOUT)
        expected = np.where(np.asarray(masked)[..., None], 0, targets)
        latents = known_latents(synthesize, tuple(map(jnp.asarray, LAYOUT.split(read))))
        for a, b in zip(
            (*found["latents"], found["context"]), (*latents, latents[-1]), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        assert (changed["context"] != found["context"]).any()
    else:
        _, unknown, own, *_ = (np.asarray(x) for x in clip_masks(ROWS, mask_key, LAYOUT, 0.0))
        expected = np.where(own[..., None], targets, read)
        expected = np.where(unknown[..., None], 0, expected)
        assert (changed["seen"] != found["seen"]).any()
    np.testing.assert_array_equal(found["seen"], expected)
    # Without flips all is as if nothing had been read beside the targets.
    runs = (asked(order, targets, None), asked(order, targets, targets))
    for a, b in zip(*map(jax.tree.leaves, runs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bits_are_not_flipped_twice():
    with pytest.raises(AssertionError, match="twice"):
        prior_loss(recorder("raster")[1], codes(2), Condition(2, None), KEY, layout=LAYOUT,
                   objective=PriorObjective(flip=0.1), read=codes(2))  # fmt: skip
