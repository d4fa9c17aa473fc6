"""The interface of a quantiser: encoder features to levels of codes, codes back to the latent.

A quantiser is a subclass of `Quantizer`, a frozen dataclass that holds its sizes, and one line in
`quantizers.registry`. Nothing else in the package names it.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pyratok_jax.models.pyratok.flips import Flips
from pyratok_jax.models.pyratok.inputs import InputsByLevel
from pyratok_jax.models.pyratok.quantizers.registry import quantizer_kind
from pyratok_jax.nn.settings import Stride
from pyratok_jax.nn.stream_cache import StreamCache
from pyratok_jax.nn.text_attention import TextCondition

Latent = Float[Array, "b t h w z"]
Latents = Sequence[Float[Array | np.ndarray, "b t h w z"]]
Codes = tuple[Float[Array, "b _t _h _w bits"], ...]
Stages = tuple[Array, ...]  # Outputs of all encoder stages.
Text = TextCondition | None
Cache = StreamCache | None
Key = PRNGKeyArray | None
StoredStages = Sequence[tuple[Array | np.ndarray, ...]]
Root = Float[np.ndarray, "z z"] | None  # Of the latent's metric (`square_root`).


class Level(NamedTuple):
    """What one level gives: logits, codes, and the code distribution predicted from the text.

    Attributes:
        z: logits, float32; the bit j is +1 where z_j >= 0. The features to be quantised, where a
            codebook of vectors is used.
        q: codes, exactly -1 or +1, with straight-through gradient.
        text_logits: bit logits predicted from the text alone (alignment term 4), same shape.
        vectors: the chosen vectors of a codebook, shaped as `z`; None for lookup-free levels.
        read: `q` with bits flipped, as later levels saw it; None where none were flipped.
    """

    z: Float[Array, "b t h w bits"]
    q: Float[Array, "b t h w bits"]
    text_logits: Float[Array, "b t h w bits"]
    vectors: Float[Array, "b t h w d"] | None = None
    read: Float[Array, "b t h w bits"] | None = None


Quantized = tuple[tuple[Level, ...], Latent]


class Inputs(NamedTuple):
    """What is quantised.

    Attributes:
        stages: outputs of all encoder stages.
        target: the normalised latent that the codes approximate.
        text: captions; None switches text guidance off.
        cache: state of a clip that is quantised in chunks (only if `Quantizer.streams`).
        key: of what is dropped at random in training; None drops nothing.
        flips: bits of each level's codes that are flipped before later levels see them (only if
            `Quantizer.requantizes`); the latent is then that of the flipped codes.
    """

    stages: Stages
    target: Latent
    text: Text
    cache: Cache = None
    key: Key = None
    flips: Flips | None = None


class FitData(NamedTuple):
    """What a quantiser is fitted to, and how.

    Attributes:
        latents: normalised; their time and space sizes must suit the grids.
        stages: outputs of all encoder stages for each of `latents`; needed where a level has no
            linear path from the latent to its logits (`inputs`).
        root: R, where an error e of a latent position counts |e R|^2; None weights all channels
            equally.
        seed: of rotations, samples and first centres.
        steps: of gradient descent, where there is one; 0 keeps the closed form.
        kept: first levels that stay as they are; only a quantiser with `level_parts` keeps any.
        text: one row, what kept levels attend to in every clip; None: they attend to nothing.
    """

    latents: Latents
    stages: StoredStages | None = None
    root: Root = None
    seed: int = 0
    steps: int = 300
    kept: int = 0
    text: Text = None

    @property
    def metric_root(self) -> Float[np.ndarray, "z z"]:
        """`root`, or the identity."""
        return np.eye(self.latents[0].shape[-1]) if self.root is None else self.root


@runtime_checkable
class VAESizes(Protocol):
    """What a quantiser reads of the video VAE's configuration."""

    @property
    def z_dim(self) -> int:
        """Channels of the latent."""
        ...

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each encoder stage's output."""
        ...

    @property
    def stage_strides(self) -> tuple[Stride, ...]:
        """(time, space) stride in pixels of each encoder stage's output."""
        ...


