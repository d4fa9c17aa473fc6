"""What the samplers of all orders share: settings, a random key per sample, parallel unmasking."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pyratok_jax.models.prior.conditioning import Condition
from pyratok_jax.models.prior.config import Sampling
from pyratok_jax.models.prior.heads import Codes, Draw, Hidden, Nats, RowKeys

_ASIDE = 2**32 - 1  # a number of no sample


def guidance_scale(
    sampling: Sampling, progress: Float[Array, ""] | float
) -> Float[Array, ""] | float:
    """The guidance at a share of a level's tokens that are drawn."""
    if sampling.guidance_schedule == "linear":
        return 1 + (sampling.guidance - 1) * progress
    if sampling.guidance_schedule == "cosine":
        return 1 + (sampling.guidance - 1) * (1 - jnp.cos(jnp.pi * progress)) / 2
    return sampling.guidance


class Given(NamedTuple):
    """Tokens that are not drawn.

    Attributes:
        codes: of all tokens; read where `known`.
        known: the same for all rows.
    """

    codes: Codes
    known: Bool[np.ndarray, " n"]


def row_keys(seed: int, numbers: np.ndarray, candidates: np.ndarray | None = None) -> RowKeys:
    """One key per sample, by its number: the same in a batch of any size.

    Args:
        seed: of all samples.
        numbers: of the samples.
        candidates: which draw of its sample each row is; None: the first of each, number 0.
    """
    key = jax.random.key(seed)
    rows = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.asarray(numbers))
    if candidates is None or not candidates.any():
        return rows
    # Below a number that no sample has, since the keys of steps are folded out of those of rows.
    aside = jax.random.fold_in(key, _ASIDE)
    others = jax.vmap(lambda k, n: jax.random.fold_in(jax.random.fold_in(aside, k), n))(
        jnp.asarray(candidates), jnp.asarray(numbers)
    )
    return jnp.where(jnp.asarray(candidates) == 0, rows, others)


def folded(keys: RowKeys, step: Array | int) -> RowKeys:
    """The keys of one step."""
    return jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)


def doubled(x: Array, guided: bool) -> Array:
    """Rows once for the conditional and, with guidance, once for the unconditional states."""
    return jnp.concatenate([x, x]) if guided else x


def halves(hidden: Float[Array, "rows n d"], guided: bool) -> tuple[Hidden, ...]:
    """Conditional and, with guidance, unconditional states."""
    return tuple(jnp.split(hidden, 2)) if guided else (hidden,)


def stacked(condition: Condition, other: Condition) -> Condition:
    """Both conditions as one batch, for guidance."""
    both = (condition, other)
    text = None
    if condition.text is not None and other.text is not None:
        text = condition.text._replace(
            embeddings=jnp.concatenate([c.text.embeddings for c in both if c.text]),
            mask=jnp.concatenate([c.text.mask for c in both if c.text]),
        )
    classes = None
    if condition.classes is not None and other.classes is not None:
        classes = jnp.concatenate([condition.classes, other.classes])
    return Condition(condition.rows + other.rows, text, classes)


def masked_share(progress: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """The share of tokens that are masked at a progress in [0, 1]: MaskGIT's cosine."""
    return jnp.cos(0.5 * jnp.pi * jnp.asarray(progress))


class Unmasking(NamedTuple):
    """The tokens of a level while they are drawn in parallel.

    Attributes:
        codes: 0 where unknown.
        known: drawn or given.
    """

    codes: Codes
    known: Bool[Array, "b n"]


def unmask(
    state: Unmasking,
    draw: Draw,
    proposal: tuple[Codes, Nats],
    step: Array | int,
    steps: Array | int,
    total: int | Array,
    temperature: float,
) -> Unmasking:
    """Keep the proposals that the model is surest of.

    Args:
        state: before the step.
        draw: its keys give the noise.
        proposal: bits of all tokens, and their log-probabilities.
        step: from 0.
        steps: of the level.
        total: tokens to be drawn in all steps; others are known from the start.
        temperature: of the noise at the first step.
    """
    proposed, log_chance = proposal
    n = log_chance.shape[1]
    progress = (jnp.asarray(step, jnp.float32) + 1) / steps
    left = jnp.floor(total * masked_share(progress) + 1e-4).astype(jnp.int32)
    # At least one more is known after every step.
    left = jnp.minimum(left, jnp.maximum((~state.known).sum(axis=1) - 1, 0))
    left = jnp.where(progress >= 1, 0, left)
    gumbel = -jnp.log(-jnp.log(jnp.clip(draw.uniform(1 << 20, (n,)), 1e-12, 1 - 1e-7)))
    confidence = log_chance + temperature * (1 - progress) * gumbel
    confidence = jnp.where(state.known, jnp.inf, confidence)
    rank = jnp.argsort(jnp.argsort(-confidence, axis=1), axis=1)
    kept = rank < n - left[:, None]
    codes = jnp.where((kept & ~state.known)[..., None], proposed, state.codes)
    return Unmasking(codes, kept | state.known)
