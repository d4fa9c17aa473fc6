"""Drawing tokens one after another, with a KV cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from pyratok_jax.models.prior.conditioning import Condition
from pyratok_jax.models.prior.config import Sampling
from pyratok_jax.models.prior.heads import Draw, RowKeys
from pyratok_jax.models.prior.layout import Layout, Visibility
from pyratok_jax.models.prior.model import Prior
from pyratok_jax.models.prior.sampling import Given, doubled, folded, guidance_scale, halves
from pyratok_jax.models.prior.transformer import Memory, remember

# Tokens per call of the compiled program, between which progress can be shown.
CHUNK = 64


class RasterState(NamedTuple):
    """A clip while it is drawn.

    Attributes:
        memory: of the prefix and all slots before `slot`.
        last: code of the token in the slot, where it holds one.
        slot: the next to be read.
    """

    memory: Memory
    last: Float[Array, "b bits"]
    slot: Int[Array, ""]


class _Tables(NamedTuple):
    """Facts of every slot and of the token after it, filled up to whole chunks."""

    is_mark: Array
    level: Array
    places: Array
    next_level: Array
    next_token: Array
    next_is_token: Array
    progress: Array


def raster_chunks(layout: Layout) -> int:
    """Calls of `raster_chunk` that a clip takes."""
    return -(-(len(layout.slots.token) - 1) // CHUNK)


def raster_tokens(
    chunks: list[Float[Array, "b chunk bits"]], layout: Layout
) -> Float[Array, "b n bits"]:
    """The codes of all tokens, from what all chunks have drawn."""
    return jnp.concatenate(chunks, axis=1)[:, layout.slots.predicting]


@nnx.jit(static_argnames=("rows", "layout"))
def raster_start(prior: Prior, condition: Condition, *, rows: int, layout: Layout) -> RasterState:
    """The state before the first slot; `condition` has the unconditional rows behind its own."""
    memory = prior.start(condition, raster_chunks(layout) * CHUNK)
    return RasterState(memory, jnp.ones((rows, prior.config.bits)), jnp.zeros((), jnp.int32))


@nnx.jit(static_argnames=("layout", "sampling"))
def raster_chunk(
    prior: Prior,
    state: RasterState,
    keys: RowKeys,
    given: Given | None,
    *,
    layout: Layout,
    sampling: Sampling,
) -> tuple[RasterState, Float[Array, "b chunk bits"]]:
    """Read the next `CHUNK` slots; the code drawn behind each (of no meaning before a mark)."""
    tables = _tables(layout)
    guided, levels = sampling.guided, prior.config.levels
    temperature = jnp.asarray(sampling.per_level(sampling.temperature, levels))
    top_p = jnp.asarray(sampling.per_level(sampling.top_p, levels))

    def step(state: RasterState, _: None) -> tuple[RasterState, Array]:
        slot = state.slot
        own = _Tables(*(jax.lax.dynamic_index_in_dim(x, slot, keepdims=False) for x in tables))
        codes = doubled(state.last[:, None], guided)
        x = prior.raster_input(codes, own.is_mark[None], own.level[None])
        seen = Visibility(slot[None], slot[None] + 1, jnp.full((1,), -1, jnp.int32))
        valid = jnp.ones((x.shape[0], 1), bool)
        place = own.places[None, None]
        hidden, new = prior.transformer.extend(x, place, seen, valid, state.memory)
        memory = remember(state.memory, new, seen, valid)
        draw = Draw(
            halves(hidden, guided),
            guidance_scale(sampling, own.progress),
            temperature[own.next_level],
            top_p[own.next_level],
            folded(keys, slot),
        )
        drawn = prior.head.sample(draw)[0][:, 0]
        if given is not None:
            fixed = jax.lax.dynamic_index_in_dim(given.codes, own.next_token, 1, keepdims=False)
            known = jnp.asarray(given.known)[own.next_token] & own.next_is_token
            drawn = jnp.where(known, fixed, drawn)
        return RasterState(memory, drawn, slot + 1), drawn

    state, codes = jax.lax.scan(step, state, None, length=CHUNK)
    return state, jnp.moveaxis(codes, 0, 1)


def _tables(layout: Layout) -> _Tables:
    slots = layout.slots
    used = len(slots.token) - 1
    fill = raster_chunks(layout) * CHUNK - used
    following, next_level = slots.token[1:], slots.level[1:]
    start = np.cumsum([0, *layout.counts[:-1]])
    done = np.maximum(following - start[next_level], 0) / np.array(layout.counts)[next_level]

    def filled(x: np.ndarray) -> Array:
        return jnp.asarray(np.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1), mode="edge"))

    return _Tables(
        filled(slots.token[:used] < 0),
        filled(slots.level[:used]),
        filled(slots.places[:used]),
        filled(next_level),
        filled(np.maximum(following, 0)),
        filled(following >= 0),
        filled(done.astype(np.float32)),
    )
