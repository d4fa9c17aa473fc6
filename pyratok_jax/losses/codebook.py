"""The five codebook terms of one level (paper, Eq. 2). Symbols: z logits, q codes, a = 4 tau z.

1 commitment       mean (z - sg(q))^2; the quantiser computes it (`Quantizer.commitment`)
2 entropy          mean_i H(p_i) - gamma H(mean_i p_i)
3 hierarchy        mean_i KL(p_i(l) || sg(p_i(l-1)))
4 text             mean_i KL(p_i || pi_i), pi predicted from the text alone
5 text codebook    mean_i KL(softmax(E(sg(q_i))) || softmax(sg(text summary)))

Means run over tokens; in 4 and 5 over the tokens of clips that have a caption.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pyratok_jax.losses.entropy import batch_entropy, bit_logits, token_entropy
from pyratok_jax.nn.grids import resample
from pyratok_jax.nn.text_attention import TextCondition

_TINY = 1e-37  # a normal float32: no denormals, which accelerators flush to 0


# The shared code embedding E: codes of a level (counted from 0) to the language model's width.
CodeEmbedding = Callable[[Float[Array, "*n bits"], int], Float[Array, "*n d"]]


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
) -> Float[Array, ""]:
    """KL of a level's bit distributions from the previous level's, whose gradient is stopped.

    The previous level's probabilities are brought to this grid: averaged where it is finer, copied
    where it is coarser. Probabilities of +1 and of -1 are averaged apart, so neither is 1 - 1.
    """
    logits = bit_logits(z, temperature)
    coarse = jax.lax.stop_gradient(bit_logits(previous, temperature))
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

    The gradient reaches the visual logits and the prediction's own projection; the text itself is
    under stop-gradient where `text_logits` are made. Clips without a caption count nothing.
    """
    logits, prior = bit_logits(z, temperature), text_logits.astype(jnp.float32)
    kl = bernoulli_kl(logits, jax.nn.log_sigmoid(prior), jax.nn.log_sigmoid(-prior))
    return masked_mean(jnp.mean(kl, axis=(1, 2, 3)), captioned)


def text_codebook(
    q: Float[Array, "b t h w bits"],
    level: int,
    embed: CodeEmbedding,
    text: TextCondition,
    *,
    tokens: int = 0,
) -> Float[Array, ""]:
    """KL over features of the codes in use from the caption of the clip they occur in.

    Codes enter as constants: only the embedding E learns.

    Args:
        q: codes of one level.
        level: its number, from 0.
        embed: E, into the width of the text embeddings.
        text: captions.
        tokens: at most this many evenly spaced tokens per clip; 0 takes all.
    """
    codes = jax.lax.stop_gradient(q).reshape(q.shape[0], -1, q.shape[-1])
    count = codes.shape[1]
    if 0 < tokens < count:
        codes = codes[:, (jnp.arange(tokens) * count) // tokens]
    features = jax.nn.log_softmax(embed(codes, level).astype(jnp.float32), axis=-1)
    summary = jax.lax.stop_gradient(text_summary(text))
    target = jax.nn.log_softmax(summary, axis=-1)[:, None]
    kl = jnp.sum(jnp.exp(features) * (features - target), axis=-1)
    return masked_mean(jnp.mean(kl, axis=1), has_caption(text))


def has_caption(text: TextCondition) -> Bool[Array, "b"]:
    """Which clips of the batch have a caption."""
    return jnp.any(text.mask, axis=1)


def text_summary(text: TextCondition) -> Float[Array, "b d"]:
    """Mean embedding of each caption's words, float32; zeros where there is no caption."""
    words = jnp.where(text.mask[..., None], text.embeddings.astype(jnp.float32), 0.0)
    count = jnp.sum(text.mask, axis=1, keepdims=True)
    return jnp.sum(words, axis=1) / jnp.maximum(count, 1)


def masked_mean(values: Float[Array, "b"], chosen: Bool[Array, "b"]) -> Float[Array, ""]:
    """Mean of the chosen values; 0 when none is chosen. What the others hold does not matter."""
    total = jnp.sum(jnp.where(chosen, values, 0.0))
    return total / jnp.maximum(jnp.sum(chosen), 1)