@runtime_checkable
class TokenizerSizes(Protocol):
    """What a quantiser reads of the tokenizer's configuration (`PyraTokConfig`, see there)."""

    @property
    def vae(self) -> VAESizes: ...  # noqa: D102
    @property
    def quantizer(self) -> str: ...  # noqa: D102
    @property
    def grids(self) -> tuple[Stride, ...]: ...  # noqa: D102
    @property
    def level_stages(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def inputs_by_level(self) -> InputsByLevel: ...  # noqa: D102
    @property
    def latent_stride(self) -> Stride: ...  # noqa: D102
    @property
    def bits(self) -> int: ...  # noqa: D102
    @property
    def vocabulary(self) -> int | None: ...  # noqa: D102
    @property
    def surrogate(self) -> str: ...  # noqa: D102
    @property
    def code_width(self) -> int: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def heads(self) -> int: ...  # noqa: D102
    @property
    def text_width(self) -> int: ...  # noqa: D102
    @property
    def text_guidance(self) -> bool: ...  # noqa: D102
    @property
    def synthesis_width(self) -> int: ...  # noqa: D102


class Quantizer(nnx.Module, abc.ABC):
    """Base class of quantisers. The constructor takes (config, *, rngs, dtype).

    `quantize` must hand on `synthesize` of the very codes that it returns: the decoder sees what a
    file of tokens gives back, to the bit.

    Attributes:
        reads_stages: whether each level reads an encoder stage; otherwise the latent alone.
        makes_tokens: whether there are codes at all.
        streams: whether clips can be quantised in chunks with carried caches.
        has_bit_logits: whether `Level.z` are logits of independent bits, for which the entropy,
            hierarchy and text terms of the objective are defined.
        builds_up: whether each level adds to the latent of the levels before it, so that the first
            ones alone give a coarser picture (`synthesize_first`).
        level_parts: attributes that are lists of one module per level; (): levels share arrays.
    """

    reads_stages: ClassVar[bool] = False
    makes_tokens: ClassVar[bool] = True
    streams: bool = False
    has_bit_logits: ClassVar[bool] = True
    builds_up: ClassVar[bool] = False
    level_parts: ClassVar[tuple[str, ...]] = ()

    @property
    def requantizes(self) -> bool:
        """Whether later levels correct what flipped bits of earlier ones spoil (`Inputs.flips`)."""
        return False

    def __call__(
        self,
        stages: Stages,
        target: Latent,
        text: Text,
        cache: Cache = None,
        key: Key = None,
        flips: Flips | None = None,
    ) -> Quantized:
        """`quantize` of these `Inputs`.

        Raises:
            ValueError: bits are to be flipped where levels do not see one another, or in chunks of
                a clip, whose place in the whole of it is not known.
        """
        if flips is not None and not self.requantizes:
            raise ValueError(f"{type(self).__name__}: no level sees the codes of an earlier one")
        if flips is not None and cache is not None:
            raise ValueError("bits are flipped in whole clips alone, not in chunks of one")
        return self.quantize(Inputs(stages, target, text, cache, key, flips))

    @abc.abstractmethod
    def quantize(self, inputs: Inputs) -> Quantized:
        """Levels, coarse to fine, and the normalised latent that their codes synthesise."""

    @abc.abstractmethod
    def synthesize(self, codes: Codes, cache: Cache = None) -> Latent:
        """Normalised latent of the codes of all levels; with a cache, of one chunk of a clip."""

    def synthesize_first(self, codes: Codes, levels: Int[Array, ""]) -> Latent:
        """Normalised latent of the first `levels` levels alone; the codes of the others are unread.

        Raises:
            ValueError: a quantiser that does not `builds_up`.
        """
        raise ValueError(f"{type(self).__name__} has no latent of its first levels alone")

    def fit(
        self,
        latents: Latents,
        *,
        stages: StoredStages | None = None,
        root: Root = None,
        seed: int = 0,
        steps: int = 300,
        kept: int = 0,
        text: Text = None,
    ) -> list[float]:
        """`fit_to` this `FitData`.

        Raises:
            ValueError: levels are to be kept that share arrays with the others.
        """
        if kept and not self.level_parts:
            raise ValueError(f"{type(self).__name__} cannot keep levels: they share arrays")
        return self.fit_to(FitData(latents, stages, root, seed, steps, kept, text))

    @abc.abstractmethod
    def fit_to(self, data: FitData) -> list[float]:
        """Fit a fresh quantiser to normalised latents of real clips, in place.

        Returns:
            share of the latents' energy, by the root's metric, that is left: after each level, or
            one number after all of them.

        Raises:
            ValueError: `stages` is needed and not given.
        """

    def commitment(self, level: Level) -> Float[Array, ""]:
        """The commitment term of one level; see `sign_commitment`."""
        return sign_commitment(level.z, level.q)


def sign_commitment(z: Float[Array, "*n bits"], q: Float[Array, "*n bits"]) -> Float[Array, ""]:
    """Mean over tokens and bits of (z - sg(q))^2: the code is held fixed."""
    return jnp.mean((z.astype(jnp.float32) - jax.lax.stop_gradient(q)) ** 2)


@dataclasses.dataclass(frozen=True)
class LatentSizes:
    """Sizes that all quantisers of the final latent have.

    Attributes:
        channels: of the latent.
        patch: latent positions per token, along rows and columns.
        depth: levels.
        bits: bits per token.
        vocabulary: number of valid codes; None means 2^bits.
        hidden: channels of the smoothing convolution.
    """

    channels: int
    patch: int
    depth: int
    bits: int
    vocabulary: int | None
    hidden: int


def check_latent_grids(sizes: TokenizerSizes, *, several_levels: bool) -> None:
    """Refuse grids that a quantiser of the final latent alone cannot have.

    Raises:
        ValueError: unequal grids, a time stride that is not the latent's, or too many levels.
    """
    name, grids, latent_stride = sizes.quantizer, sizes.grids, sizes.latent_stride
    if len(set(grids)) != 1 or grids[0][0] != latent_stride[0]:
        raise ValueError(
            f"quantizer {name} needs the same grid at every level, with the latent's time stride "
            f"of {latent_stride[0]}: grids={(latent_stride,) * len(grids)} for example, not {grids}"
        )
    if len(grids) > 1 and not several_levels:
        raise ValueError(f"quantizer {name} has one level, but grids names {len(grids)}")


def latent_sizes(sizes: TokenizerSizes) -> dict[str, Any]:
    """The fields of `LatentSizes` of a tokenizer."""
    return {
        "channels": sizes.vae.z_dim,
        "patch": sizes.grids[0][1] // sizes.latent_stride[1],
        "depth": len(sizes.grids),
        "bits": sizes.bits,
        "vocabulary": sizes.vocabulary,
        "hidden": sizes.synthesis_width,
    }


def build_quantizer(
    sizes: TokenizerSizes, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
) -> Quantizer:
    """The quantiser that `sizes.quantizer` names, with random weights.

    Raises:
        ValueError: no such quantiser, or sizes that it cannot have.
    """
    kind = quantizer_kind(sizes.quantizer)
    build: Callable[..., Quantizer] = kind.quantizer
    return build(kind.config(sizes), rngs=rngs, dtype=dtype)
