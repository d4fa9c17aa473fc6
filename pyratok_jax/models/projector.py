"""From the tokens of all levels to a few embeddings that a language model reads before a question.

Every level is averaged over a small grid of time, height and width, normalised, and mapped by a
two-layer perceptron of its own. A learned vector per level marks where an embedding comes from.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


@functools.cache
def _averaging(size: int, parts: int) -> np.ndarray:
    """(parts, size): row i takes the mean over the i-th of `parts` nearly equal parts."""
    rows = np.zeros((parts, size), np.float32)
    for row, index in enumerate(np.array_split(np.arange(size), parts)):
        rows[row, index] = 1 / len(index)
    return rows


def pool_grid(x: Float[Array, "b t h w d"], most: tuple[int, int, int]) -> Float[Array, "b n d"]:
    """Means over a grid of at most `most` cells (time, height, width), in raster order."""
    parts = [min(size, limit) for size, limit in zip(x.shape[1:4], most, strict=True)]
    t, h, w = (_averaging(size, n) for size, n in zip(x.shape[1:4], parts, strict=True))
    x = jnp.einsum("it,jh,kw,bthwd->bijkd", t, h, w, x)
    return x.reshape(x.shape[0], -1, x.shape[-1])


class LevelProjector(nnx.Module):
    """One level's map: normalise, widen, narrow to the language model's width."""

    def __init__(self, features: int, hidden: int, width: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.inner = nnx.Linear(features, hidden, rngs=rngs)
        self.outer = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n e"]:
        """The level's embeddings, about unit size."""
        return self.outer(jax.nn.gelu(self.inner(self.norm(x))))


class Projector(nnx.Module):
    """All levels, between a learned start and a learned end."""

    def __init__(
        self,
        levels: int,
        features: int,
        width: int,
        *,
        rngs: nnx.Rngs,
        hidden: int = 1024,
        most: tuple[int, int, int] = (4, 4, 4),
        scale: float = 0.1,
    ):
        """Build with random weights.

        Args:
            levels: levels of the tokenizer.
            features: channels of its code embeddings.
            width: of the language model.
            rngs: for the parameters.
            hidden: channels between the two layers.
            most: largest grid (time, height, width) that a level is averaged to.
            scale: root mean square of fresh outputs; language models' embeddings are small.
        """
        self.most = (int(most[0]), int(most[1]), int(most[2]))
        self.maps = nnx.List(
            LevelProjector(features, hidden, width, rngs=rngs) for _ in range(levels)
        )
        self.level = nnx.Param(0.1 * jax.random.normal(rngs.params(), (levels, width)))
        self.ends = nnx.Param(jax.random.normal(rngs.params(), (2, width)))
        self.scale = nnx.Param(jnp.asarray(scale))

    def __call__(self, levels: tuple[Float[Array, "b _t _h _w d"], ...]) -> Float[Array, "b n e"]:
        """Embeddings of a batch of clips: start, level 1, ..., level L, end."""
        parts = [
            map_(pool_grid(x, self.most)) + self.level[...][i]
            for i, (map_, x) in enumerate(zip(self.maps, levels, strict=True))
        ]
        batch = levels[0].shape[0]
        first, last = (jnp.broadcast_to(end, (batch, 1, end.shape[-1])) for end in self.ends[...])
        return self.scale[...] * jnp.concatenate([first, *parts, last], axis=1)
