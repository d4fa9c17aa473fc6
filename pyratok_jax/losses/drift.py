"""Drift: how far the adapted encoder has moved from its frozen reference."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gaussian_kl(
    mean: Float[Array, "*n"],
    logvar: Float[Array, "*n"],
    frozen_mean: Float[Array, "*n"],
    frozen_logvar: Float[Array, "*n"],
    *,
    smallest_logvar: float = -30.0,
) -> Float[Array, ""]:
    """KL(N(mean, var) || N(frozen)), closed form, mean over all latent values.

    (log var_f - log var + (var + (mean - mean_f)^2) / var_f - 1) / 2. No gradient reaches the
    frozen side. Log-variances below `smallest_logvar` count as that: posteriors of a VAE can be so
    narrow that the plain divergence measures nothing but their width.
    """
    frozen_mean, frozen_logvar = jax.lax.stop_gradient((frozen_mean, frozen_logvar))
    mean, logvar, frozen_mean, frozen_logvar = (
        x.astype(jnp.float32) for x in (mean, logvar, frozen_mean, frozen_logvar)
    )
    logvar = jnp.maximum(logvar, smallest_logvar)
    frozen_logvar = jnp.maximum(frozen_logvar, smallest_logvar)
    ratio = jnp.exp(logvar - frozen_logvar)
    distance = (mean - frozen_mean) ** 2 * jnp.exp(-frozen_logvar)
    return 0.5 * jnp.mean(frozen_logvar - logvar + ratio + distance - 1.0)
