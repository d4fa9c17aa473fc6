"""The five codebook terms of one level (paper, Eq. 2). Symbols: z logits, q codes, a = 4 tau z.

1 commitment       mean (z - sg(q))^2; the quantiser computes it (`Quantizer.commitment`)
2 entropy          mean_i H(p_i) - gamma H(mean_i p_i)
3 hierarchy        mean_i KL(p_i(l) || sg(p_i(l-1))), the stop-gradient being ours
4 text             mean_i KL(p_i || pi_i), pi predicted from the text alone
5 text codebook    see `losses.text`

Means run over tokens; in 4 over the tokens of clips that have a caption.

Entropies are exact, without a tokens x 2^bits matrix. A token with logits z is softly assigned to
the codes c in {-1, +1}^bits with p(c) proportional to exp(2 tau <z, c>). The bits are then
independent, bit j being +1 with the logit a_j = 4 tau z_j. With fewer than 2^bits valid codes the
same weights are restricted to the valid ids; these fall into at most bits + 1 families (a fixed
prefix, the other bits free), inside which bits are independent again. Everything is computed in
float32 from logits, never from clamped probabilities.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pyratok_jax.losses.text import masked_mean
from pyratok_jax.models.pyratok.lfq import code_families
from pyratok_jax.nn.grids import resample

MAX_BATCH_BITS = 24  # beyond it the matrix of all codes is too large
_LOG_TINY = -87.0  # log of the smallest normal float32
_LARGEST_EXPONENT = 80.0


def bit_logits(z: Float[Array, "*n bits"], temperature: float) -> Float[Array, "*n bits"]:
    """a = 4 tau z, float32: the logit of each bit being +1."""
    return 4.0 * temperature * z.astype(jnp.float32)


def bit_entropy(logits: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Entropy in nats of bits with the given logits.

    softplus(-|a|) + |a| sigmoid(-|a|): both parts are positive, so nothing cancels at large |a|.
    """
    size = jnp.abs(logits)
    return jax.nn.softplus(-size) + size * jax.nn.sigmoid(-size)


def token_entropy(
    logits: Float[Array, "*n bits"], vocabulary: int | None = None
) -> Float[Array, "*n"]:
    """Entropy in nats of each token's code distribution over the valid codes."""
    bits = logits.shape[-1]
    if vocabulary is None or vocabulary == 2**bits:
        return jnp.sum(bit_entropy(logits), axis=-1)
    share, free = _families(logits, vocabulary)
    within = bit_entropy(logits) @ jnp.asarray(free, jnp.float32).T
    return jnp.sum(jnp.exp(share) * (within - share), axis=-1)


def batch_entropy(
    logits: Float[Array, "*n bits"], vocabulary: int | None = None
) -> Float[Array, ""]:
    """Entropy in nats of the code distribution averaged over all tokens.

    The mean runs over every token of the (global) array: under jit with a sharded batch it is the
    mean over all devices. With the bits cut in two halves, the mean over tokens of the outer
    products of the halves' distributions is one matrix product, high^T low / N.

    Raises:
        ValueError: for more bits than the matrix of all codes can have.
    """
    # The tables of half codes are made again in the backward pass: kept, they would outweigh the
    # activations of a long clip.
    remade = jax.checkpoint(lambda a: mean_distribution(a, vocabulary))
    return _entropy_of(remade(logits))


def mean_distribution(
    logits: Float[Array, "*n bits"], vocabulary: int | None = None
) -> Float[Array, "high low"]:
    """Mean soft assignment; the code with id i is at [i // low, i % low].

    Raises:
        ValueError: for more bits than the matrix of all codes can have.
    """
    bits = logits.shape[-1]
    if bits > MAX_BATCH_BITS:
        raise ValueError(f"batch entropy over 2^{bits} codes is too large: {MAX_BATCH_BITS} bits")
    half = bits // 2
    # Tokens keep their axes: flattened, those split over devices would have to be gathered.
    high, low = _log_distribution(logits[..., :half]), _log_distribution(logits[..., half:])
    if vocabulary is None or vocabulary == 2**bits:
        return _mean_outer(jnp.exp(high), jnp.exp(low))
    ids = np.arange(2**bits).reshape(high.shape[-1], low.shape[-1])
    some = jnp.asarray((ids < vocabulary).any(axis=1))
    # Fully valid halves have at most probability 1 given a valid code. The one half that is valid
    # in part may exceed it; the exponent is bounded so that the product cannot become inf * 0.
    high = high - _log_valid(logits, vocabulary)[..., None]
    high = jnp.where(some, jnp.exp(jnp.minimum(high, _LARGEST_EXPONENT)), 0.0)
    return jnp.where(ids < vocabulary, _mean_outer(high, jnp.exp(low)), 0.0)


