"""DINO vision transformer: class and register tokens, patches, pre-norm blocks with LayerScale."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.models.dino.config import DinoConfig
from pyratok_jax.models.dino.positions import resize_positions, rotary_angles, rotate

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Angles = np.ndarray | None


class DinoFeatures(NamedTuple):
    """Final-norm outputs.

    Attributes:
        summary: of the class token.
        registers: of the register tokens.
        patches: on the grid of patches.
    """

    summary: Float[Array, "n d"]
    registers: Float[Array, "n r d"]
    patches: Float[Array, "n rows columns d"]


class Attention(nnx.Module):
    """Multi-head attention over all tokens, patches rotated where angles are given."""

    def __init__(self, config: DinoConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        width, self.heads = config.width, config.heads
        self.query = nnx.Linear(width, width, rngs=rngs, dtype=dtype)
        self.key = nnx.Linear(width, width, use_bias=config.key_bias, rngs=rngs, dtype=dtype)
        self.value = nnx.Linear(width, width, rngs=rngs, dtype=dtype)
        self.out = nnx.Linear(width, width, rngs=rngs, dtype=dtype)

    def __call__(
        self, x: Float[Array, "n l d"], angles: np.ndarray | None
    ) -> Float[Array, "n l d"]:
        """Attend; `angles` (patches, d / heads) as of `rotary_angles`."""
        shape = (*x.shape[:2], self.heads, x.shape[-1] // self.heads)
        query, key, value = (f(x).reshape(shape) for f in (self.query, self.key, self.value))
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        return self.out(jax.nn.dot_product_attention(query, key, value).reshape(x.shape))


class Block(nnx.Module):
    """Attention and MLP, each normed before, scaled per channel after, and added."""

    def __init__(self, config: DinoConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        width, hidden = config.width, config.hidden
        settings: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.norm1 = nnx.LayerNorm(width, epsilon=config.epsilon, **settings)
        self.attention = Attention(config, **settings)
        self.scale1 = nnx.Param(jnp.ones(width))
        self.norm2 = nnx.LayerNorm(width, epsilon=config.epsilon, **settings)
        self.gate = nnx.Linear(width, hidden, **settings) if config.gated else None
        self.up = nnx.Linear(width, hidden, **settings)
        self.down = nnx.Linear(hidden, width, **settings)
        self.scale2 = nnx.Param(jnp.ones(width))

    def __call__(
        self, x: Float[Array, "n l d"], angles: np.ndarray | None
    ) -> Float[Array, "n l d"]:
        """One block."""
        x = x + self.attention(self.norm1(x), angles) * self.scale1[...].astype(x.dtype)
        y = self.norm2(x)
        if self.gate is None:
            y = jax.nn.gelu(self.up(y), approximate=False)
        else:
            y = jax.nn.silu(self.gate(y)) * self.up(y)
        return x + self.down(y) * self.scale2[...].astype(x.dtype)


class Dino(nnx.Module):
    """Images in [-1, 1] to features. Frozen in training; gradients pass through to the images."""

    def __init__(self, config: DinoConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        """Build with random weights; `weights_conversion.dino` has published ones.

        Args:
            config: sizes.
            rngs: for the parameters.
            dtype: of activations.
        """
        self.config = config
        width, patch = config.width, config.patch
        settings: dict[str, Any] = {"rngs": rngs, "dtype": dtype}

        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))

        self.class_token = normal(width)
        self.registers = normal(config.registers, width) if config.registers else None
        learned = config.rope_theta is None
        self.positions = normal(config.positions**2 + 1, width) if learned else None
        self.embed = nnx.Conv(3, width, (patch, patch), strides=patch, padding="VALID", **settings)
        self.blocks = nnx.List(Block(config, **settings) for _ in range(config.layers))
        self.norm = nnx.LayerNorm(width, epsilon=config.epsilon, **settings)

    def __call__(self, images: Float[Array, "n h w 3"]) -> DinoFeatures:
        """Features of images in [-1, 1].

        Raises:
            ValueError: when a side is not a multiple of the patch (see `fit_sides`).
        """
        n, h, w, _ = images.shape
        patch = self.config.patch
        if h % patch or w % patch:
            raise ValueError(f"sides {h}x{w} must be multiples of the patch, {patch}")
        mean, std = jnp.asarray(IMAGENET_MEAN), jnp.asarray(IMAGENET_STD)
        patches = self.embed((0.5 * (images + 1.0) - mean) / std)
        rows, columns = patches.shape[1:3]
        x = self._tokens(patches)
        angles = None
        if self.config.rope_theta is not None:
            head = self.config.width // self.config.heads
            angles = rotary_angles(rows, columns, head, self.config.rope_theta)
        for block in self.blocks:
            x = block(x, angles)
        x = self.norm(x)
        first = 1 + self.config.registers
        return DinoFeatures(x[:, 0], x[:, 1:first], x[:, first:].reshape(n, rows, columns, -1))

    def _tokens(self, patches: Float[Array, "n r c d"]) -> Float[Array, "n l d"]:
        """Class token, registers, patches; learned positions are added to all but the registers."""
        n, rows, columns, width = patches.shape
        first = self.class_token[...].astype(patches.dtype)[None]
        if self.positions is not None:
            positions = self.positions[...].astype(patches.dtype)
            side = self.config.positions
            grid = positions[1:].reshape(side, side, width)
            patches = patches + resize_positions(grid, rows, columns, self.config.antialias)
            first = first + positions[:1]
        if self.registers is not None:
            first = jnp.concatenate([first, self.registers[...].astype(patches.dtype)])
        first = jnp.broadcast_to(first, (n, *first.shape))
        return jnp.concatenate([first, patches.reshape(n, rows * columns, width)], axis=1)


def fit_sides(
    images: Float[Array, "n h w 3"], patch: int, largest: int = 0
) -> Float[Array, "n i j 3"]:
    """Images resized so that both sides are multiples of the patch: the nearest, at least one.

    Those with a side over `largest` (0: none) are made smaller, in proportion, until that side is
    it, to the nearest patch: attention over an image's patches grows with the fourth power of its
    side.
    """
    n, h, w, c = images.shape
    scale = min(1.0, largest / max(h, w)) if largest else 1.0
    sides = tuple(max(1, round(side * scale / patch)) * patch for side in (h, w))
    if sides == (h, w):
        return images
    return jax.image.resize(images, (n, *sides, c), "bilinear")
