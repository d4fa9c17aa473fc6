"""What the `blocks` order reads of the tokens it has: the latent that they synthesise.

The latent of the first levels is the tokenizer's synthesis with the codes of all finer levels at 0:
a function of the known tokens alone, for any quantiser. With all levels known it is the very latent
that the decoder sees.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.models.language.layers import Linear
from pyratok_jax.models.prior.config import PriorConfig
from pyratok_jax.models.pyratok.synthesis import Analysis
from pyratok_jax.nn.grids import space_to_depth

LevelCodes = tuple[Float[Array, "b _t _h _w bits"], ...]
Latent = Float[Array, "b t h w z"]
# Codes of all levels to their latent (`Quantizer.synthesize`).
Synthesize = Callable[[LevelCodes], Latent]


def known_latents(synthesize: Synthesize, codes: LevelCodes) -> tuple[Latent, ...]:
    """The latents of the first 1, 2, ..., L levels. No gradient."""
    found = []
    for known in range(1, len(codes) + 1):
        later = tuple(jnp.zeros_like(q) for q in codes[known:])
        found.append(jax.lax.stop_gradient(synthesize(codes[:known] + later)))
    return tuple(found)


class LatentReader(nnx.Module):
    """Latents as inputs of the transformer: of coarser levels at a level's tokens, and as context.

    `levels[l - 1]` brings the latent of levels before l to the grid of level l: patches of space
    become channels, a latent frame becomes the level's token frames.
    """

    def __init__(self, config: PriorConfig, *, rngs: nnx.Rngs):
        self.patch, self.latent_stride = config.context_patch, config.latent_stride
        self.levels = nnx.List(
            Analysis(stride, config.latent_stride, config.width, config.latent_channels, rngs=rngs)
            for stride in config.strides[1:]
        )
        self.enter = Linear(
            config.context_patch**2 * config.latent_channels, config.width, bias=True, rngs=rngs
        )

    def at_level(
        self, level: int, latent: Latent, *, first: bool = True
    ) -> Float[Array, "b T H W d"]:
        """The latent of the levels before `level` (from 1), on its grid."""
        return self.levels[level - 1](latent, first=first)

    def context(self, latent: Latent) -> Float[Array, "b g n d"]:
        """Tokens of every finished latent frame."""
        x = self.enter(space_to_depth(latent, self.patch).astype(jnp.float32))
        b, g, h, w, d = x.shape
        return x.reshape(b, g, h * w, d)

    def places(
        self, level: int, sides: tuple[int, int], groups: np.ndarray
    ) -> Float[np.ndarray, "g n 4"]:
        """Positions (level, t, h, w) of the context's tokens.

        Args:
            level: what they have in place of a level's number.
            sides: rows and columns of the latent.
            groups: numbers of the latent frames; those after frame 0 have their centre there.
        """
        rows, columns = ((np.arange(side // self.patch) + 0.5) * self.patch for side in sides)
        frames = self.latent_stride[0]
        time = np.where(groups == 0, 0.0, groups - 1 + (1 + (frames - 1) / 2) / frames)
        t, h, w = np.meshgrid(time, rows, columns, indexing="ij")
        places = np.stack([np.full(t.shape, float(level)), t, h, w], axis=-1)
        return places.reshape(len(groups), len(rows) * len(columns), 4).astype(np.float32)
