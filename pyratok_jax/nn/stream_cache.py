"""What a causal network remembers between two chunks of a clip."""

import jax.numpy as jnp
from jaxtyping import Array, Float

Caches = tuple[Array, ...]


class Memory:
    """The caches of one pass over a chunk: the old ones are read and new ones kept, in call order.

    Attributes:
        first: whether this is the first chunk of a clip; nothing is remembered yet.
        kept: the caches for the next chunk, after the pass.
    """

    def __init__(self, caches: Caches | None):
        self.first = caches is None
        self._old = list(caches or ())
        self.kept: list[Array] = []

    def join(self, x: Float[Array, "b t h w c"], frames: int) -> Float[Array, "b t2 h w c"]:
        """`x` behind the last `frames` frames before it, which are zeros at the first chunk."""
        b, _, h, w, c = x.shape
        past = jnp.zeros((b, frames, h, w, c), x.dtype) if self.first else self._old.pop(0)
        joined = jnp.concatenate([past, x], axis=1)
        self.keep(joined[:, -frames:])
        return joined

    def keep(self, x: Array) -> None:
        """Remember `x` for the next chunk."""
        self.kept.append(x)

    @property
    def caches(self) -> Caches:
        """The caches for the next chunk.

        Raises:
            ValueError: when the pass did not read every old cache: they belong to another network.
        """
        if self._old:
            raise ValueError(f"{len(self._old)} caches were not used: they are another network's")
        return tuple(self.kept)
