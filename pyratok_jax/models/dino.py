"""DINOv2 and DINOv3 vision transformers, the frozen reference networks of two losses.

Class and register tokens, patches, pre-norm blocks with LayerScale. Positions of patches are rotary
angles (DINOv3) or a learned grid, resized bicubically (DINOv2).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.io import Json
from pyratok_jax.nn.causal_conv import LayerSettings

_MAX_SIZE = 1 << 16


@dataclasses.dataclass(frozen=True)
class DinoConfig:
    """One class for both generations; the defaults are DINOv3 ViT-B/16.

    Attributes:
        width, layers, heads, hidden: of the transformer; `hidden` is inside the MLP.
        patch: side of a patch in pixels.
        registers: register tokens after the class token.
        gated: MLP of the form down(silu(gate) * up) in place of down(gelu(up)).
        key_bias: whether the key projection has a bias (DINOv2).
        epsilon: of the layer norms.
        rope_theta: base of the rotary positions of patches; None for learned positions.
        positions: side of the grid of learned positions, resized bicubically to other grids.
        antialias: how that resizing is done (DINOv2 with registers: True).
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    patch: int = 16
    registers: int = 4
    gated: bool = False
    key_bias: bool = False
    epsilon: float = 1e-5
    rope_theta: float | None = 100.0
    positions: int = 0
    antialias: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "hidden"):
            if not 1 <= getattr(self, name) <= _MAX_SIZE:
                raise ValueError(f"{name} {getattr(self, name)} must be from 1 to {_MAX_SIZE}")
        if self.width % self.heads or self.width // self.heads % 4:
            raise ValueError(
                f"width {self.width} must give each of {self.heads} heads a multiple of 4"
            )
        if self.rope_theta is None and not self.positions:
            raise ValueError("without rotary positions the grid of learned ones needs a side")

    def to_dict(self) -> dict[str, Json]:
        """Plain values; `DinoConfig(**values)` reads them back."""
        return dataclasses.asdict(self)


def rotary_angles(rows: int, columns: int, head_width: int, theta: float) -> np.ndarray:
    """(rows * columns, head_width) float32: angles of the patches' centres in [-1, 1].

    A quarter of the width each for y and x, the two together repeated once for the rotated half.
    """
    frequency = theta ** -np.arange(0, 1, 4 / head_width, dtype=np.float32)
    centres = [2 * (np.arange(n, dtype=np.float32) + 0.5) / n - 1 for n in (rows, columns)]
    y, x = np.meshgrid(*centres, indexing="ij")
    angles = 2 * np.pi * np.stack([y.ravel(), x.ravel()], axis=1)[..., None] * frequency
    return np.tile(angles.reshape(rows * columns, -1), 2).astype(np.float32)


def rotate(
    x: Float[Array, "n l heads d"], angles: Float[np.ndarray, "patches d"]
) -> Float[Array, "n l heads d"]:
    """Rotate the last `patches` tokens; class and register tokens before them stay."""
    prefix, patches = jnp.split(x, [x.shape[1] - len(angles)], axis=1)
    first, second = jnp.split(patches, 2, axis=-1)
    cos, sin = (f(angles)[:, None].astype(np.float32) for f in (np.cos, np.sin))
    turned = patches * cos + jnp.concatenate([-second, first], axis=-1) * sin
    return jnp.concatenate([prefix, turned.astype(x.dtype)], axis=1)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@functools.cache
def bicubic_matrix(source: int, target: int, antialias: bool) -> np.ndarray:
    """(target, source) float32 weights of a bicubic resize of one axis, corners not aligned.

    The published models were resized in two ways: a sharp kernel (-0.75) whose taps beyond the edge
    repeat the border, and an antialiased one (-0.5) whose taps beyond the edge are left out.
    """
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale - 0.5
    if antialias:
        distance = np.arange(source)[None] - centres[:, None]
        weights = _cubic(distance / max(scale, 1.0), -0.5)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    weights = np.zeros((target, source))
    for row, centre in enumerate(centres):
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[row, np.clip(tap, 0, source - 1)] += _cubic(np.asarray(tap - centre), -0.75)
    return weights.astype(np.float32)


def resize_positions(
    grid: Float[Array, "side side d"], rows: int, columns: int, antialias: bool
) -> Float[Array, "rows columns d"]:
    """Learned positions for another grid of patches."""
    side = grid.shape[0]
    if (rows, columns) == (side, side):
        return grid
    up, across = (bicubic_matrix(side, n, antialias) for n in (rows, columns))
    return jnp.einsum("rh,cw,hwd->rcd", up, across, grid, precision="highest")


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
        settings: LayerSettings = {"rngs": rngs, "dtype": dtype}
        self.norm1 = nnx.LayerNorm(width, epsilon=config.epsilon, **settings)
        self.attention = Attention(config, rngs=rngs, dtype=dtype)
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
        settings: LayerSettings = {"rngs": rngs, "dtype": dtype}

        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))

        self.class_token = normal(width)
        self.registers = normal(config.registers, width) if config.registers else None
        learned = config.rope_theta is None
        self.positions = normal(config.positions**2 + 1, width) if learned else None
        self.embed = nnx.Conv(3, width, (patch, patch), strides=patch, padding="VALID", **settings)
        self.blocks = nnx.List(Block(config, rngs=rngs, dtype=dtype) for _ in range(config.layers))
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


class LatentProjection(nnx.Module):
    """Normalised latents to DINO's width, position by position: linear, GELU, linear.

    It is small, so that the latent itself has to hold the features.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        rngs: nnx.Rngs,
        hidden: int = 256,
        dtype: DTypeLike = jnp.float32,
    ):
        self.hidden = nnx.Linear(channels, hidden, rngs=rngs, dtype=dtype)
        self.out = nnx.Linear(hidden, width, rngs=rngs, dtype=dtype)

    def __call__(self, latent: Float[Array, "b t h w z"]) -> Float[Array, "b t h w d"]:
        """Features of every latent position."""
        return self.out(jax.nn.gelu(self.hidden(latent)))
