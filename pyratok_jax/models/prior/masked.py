"""Drawing a whole clip in parallel steps, level after level, with attention in both directions."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from pyratok_jax.models.prior.conditioning import Condition
from pyratok_jax.models.prior.config import Sampling
from pyratok_jax.models.prior.heads import Draw, RowKeys
from pyratok_jax.models.prior.layout import Layout
from pyratok_jax.models.prior.model import Prior
from pyratok_jax.models.prior.sampling import (
    Given,
    Unmasking,
    doubled,
    folded,
    guidance_scale,
    halves,
    masked_share,
    unmask,
)


def masked_start(rows: int, bits: int, layout: Layout, given: Given | None) -> Unmasking:
    """Nothing known but what is given."""
    known = np.zeros(layout.size, bool) if given is None else given.known
    state = Unmasking(
        jnp.zeros((rows, layout.size, bits)),
        jnp.broadcast_to(jnp.asarray(known), (rows, len(known))),
    )
    if given is None:
        return state
    return state._replace(codes=jnp.where(jnp.asarray(known)[None, :, None], given.codes, 0.0))


def masked_level(
    prior: Prior,
    state: Unmasking,
    condition: Condition,
    keys: RowKeys,
    level: int,
    *,
    layout: Layout,
    sampling: Sampling,
) -> Unmasking:
    """Draw the unknown tokens of one level; all coarser levels are known.

    Args:
        prior: of order "masked".
        state: of the clip.
        condition: with guidance, the unconditional rows follow the conditional ones.
        keys: of the rows.
        level: from 0.
        layout: of the clip.
        sampling: settings.
    """
    own = layout.level == level
    total = int((~np.asarray(state.known[0]) & own).sum())
    steps = min(sampling.steps_of(level), max(total, 1))
    settings = (
        jnp.float32(sampling.per_level(sampling.temperature, prior.config.levels)[level]),
        jnp.float32(sampling.per_level(sampling.top_p, prior.config.levels)[level]),
    )
    for step in range(steps if total else 0):
        numbers = (jnp.int32(step), jnp.int32(steps), jnp.int32(total))
        now = folded(folded(keys, level), step)
        state = masked_step(
            prior, state, condition, now, own, numbers, settings, layout=layout, sampling=sampling
        )
    return state


@nnx.jit(static_argnames=("layout", "sampling"))
def masked_step(
    prior: Prior,
    state: Unmasking,
    condition: Condition,
    keys: RowKeys,
    own: Bool[Array, " n"],
    numbers: tuple[Array, Array, Array],
    settings: tuple[Float[Array, ""], Float[Array, ""]],
    *,
    layout: Layout,
    sampling: Sampling,
) -> Unmasking:
    """One parallel step of `masked_level`.

    Args:
        prior, state, condition: as there.
        keys: of the rows, for this step alone.
        own: tokens of the level.
        numbers: of this step (from 0), of steps, and of tokens to be drawn in all of them.
        settings: temperature and top-p of the level.
        layout, sampling: as there.
    """
    step, steps, total = numbers
    share = (~state.known & own).sum(axis=1) / jnp.sum(own)
    codes, guided = state.codes, sampling.guided
    hidden = prior.masked(doubled(codes, guided), doubled(share, guided), condition, layout)
    scale = guidance_scale(sampling, 1 - masked_share(step / steps))
    draw = Draw(halves(hidden, guided), scale, *settings, keys)
    # Tokens of other levels are out of the question in this step, and stay as they were.
    asked = Unmasking(codes, state.known | ~own)
    found = unmask(
        asked, draw, prior.head.sample(draw), step, steps, total, sampling.choice_temperature
    )
    known = jnp.where(own, found.known, state.known)
    return Unmasking(found.codes, known)
