"""`Prior`: embeddings, transformer and head, and one training pass for each order."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.models.language.layers import Linear
from pyratok_jax.models.prior.conditioning import Condition, Conditioner, Prefix
from pyratok_jax.models.prior.config import PriorConfig
from pyratok_jax.models.prior.heads import make_head
from pyratok_jax.models.prior.latents import Latent, LatentReader
from pyratok_jax.models.prior.layout import NEVER, Layout, Visibility, join, prefix_places
from pyratok_jax.models.prior.transformer import Memory, Transformer, empty_memory, remember

_WAVES = 16
Codes = Float[Array, "b n bits"]
Hidden = Float[Array, "b n d"]


class ShareEmbedding(nnx.Module):
    """The share of tokens that are masked, in [0, 1], as Fourier features through an MLP."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.enter = Linear(2 * _WAVES, width, bias=True, rngs=rngs)
        self.leave = Linear(width, width, bias=True, rngs=rngs)

    def __call__(self, share: Float[Array, "*n"]) -> Float[Array, "*n d"]:
        """Embeddings, float32."""
        angles = share[..., None] * jnp.asarray(np.pi * 1.4 ** np.arange(_WAVES), jnp.float32)
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return self.leave(jax.nn.silu(self.enter(waves)))


class Prior(nnx.Module):
    """A prior over the tokens of a clip. Codes are bits -1 or +1; a masked bit is 0.

    Hidden states of the three passes are in the order of the tokens (`Layout`); the head turns each
    into the distribution of its token.
    """

    def __init__(self, config: PriorConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config, self.dtype = config, jnp.dtype(dtype)
        width = config.width
        normal = nnx.initializers.normal(1.0)
        self.conditioner = Conditioner(config, rngs=rngs)
        self.code = Linear(config.bits, width, rngs=rngs)
        # The last row is for the context of `blocks`.
        self.levels = nnx.Param(normal(rngs.params(), (config.levels + 1, width), jnp.float32))
        self.transformer = Transformer(config, rngs=rngs)
        self.head = make_head(config, rngs=rngs)
        self.marks: nnx.Param | None = nnx.data(None)
        self.masked_bits: Linear | None = nnx.data(None)
        self.share: ShareEmbedding | None = nnx.data(None)
        self.reader: LatentReader | None = nnx.data(None)
        if config.order == "raster":
            self.marks = nnx.Param(normal(rngs.params(), (config.levels, width), jnp.float32))
        else:
            self.masked_bits = Linear(config.bits, width, rngs=rngs)
            self.share = ShareEmbedding(width, rngs=rngs)
        if config.order == "blocks":
            self.reader = LatentReader(config, rngs=rngs)

    def embed(self, codes: Codes) -> Float[Array, "b n d"]:
        """Embeddings of codes, masked bits included, float32."""
        x = self.code(codes)
        if self.masked_bits is not None:
            x = x + self.masked_bits((codes == 0).astype(codes.dtype))
        return x

    def start(self, condition: Condition, slots: int) -> Memory:
        """A memory of the prefix, with room for `slots` more tokens."""
        prefix = self.conditioner(condition)
        rows, length = prefix.valid.shape
        memory = empty_memory(self.config, rows, length + slots, self.dtype)
        seen = prefix_visibility(length)
        _, new = self.transformer.extend(
            prefix.x.astype(self.dtype), prefix_places(length)[None], seen, prefix.valid, memory
        )
        memory = remember(memory, new, seen, prefix.valid)
        return memory._replace(offset=prefix.offset.astype(self.dtype))

    def raster_input(
        self,
        codes: Float[Array, "b m bits"],
        is_mark: Array | np.ndarray,
        level: Array | np.ndarray,
    ) -> Float[Array, "b m d"]:
        """Inputs of raster slots.

        Args:
            codes: of each slot's token; ignored at marks.
            is_mark: (m,) whether the slot is a mark.
            level: (m,) the slot's level.
        """
        assert self.marks is not None
        x = jnp.where(is_mark[None, :, None], self.marks[...][level], self.embed(codes))
        return (x + self.levels[...][level]).astype(self.dtype)

    def raster(self, codes: Codes, condition: Condition, layout: Layout) -> Hidden:
        """Hidden states that predict each token from all tokens before it.

        Args:
            codes: of all tokens.
            condition: of the rows.
            layout: of the clip.
        """
        slots = layout.slots
        used = len(slots.token) - 1  # Nothing follows the last token.
        token = np.maximum(slots.token[:used], 0)
        x = self.raster_input(codes[:, token], slots.token[:used] < 0, slots.level[:used])
        order = np.arange(used, dtype=np.int32)
        seen = Visibility(order, order + 1, np.full(used, -1, np.int32))
        hidden = self._beside_prefix(x, slots.places[:used], seen, condition)
        return hidden[:, slots.predicting]

    def masked(
        self, codes: Codes, share: Float[Array, " b"], condition: Condition, layout: Layout
    ) -> Hidden:
        """Hidden states of all tokens, each of which sees all of the clip.

        Args:
            codes: of all tokens, masked bits 0.
            share: of each row, the share of the tokens in question that are masked.
            condition: of the rows.
            layout: of the clip.
        """
        assert self.share is not None
        x = self.embed(codes) + self.levels[...][layout.level] + self.share(share)[:, None]
        seen = Visibility.of(layout.size, writes=NEVER, reads=0, part=0)
        return self._beside_prefix(x, layout.places, seen, condition)

    def blocks(
        self,
        codes: Codes,
        share: Float[Array, "b parts"],
        latents: tuple[Latent, ...],
        context: Latent,
        condition: Condition,
        layout: Layout,
    ) -> Hidden:
        """Hidden states of all tokens, all parts at once.

        A token sees its part, the prefix, and the latents of all groups before its own; of its own
        group it reads the latent of the coarser levels.

        Args:
            codes: of all tokens, masked bits 0.
            share: of each part, the share of its tokens that are masked.
            latents: of the first 1, 2, ... levels (`known_latents`); that of all is not read.
            context: the latent of finished groups.
            condition: of the rows.
            layout: of the clip.
        """
        assert self.reader is not None and self.share is not None
        x = self.embed(codes) + self.levels[...][layout.level] + self.share(share)[:, layout.part]
        coarse = [jnp.zeros((x.shape[0], layout.counts[0], x.shape[-1]))]
        for level in range(1, self.config.levels):
            found = self.reader.at_level(level, latents[level - 1].astype(jnp.float32))
            coarse.append(found.reshape(found.shape[0], -1, found.shape[-1]))
        x = x + jnp.concatenate(coarse, axis=1)
        # Parts in a row, so that blocks of keys can be skipped. Frame 0 has fewer tokens than all
        # others: behind them, these begin at multiples of their number.
        last = np.where(layout.group == 0, layout.part.max() + 1, 0)
        order = np.argsort(layout.part + last, kind="stable")
        back = np.argsort(order)
        past = np.arange(layout.groups - 1)
        words = self.context_input(context[:, : len(past)])
        count = words.shape[1] // max(len(past), 1)
        group = np.repeat(past, count).astype(np.int32)
        places = self.reader.places(self.config.levels, layout.latent_sides, past).reshape(-1, 4)
        seen = join(
            Visibility(
                np.full(layout.size, NEVER, np.int32), layout.group[order], layout.part[order]
            ),
            Visibility(group, group + 1, np.full(len(group), -1, np.int32)),
        )
        joined = jnp.concatenate([x[:, order].astype(self.dtype), words], axis=1)
        everywhere = np.concatenate([layout.places[order], places])
        hidden = self._beside_prefix(joined, everywhere, seen, condition, at=layout.size)
        return hidden[:, : layout.size][:, back]

    def context_input(self, latent: Latent) -> Float[Array, "b m d"]:
        """Context tokens of finished latent frames, frame after frame."""
        assert self.reader is not None
        words = self.reader.context(latent)
        b, g, n, d = words.shape
        words = words.reshape(b, g * n, d)
        return (words + self.levels[...][-1]).astype(self.dtype)

    def _beside_prefix(
        self, x: Array, places: np.ndarray, seen: Visibility, condition: Condition, at: int = 0
    ) -> Hidden:
        """Hidden states of tokens among which the prefix stands, before token `at`."""
        prefix: Prefix = self.conditioner(condition)
        length = prefix.valid.shape[1]
        x = (x + prefix.offset[:, None].astype(x.dtype)).astype(self.dtype)
        there = jnp.ones(x.shape[:2], bool)
        joined, valid = (
            jnp.concatenate([own[:, :at], added.astype(own.dtype), own[:, at:]], axis=1)
            for own, added in ((x, prefix.x), (there, prefix.valid))
        )
        everywhere = np.concatenate([places[:at], prefix_places(length), places[at:]])[None]
        before, after = Visibility(*(n[:at] for n in seen)), Visibility(*(n[at:] for n in seen))
        visibility = join(before, prefix_visibility(length), after)
        hidden = self.transformer(joined, everywhere, visibility, valid)
        return jnp.concatenate([hidden[:, :at], hidden[:, at + length :]], axis=1)


def narrowed(prior: Prior) -> Prior:
    """A copy whose transformer has its weights in the dtype of its activations, for sampling.

    Layers cast them to it at every use: samples are the same bit for bit, and a step reads half as
    much in bfloat16.
    """
    copy = nnx.clone(prior)
    weights = nnx.state(copy.transformer)
    nnx.update(copy.transformer, jax.tree.map(lambda x: x.astype(prior.dtype), weights))
    return copy


def prefix_visibility(length: int) -> Visibility:
    """Prefix tokens see one another and are seen by all."""
    return Visibility.of(length, writes=-1, reads=0)
