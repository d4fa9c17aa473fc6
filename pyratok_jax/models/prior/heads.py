"""Heads of a prior: the distribution of a token's bits given its hidden state.

Codes are bits -1 or +1, the first bit being the most significant, as everywhere in the package.
A head is trained by `nats` and drawn from by `sample`; with two hidden states the second is the
unconditional one of classifier-free guidance (Ho & Salimans 2022), applied to the head's logits.
"""

import abc
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, PRNGKeyArray

from pyratok_jax.models.language.layers import Linear, RMSNorm
from pyratok_jax.models.prior.config import PriorConfig
from pyratok_jax.models.pyratok.lfq import bits_to_ids, ids_to_bits

Hidden = Float[Array, "b n d"]
Codes = Float[Array, "b n bits"]
Nats = Float[Array, "b n"]
RowKeys = Key[Array, " b"]


class Draw(NamedTuple):
    """How tokens are drawn.

    Attributes:
        hidden: conditional states, then the unconditional ones where there is guidance.
        guidance: scale s of the logits u + s (c - u); ignored without unconditional states.
        temperature: divides the logits; 0 takes the most likely.
        top_p: of a choice, the least likely values outside this share are never drawn.
        keys: one random key per row: a row's draws do not depend on the others.
    """

    hidden: tuple[Hidden, ...]
    guidance: Float[Array, ""] | float
    temperature: Float[Array, ""] | float
    top_p: Float[Array, ""] | float
    keys: RowKeys

    def mixed(self, logits: list[Array]) -> Array:
        """The guided logits of the conditional and unconditional ones."""
        if len(logits) == 1:
            return logits[0]
        conditional, unconditional = logits
        return unconditional + self.guidance * (conditional - unconditional)

    def uniform(self, step: int, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
        """Uniform numbers of that shape for every row."""
        keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(self.keys)
        return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


class Head(nnx.Module, abc.ABC):
    """A distribution of tokens; see the module's text."""

    @abc.abstractmethod
    def nats(self, hidden: Hidden, codes: Codes, key: PRNGKeyArray) -> Nats:
        """Negative log-likelihood of each token in nats, or an unbiased estimate of a bound.

        Args:
            hidden: states.
            codes: true bits.
            key: for heads that estimate.
        """

    @abc.abstractmethod
    def predict(self, hidden: Hidden) -> Codes:
        """The most likely bits, found greedily."""

    @abc.abstractmethod
    def sample(self, draw: Draw) -> tuple[Codes, Nats]:
        """Drawn bits, and the log-probability of each token under what it was drawn from."""


def draw_bits(
    logits: Float[Array, "b n bits"], draw: Draw, uniform: Float[Array, "b n bits"]
) -> tuple[Codes, Float[Array, "b n bits"]]:
    """Bits from logits of +1, and the log-probability of each.

    Top-p for a bit: the less likely value is drawn only if its probability is at least 1 - top_p
    (Infinity, Han et al. 2025).
    """
    cold = jnp.asarray(draw.temperature) <= 0
    scaled = logits / jnp.where(cold, 1.0, draw.temperature)
    chance = jax.nn.sigmoid(scaled)
    rare = jnp.minimum(chance, 1 - chance) < 1 - jnp.asarray(draw.top_p)
    certain = jnp.where(chance >= 0.5, 1.0, 0.0)
    chance = jnp.where(rare | cold, certain, chance)
    codes = jnp.where(uniform < chance, 1.0, -1.0)
    return codes, jax.nn.log_sigmoid(codes * scaled)


def draw_categories(
    logits: Float[Array, "b n k"], draw: Draw, uniform: Float[Array, "b n k"]
) -> tuple[Array, Nats]:
    """Categories by Gumbel-max within the top-p nucleus, and the log-probability of each."""
    cold = jnp.asarray(draw.temperature) <= 0
    scaled = logits / jnp.where(cold, 1.0, draw.temperature)
    log_chance = jax.nn.log_softmax(scaled, axis=-1)
    ordered = -jnp.sort(-log_chance, axis=-1)
    stays = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered) < draw.top_p
    least = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=-1, keepdims=True)
    gumbel = -jnp.log(-jnp.log(jnp.clip(uniform, 1e-12, 1 - 1e-7)))
    noisy = jnp.where(log_chance < least, -jnp.inf, log_chance + jnp.where(cold, 0.0, gumbel))
    ids = jnp.argmax(noisy, axis=-1)
    return ids, jnp.take_along_axis(log_chance, ids[..., None], axis=-1)[..., 0]


def bit_nats(logits: Float[Array, "*n bits"], codes: Float[Array, "*n bits"]) -> Array:
    """Negative log-likelihood of each bit."""
    return -jax.nn.log_sigmoid(codes * logits)


