"""Continuing prompts: prefill, then one compiled loop over new tokens with a key-value cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from pyratok_jax.models.language.model import Cache, LanguageModel


class Sampling(NamedTuple):
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: sample among the k likeliest tokens; None among all.
        top_p: choose among the likeliest tokens that together reach this probability.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0


class Generated(NamedTuple):
    """New tokens of every row, and the length of each (the end token included)."""

    tokens: Int[Array, "b n"]
    lengths: Int[Array, "b"]


class _State(NamedTuple):
    step: Int[Array, ""]
    logits: Float[Array, "b v"]
    tokens: Int[Array, "b n"]
    done: Bool[Array, "b"]
    lengths: Int[Array, "b"]
    cache: Cache


def choose(
    logits: Float[Array, "b v"], sampling: Sampling, key: Array | None = None
) -> Int[Array, "b"]:
    """One token per row. `key` is needed when the temperature is not 0."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if key is None:
        raise ValueError("sampling needs a random key")
    logits = logits.astype(jnp.float32) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = -jnp.sort(-logits, axis=-1)
        shares = jax.nn.softmax(ordered, axis=-1)
        # A token stays while those before it fall short of top_p; the first always does.
        stays = jnp.cumsum(shares, axis=-1) - shares < sampling.top_p
        least = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def generate(
    model: LanguageModel,
    prompt: Int[Array, "b t"] | Float[Array, "b t d"],
    mask: Bool[Array, "b t"] | None = None,
    *,
    new_tokens: int,
    sampling: Sampling = Sampling(),
    eos: tuple[int, ...] | None = None,
    key: Array | None = None,
) -> Generated:
    """Continue a batch of prompts of any lengths.

    Args:
        model: the language model.
        prompt: token ids or input embeddings, padded on either side.
        mask: True at real tokens; every row needs one. None means all are.
        new_tokens: number of tokens to add, at most.
        sampling: greedy by default.
        eos: tokens that end a row; None takes the model's. Later tokens of the row are the first
            of these (0 without any).
        key: random key, for a temperature above 0.
    """
    eos = model.config.eos if eos is None else tuple(eos)
    if mask is None:
        mask = jnp.ones(prompt.shape[:2], bool)
    if key is None:
        key = jax.random.key(0)
    return _generate(model, prompt, mask, key, new_tokens, sampling, eos)


@nnx.jit(static_argnums=(4, 5, 6))
def _generate(
    model: LanguageModel,
    prompt: Array,
    mask: Array,
    key: Array,
    new_tokens: int,
    sampling: Sampling,
    eos: tuple[int, ...],
) -> Generated:
    batch, length = mask.shape
    hidden, cache = model.read(prompt, mask)
    last = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    filler = eos[0] if eos else 0
    start = _State(
        jnp.zeros((), jnp.int32),
        model.logits(hidden)[:, 0],
        jnp.full((batch, new_tokens), filler, jnp.int32),
        jnp.zeros((batch,), bool),
        jnp.zeros((batch,), jnp.int32),
        cache.extended(new_tokens),
    )

    def goes_on(state: _State) -> Array:
        return (state.step < new_tokens) & ~jnp.all(state.done)

    def advance(state: _State) -> _State:
        token = choose(state.logits, sampling, jax.random.fold_in(key, state.step))
        token = jnp.where(state.done, filler, token)
        output = model(token[:, None], ~state.done[:, None], cache=state.cache, keep_cache=True)
        assert output.cache is not None
        ended = jnp.isin(token, jnp.asarray(eos, jnp.int32)) if eos else jnp.zeros_like(state.done)
        return _State(
            state.step + 1,
            model.logits(output.hidden)[:, 0],
            jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, state.step)),
            state.done | ended,
            state.lengths + ~state.done,
            output.cache,
        )

    state = jax.lax.while_loop(goes_on, advance, start)
    return Generated(state.tokens, state.lengths)