def _mean_outer(high: Float[Array, "*n h"], low: Float[Array, "*n l"]) -> Float[Array, "h l"]:
    tokens = tuple(range(high.ndim - 1))
    total = jnp.tensordot(high, low, (tokens, tokens), precision="highest")
    return total / float(high.size // high.shape[-1])


def _entropy_of(p: Float[Array, "*n"]) -> Float[Array, ""]:
    """Entropy of one distribution; codes of probability 0 count 0 and have a finite gradient."""
    return -jnp.sum(p * jnp.log(jnp.maximum(p, jnp.exp(_LOG_TINY))))


def _log_distribution(logits: Float[Array, "*n bits"]) -> Float[Array, "*n codes"]:
    """Log-probability of all 2^bits codes of a few independent bits, ids ascending."""
    bits = logits.shape[-1]
    ones = (np.arange(2**bits)[None] >> np.arange(bits)[::-1, None]) & 1
    plus = jnp.asarray(ones, jnp.float32)
    on, off = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    dot = lambda x, y: jnp.matmul(x, y, precision="highest")  # noqa: E731
    return dot(on, plus) + dot(off, 1.0 - plus)


def _log_prefixes(logits: Float[Array, "*n bits"], vocabulary: int) -> Float[Array, "*n families"]:
    """Log-probability, over all 2^bits codes, of each family of valid codes."""
    fixed, free = code_families(vocabulary, logits.shape[-1])
    signed = jax.nn.log_sigmoid(logits[..., None, :] * jnp.asarray(fixed, jnp.float32))
    return jnp.sum(jnp.where(free, 0.0, signed), axis=-1)


def _log_valid(logits: Float[Array, "*n bits"], vocabulary: int) -> Float[Array, "*n"]:
    return jax.nn.logsumexp(_log_prefixes(logits, vocabulary), axis=-1)


def _families(
    logits: Float[Array, "*n bits"], vocabulary: int
) -> tuple[Float[Array, "*n families"], np.ndarray]:
    """Log-share of each family among the valid codes, and the families' free bits."""
    prefixes = _log_prefixes(logits, vocabulary)
    share = prefixes - jax.nn.logsumexp(prefixes, axis=-1, keepdims=True)
    return share, code_families(vocabulary, logits.shape[-1])[1]


_TINY = 1e-37  # a normal float32: no denormals, which accelerators flush to 0


def entropy(
    z: Float[Array, "*n bits"],
    *,
    temperature: float,
    gamma: float = 1.0,
    vocabulary: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean token entropy less gamma times the entropy of the batch's mean distribution, in nats.

    The first makes each assignment sure, the second makes all codes used.

    Returns:
        the term, and both entropies.
    """
    logits = bit_logits(z, temperature)
    token = jnp.mean(token_entropy(logits, vocabulary))
    batch = batch_entropy(logits, vocabulary)
    return token - gamma * batch, {"token_entropy": token, "batch_entropy": batch}


def bernoulli_kl(
    logits: Float[Array, "*n bits"],
    log_on: Float[Array, "*n bits"],
    log_off: Float[Array, "*n bits"],
) -> Float[Array, "*n"]:
    """KL of independent bits with `logits` from bits with log-probabilities `log_on`, `log_off`."""
    on, off = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    terms = jnp.exp(on) * (on - log_on) + jnp.exp(off) * (off - log_off)
    return jnp.sum(terms, axis=-1)


def hierarchy(
    z: Float[Array, "b t h w bits"],
    previous: Float[Array, "b t0 h0 w0 bits"],
    *,
    temperature: float,
    stop_gradient: bool = True,
) -> Float[Array, ""]:
    """KL of a level's bit distributions from the previous level's.

    The paper's formula has no stop-gradient; with one (the default) coarse levels are not drawn to
    what finer ones happen to be. It compares bit with bit, and so makes sense only as far as a bit
    means the same on both levels.

    The previous level's probabilities are brought to this grid: averaged where it is finer, copied
    where it is coarser. Probabilities of +1 and of -1 are averaged apart, so neither is 1 - 1.
    """
    logits = bit_logits(z, temperature)
    coarse = bit_logits(previous, temperature)
    if stop_gradient:
        coarse = jax.lax.stop_gradient(coarse)
    shape = (z.shape[1], z.shape[2], z.shape[3])
    if previous.shape[1:4] == shape:
        log_on, log_off = jax.nn.log_sigmoid(coarse), jax.nn.log_sigmoid(-coarse)
    else:
        log_on, log_off = (
            jnp.log(jnp.maximum(resample(jax.nn.sigmoid(sign * coarse), shape), _TINY))
            for sign in (1.0, -1.0)
        )
    return jnp.mean(bernoulli_kl(logits, log_on, log_off))


def text_alignment(
    z: Float[Array, "b t h w bits"],
    text_logits: Float[Array, "b t h w bits"],
    captioned: Bool[Array, "b"],
    *,
    temperature: float,
) -> Float[Array, ""]:
    """KL of the visual bit distributions from those predicted from the text.

    The gradient reaches the visual logits and, through the prediction, its projection and the
    attention that pooled the text; the text embeddings themselves are frozen. Clips without a
    caption count nothing.
    """
    logits, prior = bit_logits(z, temperature), text_logits.astype(jnp.float32)
    kl = bernoulli_kl(logits, jax.nn.log_sigmoid(prior), jax.nn.log_sigmoid(-prior))
    return masked_mean(jnp.mean(kl, axis=(1, 2, 3)), captioned)
