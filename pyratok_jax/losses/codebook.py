"""The five codebook terms of one level (paper, Eq. 2). Symbols: z logits, q codes, a = 4 tau z.

1 commitment       mean (z - sg(q))^2; the quantiser computes it (`Quantizer.commitment`)
2 entropy          mean_i H(p_i) - gamma H(mean_i p_i)
3 hierarchy        mean_i KL(p_i(l) || sg(p_i(l-1))), the stop-gradient being ours
4 text             mean_i KL(p_i || pi_i), pi predicted from the text alone
5 text codebook    see `losses.text`

Means run over tokens; in 4 over the tokens of clips that have a caption.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pyratok_jax.losses.entropy import batch_entropy, bit_logits, token_entropy
from pyratok_jax.losses.text import masked_mean
from pyratok_jax.nn.grids import resample

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
