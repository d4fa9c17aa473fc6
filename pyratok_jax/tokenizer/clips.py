"""Clips of any size through a tokenizer: padding, cropping and rate in one place."""

import abc
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8, UInt32

from pyratok_jax.data.padding import ClipSizes, Padding
from pyratok_jax.errors import UserError
from pyratok_jax.models.language.model import TextEncoder
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.pyratok.flips import Flips
from pyratok_jax.nn.text_attention import TextCondition

Captions = str | Sequence[str | None] | TextCondition | None
Ids = tuple[UInt32[np.ndarray, "*b _t _h _w"], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedClip:
    """Token ids of a clip, or of a batch of clips of one size, and how to crop what they decode to.

    Attributes:
        ids: uint32 (t, h, w) of every level, coarse to fine; (b, t, h, w) for a batch.
        padding: true and padded size of each clip.
        bits_per_token: see `PyraTokConfig.bits_per_token`.
    """

    ids: Ids
    padding: Padding
    bits_per_token: int

    @property
    def batched(self) -> bool:
        """Whether this is a batch."""
        return self.ids[0].ndim == 4

    @property
    def batch(self) -> Ids:
        """The ids with a batch axis, for a single clip too."""
        return self.ids if self.batched else tuple(level[None] for level in self.ids)

    @property
    def tokens(self) -> int:
        """Number of tokens, all levels and clips together."""
        return sum(level.size for level in self.ids)

    @property
    def pixels(self) -> int:
        """Pixels of the true (unpadded) clips."""
        return self.padding.pixels * (len(self.ids[0]) if self.batched else 1)

    @property
    def bits(self) -> int:
        """Raw size of the tokens."""
        return self.tokens * self.bits_per_token

    @property
    def bits_per_pixel(self) -> float:
        """Raw rate over the true pixels."""
        return self.bits / self.pixels


def mean_bits_per_pixel(clips: Sequence[EncodedClip]) -> float:
    """Raw rate of several clips: all their bits over all their true pixels."""
    return sum(clip.bits for clip in clips) / sum(clip.pixels for clip in clips)


@runtime_checkable
class TokenizerLike(Protocol):
    """What exporting, evaluating and reporting need of a tokenizer; see `Tokenizer`."""

    checkpoint_hash: str
    folder: Path | None
    text: TextEncoder | None

    @property
    def config(self) -> PyraTokConfig:
        """Sizes."""
        ...

    @property
    def temporal_factor(self) -> int:
        """Padded clips have 1 + a multiple of this many frames."""
        ...

    @property
    def spatial_multiple(self) -> int:
        """Padded sides are multiples of this."""
        ...

    def rows_multiple(self, devices: int) -> int:
        """What padded heights must be a multiple of when `devices` share a frame."""
        ...

    def padding(self, frames: int, height: int, width: int) -> Padding:
        """How `encode` pads a clip of that size."""
        ...

    def encode(self, video: np.ndarray, captions: Captions = None) -> EncodedClip:
        """Token ids of a clip or batch of any size."""
        ...

    def decode(self, encoded: EncodedClip) -> np.ndarray:
        """Video of token ids, cropped to its true size."""
        ...

    def encode_padded(self, video: np.ndarray, captions: Captions = None) -> Ids:
        """Token ids of a batch that has a padded size already."""
        ...

    def check_flips(self) -> None:
        """Refuse to flip bits where no level would correct them."""
        ...

    def encode_flipped(
        self, video: np.ndarray, captions: Captions, flips: Flips
    ) -> tuple[Ids, Ids]:
        """Token ids given flipped coarser levels, and all levels as flipped."""
        ...

    def decode_padded(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        """Video of a batch's token ids, of the padded size."""
        ...

    def code_embeddings(self, ids: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """E(q) of every level of a batch."""
        ...


def tokenizer_sizes(config: PyraTokConfig) -> ClipSizes:
    """Which sizes of clips a tokenizer with whole frames on a device takes."""
    return ClipSizes(config.vae.temporal_factor, config.spatial_multiple)


class ClipTokenizer(abc.ABC):
    """Clips of any size, by a subclass that encodes and decodes padded batches."""

    config: PyraTokConfig

    @abc.abstractmethod
    def encode_padded(
        self, video: UInt8[np.ndarray, "b t h w 3"], captions: Captions = None
    ) -> Ids:
        """Token ids uint32 (b, t, h, w) of every level of a batch of padded clips."""

    def check_flips(self) -> None:
        """Refuse to flip bits where no level would correct them.

        Raises:
            UserError: levels that do not see one another, or codes that are not all valid.
        """
        raise UserError("--flip: this tokenizer does not quantise again after flips")

    def encode_flipped(
        self, video: UInt8[np.ndarray, "b t h w 3"], captions: Captions, flips: Flips
    ) -> tuple[Ids, Ids]:
        """Token ids of a padded batch while bits are flipped between the levels.

        Args:
            video, captions: as for `encode_padded`.
            flips: of each clip, whatever else is in the batch.

        Returns:
            ids of every level given the flipped coarser ones, and all levels as flipped.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def decode_padded(self, ids: Sequence[np.ndarray]) -> UInt8[np.ndarray, "b t h w 3"]:
        """Video of token ids of all levels of a batch."""

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame; padded clips have 1 + a multiple of it."""
        return self.config.vae.temporal_factor

    @property
    def spatial_multiple(self) -> int:
        """What padded sides are multiples of."""
        return self.config.spatial_multiple

    @property
    def clip_sizes(self) -> ClipSizes:
        """Which sizes of clips `encode_padded` takes."""
        return ClipSizes(self.temporal_factor, self.spatial_multiple)

    def rows_multiple(self, devices: int) -> int:
        """What padded heights must be a multiple of when `devices` share a frame."""
        if devices == 1:
            return self.config.spatial_multiple
        return math.lcm(self.config.spatial_multiple, self.config.latent_stride[1] * devices)

    def padding(self, frames: int, height: int, width: int) -> Padding:
        """How `encode` pads a clip of that size.

        Raises:
            ValueError: an empty clip.
        """
        return self.clip_sizes.padding(frames, height, width)

    def encode(
        self, video: UInt8[np.ndarray, "*b t h w 3"], captions: Captions = None
    ) -> EncodedClip:
        """Token ids of a clip of any size, or of a batch of clips of one size.

        Args:
            video: (t, h, w, 3), or (b, t, h, w, 3); padded by repeating edges.
            captions: of one clip its caption; of a batch one per clip (None: that clip has none);
                or their embeddings. None: no captions.

        Raises:
            ValueError: an empty clip, another number of axes, or other than one caption per clip.
            TypeError: pixels that are not uint8.
        """
        video = np.asarray(video)
        if video.ndim not in (4, 5) or video.shape[-1] != 3:
            raise ValueError(f"expected (t, h, w, 3) or (b, t, h, w, 3), got shape {video.shape}")
        if video.dtype != np.uint8:
            raise TypeError(f"expected uint8 pixels, got {video.dtype}")
        single = video.ndim == 4
        if captions is None or isinstance(captions, str):
            captions = [captions] * (1 if single or captions is not None else len(video))
        clips = video[None] if single else video
        rows = len(captions.mask) if isinstance(captions, TextCondition) else len(captions)
        if rows != len(clips):
            raise ValueError(f"{rows} captions for {len(clips)} clips")
        padded, padding = self.clip_sizes.pad(clips)
        ids = self.encode_padded(padded, captions)
        if single:
            ids = tuple(level[0] for level in ids)
        return EncodedClip(ids, padding, self.config.bits_per_token)

    def decode(self, encoded: EncodedClip) -> UInt8[np.ndarray, "*b t h w 3"]:
        """Video of token ids, cropped to its true size; a batch where it was encoded as one."""
        video = encoded.padding.crop(self.decode_padded(encoded.batch))
        return video if encoded.batched else video[0]

    def reconstruct(
        self, video: UInt8[np.ndarray, "*b t h w 3"], captions: Captions = None
    ) -> UInt8[np.ndarray, "*b t h w 3"]:
        """`decode(encode(video, captions))`."""
        return self.decode(self.encode(video, captions))