class BitsHead(Head):
    """Independent Bernoullis: the likelihood is the exact product over bits."""

    def __init__(self, config: PriorConfig, *, rngs: nnx.Rngs):
        self.logits = Linear(config.width, config.bits, bias=True, rngs=rngs)

    def nats(self, hidden: Hidden, codes: Codes, key: PRNGKeyArray) -> Nats:
        """As `Head.nats`; exact."""
        return bit_nats(self._logits(hidden), codes).sum(axis=-1)

    def predict(self, hidden: Hidden) -> Codes:
        """As `Head.predict`; exact."""
        return jnp.where(self._logits(hidden) >= 0, 1.0, -1.0)

    def sample(self, draw: Draw) -> tuple[Codes, Nats]:
        """As `Head.sample`."""
        logits = draw.mixed([self._logits(x) for x in draw.hidden])
        codes, log_chance = draw_bits(logits, draw, draw.uniform(0, logits.shape[1:]))
        return codes, log_chance.sum(axis=-1)

    def _logits(self, hidden: Hidden) -> Codes:
        return self.logits(hidden).astype(jnp.float32)


class SoftmaxHead(Head):
    """One categorical distribution over all codes; for comparison at few bits."""

    def __init__(self, config: PriorConfig, *, rngs: nnx.Rngs):
        self.bits = config.bits
        self.logits = Linear(config.width, 2**config.bits, bias=True, rngs=rngs)

    def nats(self, hidden: Hidden, codes: Codes, key: PRNGKeyArray) -> Nats:
        """As `Head.nats`; exact."""
        return _category_nats(self._logits(hidden), _ids(codes))

    def predict(self, hidden: Hidden) -> Codes:
        """As `Head.predict`; exact."""
        return _codes(jnp.argmax(self._logits(hidden), axis=-1), self.bits)

    def sample(self, draw: Draw) -> tuple[Codes, Nats]:
        """As `Head.sample`."""
        logits = draw.mixed([self._logits(x) for x in draw.hidden])
        ids, log_chance = draw_categories(logits, draw, draw.uniform(0, logits.shape[1:]))
        return _codes(ids, self.bits), log_chance

    def _logits(self, hidden: Hidden) -> Float[Array, "b n k"]:
        return self.logits(hidden).astype(jnp.float32)


