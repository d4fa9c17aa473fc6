"""Drawing a clip latent frame after latent frame, each level of a frame in a few parallel steps.

Only the context of finished frames is kept: a KV cache of `context_patch`-sized patches of their
latents and the caches of the causal synthesis. With a window the memory does not grow.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from pyratok_jax.models.prior.conditioning import Condition
from pyratok_jax.models.prior.config import Sampling
from pyratok_jax.models.prior.heads import Draw, RowKeys
from pyratok_jax.models.prior.latents import LevelCodes
from pyratok_jax.models.prior.layout import (
    NEVER,
    Grids,
    Layout,
    Visibility,
    level_places,
)
from pyratok_jax.models.prior.model import Prior
from pyratok_jax.models.prior.sampling import (
    Unmasking,
    doubled,
    folded,
    guidance_scale,
    halves,
    masked_share,
    unmask,
)
from pyratok_jax.models.prior.transformer import Memory, remember
from pyratok_jax.models.pyratok.quantizers.base import Quantizer
from pyratok_jax.nn.stream_cache import Caches, StreamCache


class BlocksState(NamedTuple):
    """A clip while it is drawn.

    Attributes:
        memory: of the prefix and the context of finished latent frames.
        caches: of the synthesis of the first 1, 2, ... levels; None before frame 0.
        group: number of the next latent frame.
    """

    memory: Memory
    caches: tuple[Caches, ...] | None
    group: Int[Array, ""]


def group_grids(layout: Layout, first: bool) -> Grids:
    """(t, h, w) of every level in one latent frame, frame 0 or a later one."""
    frames = layout.latent_stride[0]
    return tuple(
        (1 if first else frames // dt, h, w)
        for (_, h, w), (dt, _) in zip(layout.grids, layout.strides, strict=True)
    )


def groups_in_memory(prior: Prior, groups: int) -> int:
    """Latent frames whose context is kept."""
    window = prior.config.window
    return min(window, groups) if window else groups


@nnx.jit(static_argnames=("groups", "layout"))
def blocks_start(prior: Prior, condition: Condition, *, groups: int, layout: Layout) -> BlocksState:
    """The state before frame 0.

    Args:
        prior: of order "blocks".
        condition: with guidance, the unconditional rows follow the conditional ones.
        groups: latent frames that will be drawn.
        layout: gives the clip's sides; its number of frames does not matter.
    """
    rows, columns = layout.latent_sides
    patch = prior.config.context_patch
    count = (rows // patch) * (columns // patch)
    memory = prior.start(condition, groups_in_memory(prior, groups) * count)
    return BlocksState(memory, None, jnp.zeros((), jnp.int32))


@nnx.jit(static_argnames=("groups", "layout", "sampling"))
def blocks_group(
    prior: Prior,
    quantizer: Quantizer,
    state: BlocksState,
    keys: RowKeys,
    *,
    groups: int,
    layout: Layout,
    sampling: Sampling,
) -> tuple[BlocksState, LevelCodes]:
    """Draw the next latent frame.

    Args:
        prior: of order "blocks".
        quantizer: of the tokenizer; it synthesises the latents.
        state: of the clip.
        keys: of the rows.
        groups: as for `blocks_start`.
        layout: as for `blocks_start`.
        sampling: settings.

    Returns:
        the next state, and the codes (b, t, h, w, bits) of every level in this frame.
    """
    first = state.caches is None
    grids = group_grids(layout, first)
    codes: LevelCodes = ()
    caches: list[Caches] = []
    keys = folded(keys, state.group)
    for level in range(prior.config.levels):
        coarse = jnp.zeros(())
        if level:
            old = None if state.caches is None else state.caches[level - 1]
            latent, new = _synthesize(quantizer, codes, grids, old)
            caches.append(new)
            assert prior.reader is not None
            found = prior.reader.at_level(level, latent.astype(jnp.float32), first=first)
            coarse = found.reshape(found.shape[0], -1, found.shape[-1])
        drawn = _draw_level(
            prior, state, folded(keys, level), level, grids[level], coarse, sampling
        )
        codes += (drawn.reshape(drawn.shape[0], *grids[level], -1),)
    state = _finish(prior, quantizer, state, codes, caches, sampling.guided, groups, layout)
    return state, codes


@nnx.jit(static_argnames=("groups", "layout", "guided"))
def blocks_given(
    prior: Prior,
    quantizer: Quantizer,
    state: BlocksState,
    codes: LevelCodes,
    *,
    groups: int,
    layout: Layout,
    guided: bool,
) -> BlocksState:
    """Take the next latent frame as given, such as that of a picture or of a video to continue."""
    grids = group_grids(layout, state.caches is None)
    caches = []
    for level in range(1, prior.config.levels):
        old = None if state.caches is None else state.caches[level - 1]
        caches.append(_synthesize(quantizer, codes[:level], grids, old)[1])
    return _finish(prior, quantizer, state, codes, caches, guided, groups, layout)


def _synthesize(
    quantizer: Quantizer, codes: LevelCodes, grids: Grids, caches: Caches | None
) -> tuple[Array, Caches]:
    """The latent of the levels that are known, as `latents.known_latents` has it."""
    rows, bits = codes[0].shape[0], codes[0].shape[-1]
    later = tuple(jnp.zeros((rows, *grid, bits)) for grid in grids[len(codes) :])
    cache = StreamCache(quantizer, caches)
    latent = quantizer.synthesize(codes + later, cache)
    return latent, cache.caches


def _draw_level(
    prior: Prior,
    state: BlocksState,
    keys: RowKeys,
    level: int,
    grid: tuple[int, int, int],
    coarse: Float[Array, "b n d"] | Float[Array, ""],
    sampling: Sampling,
) -> Float[Array, "b n bits"]:
    config, guided = prior.config, sampling.guided
    first, n, steps = state.caches is None, int(np.prod(grid)), sampling.steps_of(level)
    place = level_places(
        level, grid, config.strides[level], config.latent_stride, start=0 if first else 1
    )
    # Positions are in latent frames: a later one is the second, moved.
    moved = jnp.asarray([0.0, 1.0, 0.0, 0.0]) * jnp.maximum(state.group - 1, 0)
    places = (jnp.asarray(place) + moved)[None]
    seen = Visibility(
        jnp.full((n,), NEVER), jnp.broadcast_to(state.group, (n,)), jnp.zeros((n,), jnp.int32)
    )
    rows = keys.shape[0]
    temperature = float(sampling.per_level(sampling.temperature, config.levels)[level])
    top_p = float(sampling.per_level(sampling.top_p, config.levels)[level])
    embed_share = prior.share
    assert embed_share is not None

    def step(number: Array, now: Unmasking) -> Unmasking:
        share = (~now.known).mean(axis=1)
        x = prior.embed(now.codes) + prior.levels[...][level] + coarse
        x = doubled(x + embed_share(share)[:, None], guided).astype(prior.dtype)
        valid = jnp.ones(x.shape[:2], bool)
        hidden, _ = prior.transformer.extend(x, places, seen, valid, state.memory)
        scale = guidance_scale(sampling, 1 - masked_share(number / steps))
        draw = Draw(halves(hidden, guided), scale, temperature, top_p, folded(keys, number))
        noise = sampling.choice_temperature
        return unmask(now, draw, prior.head.sample(draw), number, steps, n, noise)

    start = Unmasking(jnp.zeros((rows, n, config.bits)), jnp.zeros((rows, n), bool))
    return jax.lax.fori_loop(0, steps, step, start).codes


def _finish(
    prior: Prior,
    quantizer: Quantizer,
    state: BlocksState,
    codes: LevelCodes,
    caches: list[Caches],
    guided: bool,
    groups: int,
    layout: Layout,
) -> BlocksState:
    """Add the context of a latent frame whose codes are all known."""
    first = state.caches is None
    grids = group_grids(layout, first)
    old = None if state.caches is None else state.caches[-1]
    latent, last = _synthesize(quantizer, codes, grids, old)
    x = doubled(prior.context_input(latent.astype(jnp.float32)), guided)
    n = x.shape[1]
    assert prior.reader is not None
    start = np.array([0 if first else 1])
    place = prior.reader.places(prior.config.levels, layout.latent_sides, start).reshape(-1, 4)
    moved = jnp.asarray([0.0, 1.0, 0.0, 0.0]) * jnp.maximum(state.group - 1, 0)
    group = jnp.broadcast_to(state.group, (n,))
    seen = Visibility(group, group + 1, jnp.full((n,), -1, jnp.int32))
    valid = jnp.ones(x.shape[:2], bool)
    places = (jnp.asarray(place) + moved)[None]
    _, new = prior.transformer.extend(x, places, seen, valid, state.memory)
    kept = groups_in_memory(prior, groups)
    slot = state.memory.valid.shape[1] - kept * n + (state.group % kept) * n
    memory = remember(state.memory, new, seen, valid, slot)
    return BlocksState(memory, (*caches, last), state.group + 1)
