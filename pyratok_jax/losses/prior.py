"""The training loss of a prior over tokens, and its figures in nats per token.

Of `raster` the nats are the negative log-likelihood. Of `blocks` and `masked` they are an unbiased
estimate of the bound of absorbing diffusion (Sahoo et al. 2024, MDLM): with a masked share r drawn
from a density p, sum over masked tokens of their nats, weighted by 1 / (r p(r)). The loss may
leave that weight out (`weight="uniform"`, as MaskGIT does), which makes better samples of worse
likelihood. A token without any information costs bits x ln 2 nats.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from pyratok_jax.losses.settings import PriorObjective
from pyratok_jax.models.prior.conditioning import Condition
from pyratok_jax.models.prior.latents import Synthesize, known_latents
from pyratok_jax.models.prior.layout import Layout
from pyratok_jax.models.prior.model import Prior
from pyratok_jax.models.prior.tasks import TASKS, given_tokens
from pyratok_jax.models.pyratok.flips import flip_bits, time_ramp

Codes = Float[Array, "b n bits"]
Terms = dict[str, Array]


def prior_loss(
    prior: Prior,
    codes: Codes,
    condition: Condition,
    key: PRNGKeyArray,
    *,
    layout: Layout,
    objective: PriorObjective = PriorObjective(),
    synthesize: Synthesize | None = None,
    read: Codes | None = None,
) -> tuple[Float[Array, ""], Terms]:
    """Loss and terms of a batch.

    Args:
        prior: of any order.
        codes: of all tokens in the order of `Layout`, -1 or +1.
        condition: of the rows.
        key: of masks, flips and the head's estimates.
        layout: of the clip.
        objective: settings.
        synthesize: of the tokenizer; needed by `blocks`.
        read: what is read of known tokens in place of `codes`, where these were quantised again
            after flips: by `raster` of all tokens, by `blocks` as the latents of finished frames
            and coarser levels, by `masked` of all levels but that in question.

    Returns:
        the loss, and: nats (per token), nats_level_1, ..., nats_first_group, nats_later_groups
        (those of the first where there is no other), bit_accuracy (of the tokens that are
        predicted), random_nats (bits x ln 2).
    """
    mask_key, flip_key, head_key = jax.random.split(key, 3)
    order = prior.config.order
    assert read is None or not objective.flip, "flipped twice"
    if order == "raster":
        read = flipped(codes, flip_key, objective.flip, layout) if read is None else read
        hidden = prior.raster(read, condition, layout)
        asked = jnp.ones(codes.shape[:2], bool)
        weight = jnp.ones(codes.shape[:2])
    elif order == "blocks":
        assert synthesize is not None, "blocks reads latents"
        asked, weight, share = block_masks(codes.shape[0], mask_key, layout)
        levels = tuple(jnp.asarray(x) for x in layout.split(codes if read is None else read))
        with jax.named_scope("prior_latents"):
            latents = known_latents(synthesize, levels)
        context = latents[-1]
        if objective.flip:
            read = flipped(codes, flip_key, objective.flip, layout)
            noisy = tuple(jnp.asarray(x) for x in layout.split(read))
            with jax.named_scope("prior_latents"):
                context = jax.lax.stop_gradient(synthesize(noisy))
        seen = jnp.where(asked[..., None], 0.0, codes)
        hidden = prior.blocks(seen, share, latents, context, condition, layout)
    else:
        asked, unknown, own, weight, share = clip_masks(
            codes.shape[0], mask_key, layout, objective.tasks
        )
        known = codes if read is None else jnp.where(own[..., None], codes, read)
        seen = jnp.where(unknown[..., None], 0.0, known)
        hidden = prior.masked(seen, share, condition, layout)
    with jax.named_scope("prior_head"):
        nats = prior.head.nats(hidden, codes, head_key)
        right = (jnp.sign(prior.head.predict(hidden)) == codes).mean(axis=-1)
    count = jnp.maximum(asked.sum(), 1)
    estimate = jnp.where(asked, nats * weight, 0.0)
    terms = {
        "nats": estimate.mean(),
        **_parts(estimate, layout),
        "bit_accuracy": jnp.where(asked, right, 0.0).sum() / count,
        "random_nats": jnp.float32(prior.config.bits * math.log(2)),
    }
    value = jnp.where(asked, nats, 0.0)
    share = asked.astype(jnp.float32)
    if order == "raster" or objective.weight == "elbo":
        value, share = estimate, jnp.ones_like(estimate)
    weights = objective.level_weights
    of_token = np.array([weights[min(n, len(weights) - 1)] for n in layout.level], np.float32)
    loss = (value * of_token).sum() / jnp.maximum((share * of_token).sum(), 1e-6)
    return loss + prior.conditioner.tracking(condition), terms


def _parts(nats: Float[Array, "b n"], layout: Layout) -> Terms:
    """Means over levels, and over the first and the later latent frames."""
    mean = nats.mean(axis=0)
    terms = {
        f"nats_level_{level + 1}": mean[np.flatnonzero(layout.level == level)].mean()
        for level in range(len(layout.grids))
    }
    later = layout.group > 0
    terms["nats_first_group"] = mean[np.flatnonzero(~later)].mean()
    later = later if later.any() else ~later
    terms["nats_later_groups"] = mean[np.flatnonzero(later)].mean()
    return terms


def flipped(codes: Codes, key: PRNGKeyArray, rate: float, layout: Layout) -> Codes:
    """Codes with some bits flipped; see `PriorObjective.flip`."""
    if not rate:
        return codes
    rate_key, flip_key = jax.random.split(key)
    ramp = time_ramp(layout.group, layout.groups)
    chance = rate * jax.random.uniform(rate_key, (codes.shape[0], 1)) * ramp
    return flip_bits(codes, flip_key, chance)


def _shares(uniform: Float[Array, "..."]) -> tuple[Array, Array]:
    """Masked shares r = cos(pi u / 2) of uniform u, and 1 / (r p(r)) = pi / 2 tan(pi u / 2)."""
    angle = 0.5 * jnp.pi * uniform
    return jnp.cos(angle), 0.5 * jnp.pi * jnp.tan(jnp.minimum(angle, 1.5706))


def block_masks(
    rows: int, key: PRNGKeyArray, layout: Layout
) -> tuple[Bool[Array, "b n"], Float[Array, "b n"], Float[Array, "b parts"]]:
    """Masked tokens, their weight in the bound, and the masked share of every part."""
    share_key, mask_key = jax.random.split(key)
    parts = layout.groups * len(layout.grids)
    share, weight = _shares(jax.random.uniform(share_key, (rows, parts)))
    masked = jax.random.uniform(mask_key, (rows, layout.size)) < share[:, layout.part]
    members = (layout.part[:, None] == np.arange(parts)).astype(np.float32)
    found = masked.astype(jnp.float32) @ members / members.sum(axis=0)
    return masked, weight[:, layout.part], found


def clip_masks(
    rows: int, key: PRNGKeyArray, layout: Layout, tasks: float
) -> tuple[
    Bool[Array, "b n"],
    Bool[Array, "b n"],
    Bool[Array, "b n"],
    Float[Array, "b n"],
    Float[Array, " b"],
]:
    """One level of each clip in question: coarser ones are known, finer ones are not.

    Returns:
        masked tokens of the level in question; all unknown tokens; all tokens of that level; their
        weight in the bound; the masked share of the level.
    """
    keys = jax.random.split(key, 5)
    levels = len(layout.grids)
    level = jax.random.randint(keys[0], (rows, 1), 0, levels)
    share, weight = _shares(jax.random.uniform(keys[1], (rows, 1)))
    own = jnp.asarray(layout.level)[None] == level
    masked = own & (jax.random.uniform(keys[2], (rows, layout.size)) < share)
    unknown = masked | (jnp.asarray(layout.level)[None] > level)
    if tasks:
        table = jnp.asarray(np.stack([given_tokens(layout, task) for task in TASKS]))
        given = table[jax.random.randint(keys[3], (rows,), 0, len(TASKS))]
        given = given & (jax.random.uniform(keys[4], (rows, 1)) < tasks)
        masked, unknown = masked & ~given, unknown & ~given
    found = masked.sum(axis=1) / jnp.maximum(own.sum(axis=1), 1)
    # Each level is in question once in `levels` times.
    return masked, unknown, own, jnp.broadcast_to(weight * levels, masked.shape), found