class Residual(nnx.Module):
    """x + SwiGLU(RMSNorm(x) modulated by a condition) (AdaLN, Peebles & Xie 2023)."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(width, 1e-6, False)
        self.modulation = Linear(width, 2 * width, bias=True, rngs=rngs)
        self.modulation.kernel[...] = jnp.zeros_like(self.modulation.kernel[...])
        self.gate = Linear(width, width, rngs=rngs)
        self.up = Linear(width, width, rngs=rngs)
        self.down = Linear(width, width, rngs=rngs)

    def __call__(self, x: Hidden, condition: Hidden) -> Hidden:
        """Same shape out."""
        scale, shift = jnp.split(self.modulation(jax.nn.silu(condition)), 2, axis=-1)
        y = self.norm(x) * (1 + scale) + shift
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y))


class FactorisedHead(Head):
    """Sub-tokens of some bits each, one after another (Open-MAGVIT2, Luo et al. 2024).

    p(code | h) = prod_j p(s_j | h, s_1 .. s_(j-1)): exact, with dependence between bits.
    """

    def __init__(self, config: PriorConfig, *, rngs: nnx.Rngs):
        self.factors = config.factors
        width = config.width
        self.logits = nnx.List(
            Linear(width, 2**bits, bias=True, rngs=rngs) for bits in self.factors
        )
        self.embed = nnx.List(nnx.Embed(2**bits, width, rngs=rngs) for bits in self.factors[:-1])
        self.layers = nnx.List(Residual(width, rngs=rngs) for _ in range(config.head_layers))

    def _split(self, codes: Codes) -> list[Array]:
        ends = np.cumsum(self.factors)[:-1]
        return [_ids(part) for part in jnp.split(codes, ends, axis=-1)]

    def _logits(self, number: int, hidden: Hidden, before: list[Array]) -> Float[Array, "b n k"]:
        x = hidden
        for embed, ids in zip(self.embed, before, strict=False):
            x = x + embed(ids).astype(hidden.dtype)
        for layer in self.layers:
            x = layer(x, hidden)
        return self.logits[number](x).astype(jnp.float32)

    def nats(self, hidden: Hidden, codes: Codes, key: PRNGKeyArray) -> Nats:
        """As `Head.nats`; exact."""
        ids = self._split(codes)
        terms = [
            _category_nats(self._logits(number, hidden, ids[:number]), own)
            for number, own in enumerate(ids)
        ]
        return jnp.stack(terms).sum(axis=0)

    def predict(self, hidden: Hidden) -> Codes:
        """As `Head.predict`: each sub-token the most likely after those before it."""
        ids: list[Array] = []
        for number in range(len(self.factors)):
            ids.append(jnp.argmax(self._logits(number, hidden, ids), axis=-1))
        return self._join(ids)

    def sample(self, draw: Draw) -> tuple[Codes, Nats]:
        """As `Head.sample`."""
        ids: list[Array] = []
        total = jnp.zeros(draw.hidden[0].shape[:2], jnp.float32)
        for number in range(len(self.factors)):
            logits = draw.mixed([self._logits(number, x, ids) for x in draw.hidden])
            uniform = draw.uniform(number, logits.shape[1:])
            own, log_chance = draw_categories(logits, draw, uniform)
            ids.append(own)
            total = total + log_chance
        return self._join(ids), total

    def _join(self, ids: list[Array]) -> Codes:
        parts = [_codes(own, bits) for own, bits in zip(ids, self.factors, strict=True)]
        return jnp.concatenate(parts, axis=-1)


class MaskedBitsHead(Head):
    """Bits unmasked in a few parts, the most certain first (BAR, arXiv 2602.09024).

    Its `nats` are an unbiased estimate of a bound: with k of D bits masked at random, k uniform in
    1 .. D, E[D / k sum of the masked bits' nats] is the mean over all orders of unmasking.
    """

    PARTS = 4

    def __init__(self, config: PriorConfig, *, rngs: nnx.Rngs):
        self.bits = config.bits
        self.known = Linear(config.bits, config.width, rngs=rngs)
        self.masked = Linear(config.bits, config.width, rngs=rngs)
        self.layers = nnx.List(Residual(config.width, rngs=rngs) for _ in range(config.head_layers))
        self.logits = Linear(config.width, config.bits, bias=True, rngs=rngs)

    def _logits(self, hidden: Hidden, seen: Codes) -> Codes:
        """Logits of all bits; a bit of `seen` that is 0 is masked."""
        seen = seen.astype(hidden.dtype)
        x = hidden + self.known(seen) + self.masked((seen == 0).astype(hidden.dtype))
        for layer in self.layers:
            x = layer(x, hidden)
        return self.logits(x).astype(jnp.float32)

    def nats(self, hidden: Hidden, codes: Codes, key: PRNGKeyArray) -> Nats:
        """As `Head.nats`; an estimate of a bound."""
        count_key, order_key = jax.random.split(key)
        count = jax.random.randint(count_key, codes.shape[:2], 1, self.bits + 1)[..., None]
        rank = jnp.argsort(jax.random.uniform(order_key, codes.shape), axis=-1)
        hidden_bits = rank < count
        logits = self._logits(hidden, jnp.where(hidden_bits, 0.0, codes))
        losses = jnp.where(hidden_bits, bit_nats(logits, codes), 0.0).sum(axis=-1)
        return losses * (self.bits / count[..., 0])

    def predict(self, hidden: Hidden) -> Codes:
        """As `Head.predict`: all bits at once."""
        logits = self._logits(hidden, jnp.zeros((*hidden.shape[:2], self.bits)))
        return jnp.where(logits >= 0, 1.0, -1.0)

    def sample(self, draw: Draw) -> tuple[Codes, Nats]:
        """As `Head.sample`."""
        shape = (*draw.hidden[0].shape[:2], self.bits)
        codes, total = jnp.zeros(shape), jnp.zeros(shape[:2])
        parts = min(self.PARTS, self.bits)
        for part in range(parts):
            logits = draw.mixed([self._logits(x, codes) for x in draw.hidden])
            drawn, log_chance = draw_bits(logits, draw, draw.uniform(part, shape[1:]))
            certainty = jnp.where(codes != 0, -jnp.inf, jnp.abs(logits))
            # Bits open after this part, so that all are drawn at the end.
            count = self.bits * (part + 1) // parts - self.bits * part // parts
            chosen = jnp.argsort(jnp.argsort(-certainty, axis=-1), axis=-1) < count
            codes = jnp.where(chosen, drawn, codes)
            total = total + jnp.where(chosen, log_chance, 0.0).sum(axis=-1)
        return codes, total


HEADS: dict[str, type[Head]] = {
    "bits": BitsHead,
    "factorised": FactorisedHead,
    "mbm": MaskedBitsHead,
    "softmax": SoftmaxHead,
}


def make_head(config: PriorConfig, *, rngs: nnx.Rngs) -> Head:
    """The head that a configuration names."""
    make: type = HEADS[config.head]
    head: Head = make(config, rngs=rngs)
    return head


def _category_nats(logits: Float[Array, "b n k"], ids: Array) -> Nats:
    log_chance = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_chance, ids[..., None].astype(jnp.int32), axis=-1)[..., 0]


def _ids(codes: Codes) -> Array:
    return bits_to_ids(codes).astype(jnp.int32)


def _codes(ids: Array, bits: int) -> Codes:
    return ids_to_bits(ids.astype(jnp.uint32), bits)
