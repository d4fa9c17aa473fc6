"""CLIP (arXiv 2103.00020): pictures and sentences in one space, for CLIPSIM.

Only inference is here. Activations are float32.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from pyratok_jax.errors import check_fields
from pyratok_jax.io import Json

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_EPSILON = 1e-5
_LEGACY_END = 2  # What older config.json files call the end of a text; the largest id is meant.
_MAX_SIZE = 1 << 20


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """Sizes of one of the two transformers: width, layers, heads, hidden width of the MLPs."""

    width: int
    layers: int
    heads: int
    hidden: int

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 1 <= value <= _MAX_SIZE:
                raise ValueError(f"{name} {value} must be from 1 to {_MAX_SIZE}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of {self.heads} heads")


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Sizes of CLIP.

    Attributes:
        vision, text: the two towers.
        side: of pictures, pixels.
        patch: side of a patch, pixels.
        vocabulary: number of token ids.
        length: tokens per text, at most.
        end: id that ends a text.
        projection: width of the common space.
        activation: of the MLPs; published models have "quick_gelu", x sigmoid(1.702 x).
    """

    vision: TowerConfig
    text: TowerConfig
    side: int = 224
    patch: int = 32
    vocabulary: int = 49408
    length: int = 77
    end: int = 49407
    projection: int = 512
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"

    def __post_init__(self) -> None:
        for name in ("side", "patch", "vocabulary", "length", "projection"):
            if not 1 <= getattr(self, name) <= _MAX_SIZE:
                raise ValueError(f"{name} {getattr(self, name)} must be from 1 to {_MAX_SIZE}")
        if self.side % self.patch:
            raise ValueError(f"side {self.side} must be a multiple of the patch, {self.patch}")
        if self.activation not in ("quick_gelu", "gelu"):
            raise ValueError(f"activation {self.activation!r}: expected quick_gelu or gelu")

    def to_dict(self) -> dict[str, Json]:
        """Plain values; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Json]) -> "ClipConfig":
        """The configuration written by `to_dict`; ValueError for keys that are not fields."""
        check_fields(values, cls, "CLIP's config")
        towers = {name: TowerConfig(**values[name]) for name in ("vision", "text")}
        return cls(**(values | towers))


class ClipBlock(nnx.Module):
    """Attention and MLP, each normed before and added."""

    def __init__(self, config: TowerConfig, activation: str, *, rngs: nnx.Rngs):
        width, self.heads, self.activation = config.width, config.heads, activation
        self.norm1 = nnx.LayerNorm(width, epsilon=_EPSILON, rngs=rngs)
        self.query, self.key, self.value, self.out = (
            nnx.Linear(width, width, rngs=rngs) for _ in range(4)
        )
        self.norm2 = nnx.LayerNorm(width, epsilon=_EPSILON, rngs=rngs)
        self.up = nnx.Linear(width, config.hidden, rngs=rngs)
        self.down = nnx.Linear(config.hidden, width, rngs=rngs)

    def __call__(self, x: Float[Array, "n l d"], causal: bool) -> Float[Array, "n l d"]:
        """One block; `causal`: a token sees none after it."""
        y = self.norm1(x)
        shape = (*x.shape[:2], self.heads, x.shape[-1] // self.heads)
        query, key, value = (f(y).reshape(shape) for f in (self.query, self.key, self.value))
        seen = jax.nn.dot_product_attention(query, key, value, is_causal=causal)
        x = x + self.out(seen.reshape(x.shape))
        y = self.up(self.norm2(x))
        quick = self.activation == "quick_gelu"
        y = y * jax.nn.sigmoid(1.702 * y) if quick else jax.nn.gelu(y, approximate=False)
        return x + self.down(y)


class Clip(nnx.Module):
    """Both towers with their projections."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        """Build with random weights; `weights_conversion.clip` has published ones."""
        self.config = config
        vision, text = config.vision, config.text
        patches = (config.side // config.patch) ** 2

        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))

        def blocks(tower: TowerConfig) -> nnx.List:
            rows = (ClipBlock(tower, config.activation, rngs=rngs) for _ in range(tower.layers))
            return nnx.List(rows)

        self.class_token = normal(vision.width)
        self.patch_positions = normal(patches + 1, vision.width)
        self.embed = nnx.Conv(
            3, vision.width, (config.patch,) * 2, strides=config.patch, padding="VALID",
            use_bias=False, rngs=rngs,
        )  # fmt: skip
        self.vision_before = nnx.LayerNorm(vision.width, epsilon=_EPSILON, rngs=rngs)
        self.vision_blocks = blocks(vision)
        self.vision_after = nnx.LayerNorm(vision.width, epsilon=_EPSILON, rngs=rngs)
        self.vision_out = nnx.Linear(vision.width, config.projection, use_bias=False, rngs=rngs)
        self.words = nnx.Embed(config.vocabulary, text.width, rngs=rngs)
        self.word_positions = normal(config.length, text.width)
        self.text_blocks = blocks(text)
        self.text_after = nnx.LayerNorm(text.width, epsilon=_EPSILON, rngs=rngs)
        self.text_out = nnx.Linear(text.width, config.projection, use_bias=False, rngs=rngs)

    def images(self, images: Float[Array, "n side side 3"]) -> Float[Array, "n p"]:
        """Vectors of pictures in [0, 1] of the configured side, not normalised."""
        patches = self.embed((images - jnp.asarray(MEAN)) / jnp.asarray(STD))
        x = patches.reshape(len(images), -1, patches.shape[-1])
        first = jnp.broadcast_to(self.class_token[...], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1) + self.patch_positions[...]
        x = self.vision_before(x)
        for block in self.vision_blocks:
            x = block(x, causal=False)
        return self.vision_out(self.vision_after(x[:, 0]))

    def texts(self, ids: Int[Array, "n l"]) -> Float[Array, "n p"]:
        """Vectors of texts, not normalised: what stands at the first `config.end`."""
        x = self.words(ids) + self.word_positions[: ids.shape[1]]
        for block in self.text_blocks:
            x = block(x, causal=True)
        ends = ids if self.config.end == _LEGACY_END else ids == self.config.end
        last = x[jnp.arange(len(x)), ends.argmax(axis=1)]
        return self.text_out(self.text_after(last))
