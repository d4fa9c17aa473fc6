"""The bridge between codes and the language model: shared code embedding, sequence, output head.

The visual part of the autoregressive sequence is <SOI>, q(1), <Q-SEP>, q(2), ..., q(L): levels in
order, tokens of a level in raster order (t, h, w). Every code is predicted from what comes
before it. Only what is in this module trains; the language model stays as it is.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from pyratok_jax.models.language.attention import mixed_positions
from pyratok_jax.models.pyratok.lfq import bits_to_ids, hard_sign, straight_through
from pyratok_jax.models.settings import HEADS, TARGETS
from pyratok_jax.nn.causal_conv import CausalConv3d
from pyratok_jax.nn.partitioning import constrain_batch_sharding, convolve

TEMPERATURE = 0.07  # at the start
_NO_SEPARATOR = -8.0  # logit of a separator in a fresh head
_PERIODS = (1, 2, 4)  # half waves of a clip's extent that tell a place


class VisualSequence(NamedTuple):
    """Inputs of the language model after the text, and what each of them predicts.

    Attributes:
        inputs: embeddings of <SOI>, the tokens and the separators, without the very last token.
        targets: the codes that come next, +-1; 0 where a separator comes next.
        separator: True where a separator comes next.
        level: index of the level that the next item belongs to (of the one that it closes, for a
            separator); -1 where nothing comes next.
        positions: M-RoPE positions from 0 on: grids for tokens, running numbers for the rest.
    """

    inputs: Float[Array, "b n d"]
    targets: Float[Array, "b n bits"]
    separator: Bool[np.ndarray, "n"]
    level: Int[np.ndarray, "n"]
    positions: Int[Array | np.ndarray, "3 n"]

    @property
    def predicts(self) -> Bool[np.ndarray, "n"]:
        """True where a code comes next.

        Separators are not predicted: their positions follow from the clip's size.
        """
        return (self.level >= 0) & ~self.separator

    def filled(self, multiple: int) -> "VisualSequence":
        """Right-padded to a multiple of `multiple` items; the causal mask hides the padding."""
        more = -self.level.size % multiple
        if not more:
            return self
        inputs, targets = (
            jnp.pad(x, ((0, 0), (0, more), (0, 0))) for x in (self.inputs, self.targets)
        )
        return VisualSequence(
            inputs,
            targets,
            np.pad(self.separator, (0, more)),
            np.pad(self.level, (0, more), constant_values=-1),
            jnp.pad(jnp.asarray(self.positions), ((0, 0), (0, more)), mode="edge"),
        )


def _places(grid: tuple[int, int, int]) -> Float[np.ndarray, "n k"]:
    """Waves over a grid's cells in raster order: cosine and sine along each axis."""
    axes = np.meshgrid(*((np.arange(n) + 0.5) / n for n in grid), indexing="ij")
    angles = np.pi * np.stack([period * x.reshape(-1) for x in axes for period in _PERIODS], axis=1)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def _apply_at(
    layer: CausalConv3d, x: Float[Array, "b t h w c"], chosen: Int[np.ndarray, " n"]
) -> Float[Array, "b n d"]:
    """The layer's outputs at the cells with the numbers `chosen`, in raster order."""
    kernel, bias = layer.weights(pad=False)
    window = kernel.shape[:3]
    sides = ((window[0] - 1, 0), *((n // 2, n // 2) for n in window[1:]))
    padded = jnp.pad(x, ((0, 0), *sides, (0, 0)))
    cells = np.stack(np.unravel_index(chosen, x.shape[1:4]), axis=1)
    offsets = np.stack(np.unravel_index(np.arange(math.prod(window)), window), axis=1)
    seen = np.ravel_multi_index(tuple((cells[:, None] + offsets).T), padded.shape[1:4]).T
    patches = padded.reshape(len(x), -1, x.shape[-1])[:, seen]
    return jnp.einsum("bnkc,kcd->bnd", patches, kernel.reshape(-1, *kernel.shape[3:])) + bias


class Alignment(nnx.Module):
    """Embedding E of codes in the language model's width, sequence markers, and the output head.

    E is one linear map for all levels plus an embedding of the level, into the language model's
    input space. A second map, a small MLP, leads from codes to the text space, that of the language
    model's standardised output states: text alignment losses and zero-shot similarities read it.
    With `text_neighbours` its hidden layer also reads the codes around each one, in space and time:
    the outline of a thing lies across tokens, not within one.

    The lookup-free head gives b bit logits and one for "a separator comes next": a probability for
    each of the 2^b codes and the separator, without a table. With logits z of the bits it is the
    softmax over all codes c of <z, c> / 2, exactly. The `softmax` head has a row per code.

    With `pooled_text` the caption reaches the codes in two ways: through the text that stands
    before them, as in the paper, and through a linear map of its pooled vector, which is added to
    every input of the visual part. The frozen model's attention was never trained to look from
    codes to words, and the first way alone is learned far more slowly (`docs/proof.md`). With
    `grid_places` an input also has the place of the code that comes next, of which a language model
    without M-RoPE knows no more than how many codes stand before it.
    """

    def __init__(
        self,
        bits: int,
        levels: int,
        language_width: int,
        *,
        rngs: nnx.Rngs,
        head: str = "lookup_free",
        scale: float = 0.1,
        text_hidden: int = 0,
        text_neighbours: bool = False,
        pooled_text: bool = False,
        grid_places: bool = False,
    ):
        """Build with random weights.

        Args:
            bits: bits per code.
            levels: levels of the tokenizer.
            language_width: width of the language model.
            rngs: for the parameters.
            head: "lookup_free" or "softmax".
            scale: root mean square of a fresh E(q); the language model's own embeddings have about
                0.1 (SmolLM2), and its first norm takes out the rest.
            text_hidden: hidden units of the map into the text space; 0: there is none, E is used
                (checkpoints from before it).
            text_neighbours: the hidden units also read the codes around each one, 3x3 of its own
                and the two earlier times, by each level's convolution, which starts at zero.
            pooled_text: add a map of the pooled caption, which starts at zero, to the inputs.
            grid_places: add a map of where the next code lies, which starts at zero, to the inputs.
        """
        if head not in HEADS:
            raise ValueError(f"head {head!r}: expected one of {', '.join(HEADS)}")
        self.bits, self.levels, self.head_kind = bits, levels, head

        def normal(shape: tuple[int, ...], size: float) -> nnx.Param:
            return nnx.Param(size * jax.random.normal(rngs.params(), shape))

        self.embedding = normal((bits, language_width), scale * bits**-0.5)
        self.level = normal((levels, language_width), 0.1 * scale)
        self.soi = normal((language_width,), scale)
        self.separator = normal((language_width,), scale)
        # Zero, so that training starts at chance: final states of a language model have outlier
        # features in the hundreds, which any random head would turn into sure predictions.
        zeros = nnx.initializers.zeros_init()
        outputs = bits + 1 if head == "lookup_free" else 2**bits + 1
        self.head = nnx.Linear(language_width, outputs, kernel_init=zeros, rngs=rngs)
        if head == "lookup_free":
            assert self.head.bias is not None
            self.head.bias[...] = self.head.bias[...].at[-1].set(_NO_SEPARATOR)

        def from_zero(features: int) -> nnx.Linear:
            return nnx.Linear(
                features, language_width, use_bias=False, kernel_init=zeros, rngs=rngs
            )

        self.caption = from_zero(language_width) if pooled_text else None
        self.place = from_zero(6 * len(_PERIODS)) if grid_places else None
        self.text_hidden = text_hidden
        if text_hidden:
            self.text_in = normal((bits, text_hidden), bits**-0.5)
            self.text_level = normal((levels, text_hidden), 0.5)
            self.text_out = normal((text_hidden, language_width), text_hidden**-0.5)
            self.log_temperature = nnx.Param(jnp.log(jnp.float32(TEMPERATURE)))
        near = levels if text_neighbours and text_hidden else 0
        self.text_near = nnx.List(
            CausalConv3d(bits, text_hidden, (3, 3, 3), rngs=rngs, use_bias=False)
            for _ in range(near)
        )
        for layer in self.text_near:
            layer.kernel[...] = jnp.zeros_like(layer.kernel[...])

    @property
    def arguments(self) -> dict[str, int | str | bool]:
        """Of `__init__`: what a tokenizer's description keeps."""
        return {
            "bits": self.bits,
            "levels": self.levels,
            "language_width": self.head.in_features,
            "head": self.head_kind,
            "text_hidden": self.text_hidden,
            "text_neighbours": bool(self.text_near),
            "pooled_text": self.caption is not None,
            "grid_places": self.place is not None,
        }

    def embed(self, q: Float[Array, "b *n bits"], level: int) -> Float[Array, "b *n d"]:
        """E(q) of codes (or of soft codes) of one level, float32."""
        # Unconstrained, the compiler shards the result by width, as the embedding is, and then
        # all-gathers gigabytes for a softmax over it.
        return constrain_batch_sharding(
            q.astype(jnp.float32) @ self.embedding[...] + self.level[...][level]
        )

    def text_embed(
        self,
        q: Float[Array, "b t h w bits"],
        level: int,
        chosen: Int[np.ndarray, " n"] | None = None,
    ) -> Float[Array, "b t h w d"] | Float[Array, "b n d"]:
        """Codes (or soft codes) of one level in the text space, float32.

        Args:
            q: of the whole clip, since tokens are read with their neighbours.
            level: which one.
            chosen: numbers, in raster order, of the tokens that are wanted; None: all.
        """
        near = self.text_near[level] if self.text_near else None
        if chosen is None:
            around = 0.0 if near is None else convolve(near, q.astype(jnp.float32))
        else:
            # Of a long clip few tokens are wanted, and no hidden units of the others.
            around = 0.0 if near is None else _apply_at(near, q.astype(jnp.float32), chosen)
            q = q.reshape(len(q), -1, q.shape[-1])[:, chosen]
        if not self.text_hidden:
            return self.embed(q, level)
        hidden = q.astype(jnp.float32) @ self.text_in[...] + self.text_level[...][level] + around
        return constrain_batch_sharding(jax.nn.gelu(hidden) @ self.text_out[...])

    @property
    def temperature(self) -> Float[Array, ""]:
        """Of the contrastive text term; learned, at least .01."""
        if not self.text_hidden:
            return jnp.float32(TEMPERATURE)
        return jnp.exp(jnp.maximum(self.log_temperature[...], jnp.log(0.01)))

    def sequence(
        self,
        codes: tuple[Float[Array, "b _t _h _w bits"], ...],
        chosen: tuple[Int[Array | np.ndarray, "_n"] | None, ...] | None = None,
        *,
        targets: str = "fixed",
        caption: Float[Array, "b d"] | None = None,
    ) -> VisualSequence:
        """The visual part of the sequence.

        Args:
            codes: of all levels.
            chosen: for each level the numbers, in raster order, of the tokens that are in the
                sequence, with their places in the whole clip; None: all.
            targets: "fixed", or "straight_through": the gradient of the loss reaches the codes as
                targets too, and so makes them predictable.
            caption: a vector per caption in the text space, of any length but 0; zeros where there
                is none. Read with `pooled_text` alone.

        Raises:
            ValueError: other targets, straight-through ones for the softmax head, which reads
                ids, or no `caption` with `pooled_text`.
        """
        if targets not in TARGETS:
            raise ValueError(f"targets {targets!r}: expected one of {', '.join(TARGETS)}")
        if targets == "straight_through" and self.head_kind == "softmax":
            raise ValueError("targets straight_through need the head lookup_free")
        chosen = chosen or (None,) * len(codes)
        batch = codes[0].shape[0]
        soi = jnp.broadcast_to(self.soi[...], (batch, 1, self.soi.shape[0]))
        separator = jnp.broadcast_to(self.separator[...], soi.shape)
        nothing = jnp.zeros((batch, 1, self.bits))
        inputs, wanted, marks, owner = [soi], [], [], []
        where = []
        parts: list[int | tuple[int, int, int]] = [1]
        kept: list[Array | np.ndarray] = [np.zeros(1, np.int32)]
        length = 1
        for index, (q, some) in enumerate(zip(codes, chosen, strict=True)):
            if index:
                inputs.append(separator)
                wanted.append(nothing)
                where.append(jnp.zeros((1, 6 * len(_PERIODS))))
                marks.append([True])
                owner.append([index - 1])
                parts.append(1)
                kept.append(np.array([length]))
                length += 1
            flat = q.reshape(batch, -1, self.bits)
            numbers = np.arange(flat.shape[1]) if some is None else some
            kept.append(length + numbers)
            length += flat.shape[1]
            grid = (q.shape[1], q.shape[2], q.shape[3])
            where.append(jnp.take(jnp.asarray(_places(grid)), jnp.asarray(numbers), axis=0))
            if some is not None:
                flat = jnp.take(flat, jnp.asarray(some), axis=1)
            inputs.append(self.embed(flat, index))
            exact = hard_sign(flat.astype(jnp.float32))
            wanted.append(
                straight_through(exact, flat.astype(jnp.float32))
                if targets == "straight_through"
                else jax.lax.stop_gradient(exact)
            )
            marks.append([False] * flat.shape[1])
            owner.append([index] * flat.shape[1])
            parts.append(grid)
        places = jnp.concatenate([jnp.asarray(x) for x in kept])[:-1]
        return VisualSequence(
            self._told(jnp.concatenate(inputs, axis=1)[:, :-1], caption, jnp.concatenate(where)),
            jnp.concatenate(wanted, axis=1),
            np.concatenate(marks).astype(bool),
            np.concatenate(owner).astype(np.int32),
            jnp.take(jnp.asarray(mixed_positions(parts)), places, axis=1),
        )

    def _told(
        self,
        inputs: Float[Array, "b n d"],
        caption: Float[Array, "b d"] | None,
        where: Float[Array, "n k"],
    ) -> Float[Array, "b n d"]:
        """The inputs with what the caption says, and the next code's place, added to each."""
        if self.place is not None:
            inputs = inputs + self.place(where)
        if self.caption is None:
            return inputs
        if caption is None:
            raise ValueError("this alignment adds the pooled caption to its inputs: give caption")
        # At unit length: features that were not standardised yet can be in the hundreds.
        caption = jax.lax.stop_gradient(caption)
        length = jnp.sqrt(jnp.sum(jnp.square(caption), axis=-1, keepdims=True))
        told = self.caption(caption / jnp.maximum(length, 1e-6))
        return inputs + constrain_batch_sharding(told)[:, None]

    def cross_entropy(
        self,
        hidden: Float[Array, "b n d"],
        targets: Float[Array, "b n bits"],
        separator: Bool[np.ndarray, "n"] | Bool[Array, "n"],
    ) -> Float[Array, "b n"]:
        """-log p of every next item in nats, float32, given the states that predict them."""
        logits = self.head(hidden.astype(jnp.float32))
        if self.head_kind == "softmax":
            ids = bits_to_ids(targets).astype(jnp.int32)
            ids = jnp.where(separator, 2**self.bits, ids)
            chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
            return jax.nn.logsumexp(logits, axis=-1) - chosen
        bits, mark = logits[..., :-1], logits[..., -1]
        code = jax.nn.softplus(mark) + jnp.sum(jax.nn.softplus(-targets * bits), axis=-1)
        return jnp.where(separator, jax.nn.softplus(-mark), code)

    def predicted_bits(self, hidden: Float[Array, "b n d"]) -> Float[Array, "b n bits"]:
        """The most likely code after each state, +-1."""
        logits = self.head(hidden.astype(jnp.float32))
        if self.head_kind == "lookup_free":
            return hard_sign(logits[..., :-1])
        best = jnp.argmax(logits[..., :-1], axis=-1)
        shifts = jnp.arange(self.bits - 1, -1, -1)
        return jnp.where((best[..., None] >> shifts) & 1 == 1, 1.0, -1.0)
