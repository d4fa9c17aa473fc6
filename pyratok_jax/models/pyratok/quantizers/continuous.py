"""No quantisation at all: the upper bound that ablations compare with. It makes no tokens."""

from typing import NoReturn

from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.models.pyratok.lapq import Level
from pyratok_jax.nn.text_attention import TextCondition


class ContinuousLatent(nnx.Module):
    """Passes the normalised latent on as it is."""

    def __call__(
        self, latent: Float[Array, "b t h w z"], text: TextCondition | None
    ) -> tuple[tuple[Level, ...], Float[Array, "b t h w z"]]:
        """No levels, and the latent itself."""
        return (), latent

    def synthesize(self, codes: tuple[Array, ...]) -> NoReturn:
        """Refuse: there are no codes.

        Raises:
            ValueError: always.
        """
        raise ValueError("quantizer none makes no tokens: there is nothing to decode from")
