"""`Tokenizer`: a trained `PyraTok` with its text encoder, on arrays of the host."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree, UInt8

from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.data.padding import Padding
from pyratok_jax.errors import UserError
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.language.model import TextEncoder
from pyratok_jax.models.pyratok.flips import Flips
from pyratok_jax.models.pyratok.lfq import ids_to_bits
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.nn.text_attention import TextCondition
from pyratok_jax.tokenizer.clips import Captions, ClipTokenizer, EncodedClip, Ids
from pyratok_jax.tokenizer.programs import Programs


class Segment(NamedTuple):
    """Frames of a long clip, their reconstruction, and token ids (1, t, h, w) per level."""

    frames: UInt8[np.ndarray, "t h w 3"]
    reconstruction: UInt8[np.ndarray, "t h w 3"]
    ids: Ids


class Tokenizer(ClipTokenizer):
    """Video to token ids and back.

    `decode(encode(video))` is the reconstruction everywhere; it is the same, bit for bit, after
    the ids went through a file.
    """

    def __init__(
        self,
        model: PyraTok,
        *,
        text: TextEncoder | None = None,
        captions: CaptionTokenizer | None = None,
        alignment: Alignment | None = None,
        checkpoint_hash: str = "",
        folder: Path | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Wrap the modules.

        Args:
            model: its arrays are taken as they are now.
            text: language model that embeds captions; without it every caption counts as none.
            captions: its word tokenizer.
            alignment: code embeddings in the language model's width.
            checkpoint_hash: identifies all weights.
            folder: the working folder that it was loaded from.
            devices: share the height of every frame; None: the default device has whole frames.
        """
        self.model, self.config = model, model.config
        self.text, self.captions, self.alignment = text, captions, alignment
        self.checkpoint_hash, self.folder = checkpoint_hash, folder
        self._programs = Programs.build(model, devices)
        self._embed: Callable[[Array, Array], TextCondition] | None = None
        if text is not None:
            text_graph, text_state = nnx.split(text)
            run = jax.jit(lambda state, ids, mask: nnx.merge(text_graph, state)(ids, mask))
            self._embed = functools.partial(run, text_state)

    def split_rows(self, devices: Sequence[jax.Device]) -> "Tokenizer":
        """This tokenizer with the height of every frame sharded over devices, for 4K and 8K.

        The VAE runs with halo exchange (`nn.partitioning`): no device holds a whole frame, and
        there are no seams. Values differ from the plain tokenizer's by rounding, so that a rare
        code may. `encode` pads to `rows_multiple(len(devices))`.

        Raises:
            UserError: in `encode_padded` and `decode`, for other padded heights.
        """
        return type(self)(
            self.model,
            text=self.text,
            captions=self.captions,
            alignment=self.alignment,
            checkpoint_hash=self.checkpoint_hash,
            folder=self.folder,
            devices=devices,
        )

    @property
    def spatial_multiple(self) -> int:
        """What padded sides are multiples of."""
        return self.rows_multiple(self._programs.devices)

    def _check_height(self, height: int) -> None:
        """Refuse a padded height that does not split over the devices."""
        devices = self._programs.devices
        if devices > 1 and height % self.rows_multiple(devices):
            raise UserError(
                f"a padded height of {height} does not split over {devices} devices, it must be a "
                f"multiple of {self.rows_multiple(devices)}; take fewer devices (--spatial), or "
                "tokens that were made for as many"
            )

    def embed(self, captions: Sequence[str | None]) -> TextCondition | None:
        """Text embeddings (b, l, d) of captions; None where there is no text encoder.

        A batch without any caption skips the language model; the levels see the learned null
        embedding, as they do in a mixed batch.
        """
        if self._embed is None or self.captions is None:
            return None
        ids, mask = self.captions(list(captions))
        if not mask.any():
            zeros = jnp.zeros((*ids.shape, self.config.text_width), jnp.float32)
            return TextCondition(zeros, jnp.asarray(mask))
        text = self._embed(jnp.asarray(ids), jnp.asarray(mask))
        return TextCondition(text.embeddings.astype(jnp.float32), text.mask)

    def encode_padded(
        self, video: UInt8[np.ndarray, "b t h w 3"], captions: Captions = None
    ) -> Ids:
        """Token ids uint32 (b, t, h, w) of every level of a batch that has a padded size.

        Args:
            video: 1 + a multiple of `temporal_factor` frames, sides multiples of
                `spatial_multiple`.
            captions: one per clip, or their embeddings; None: no captions.

        Raises:
            ValueError: a size that does not fit.
            UserError: a height that does not split over the devices.
        """
        self._check_height(video.shape[2])
        ids = self._programs.tokenize(jnp.asarray(video), self._text(captions, len(video)))
        return tuple(np.asarray(level) for level in ids)

    def _text(self, captions: Captions, clips: int) -> TextCondition | None:
        if captions is None or isinstance(captions, str):
            captions = [captions] * clips
        return captions if isinstance(captions, TextCondition) else self.embed(captions)

    def check_flips(self) -> None:
        """See `ClipTokenizer.check_flips`."""
        if not self.model.quantizer.requantizes:
            raise UserError(
                f"--flip: no level of quantizer {self.config.quantizer} is quantised again after "
                "flips in an earlier one, so that none is corrected; export without it"
            )
        if self.config.vocabulary_size != 2**self.config.bits:
            raise UserError(
                f"--flip: {self.config.vocabulary_size} of {2**self.config.bits} codes are valid, "
                "and a flipped bit could give another; export without it"
            )

    def encode_flipped(
        self, video: UInt8[np.ndarray, "b t h w 3"], captions: Captions, flips: Flips
    ) -> tuple[Ids, Ids]:
        """See `ClipTokenizer.encode_flipped`."""
        self._check_height(video.shape[2])
        asked = Flips(jnp.asarray(flips.keys), jnp.float32(flips.rate))
        text = self._text(captions, len(video))
        found = self._programs.tokenize_flipped(jnp.asarray(video), text, asked)
        ids, read = (tuple(np.asarray(level) for level in levels) for levels in found)
        return ids, read

    def decode_padded(self, ids: Sequence[np.ndarray]) -> UInt8[np.ndarray, "b t h w 3"]:
        """Video of token ids (b, t, h, w) of all levels.

        Raises:
            UserError: a height that does not split over the devices.
        """
        self._check_height(ids[0].shape[2] * self.config.grids[0][1])
        levels = tuple(jnp.asarray(level, jnp.uint32) for level in ids)
        return np.asarray(self._programs.detokenize(levels))

    @property
    def builds_up(self) -> bool:
        """Whether there are several levels, the first of which alone give a coarser picture."""
        return self.model.quantizer.builds_up and len(self.config.grids) > 1

    def decode_first(self, encoded: EncodedClip, levels: int) -> UInt8[np.ndarray, "*b t h w 3"]:
        """Reconstruction from the first levels alone, cropped like `decode`.

        Raises:
            ValueError: not between 1 and all levels, or a tokenizer that does not `builds_up`.
        """
        if not 1 <= levels <= len(self.config.grids):
            raise ValueError(f"{levels} levels of {len(self.config.grids)}")
        ids = tuple(jnp.asarray(level, jnp.uint32) for level in encoded.batch)
        video = np.asarray(self._programs.detokenize_first(ids, jnp.asarray(levels)))
        video = encoded.padding.crop(video)
        return video if encoded.batched else video[0]

    def decode_next(
        self, ids: Sequence[np.ndarray], caches: PyTree = None
    ) -> tuple[UInt8[np.ndarray, "b t h w 3"], PyTree]:
        """`decode_padded` of the next tokens of a clip, and the caches for those after them.

        Args:
            ids: (b, t, h, w) of every level in whole latent frames; the first begin with frame 0.
            caches: what the call before gave; None at the beginning of a clip.

        Raises:
            ValueError: a quantiser or VAE that does not stream (`PyraTok.streams`).
        """
        if not self.model.streams:
            raise ValueError(f"quantizer {self.config.quantizer!r} cannot decode in chunks")
        levels = tuple(jnp.asarray(level, jnp.uint32) for level in ids)
        video, caches = self._programs.detokenize_next(levels, caches)
        return np.asarray(video), caches

    def reconstruct_segments(
        self, segments: Iterable[UInt8[np.ndarray, "t h w 3"]], text: TextCondition | None = None
    ) -> Iterator[Segment]:
        """Reconstruct one long clip segment by segment, in the memory of one segment.

        The ids are those of `encode` on the whole clip (up to rounding), and the frames those that
        `decode` makes of them. Only caches are carried from segment to segment.

        Args:
            segments: consecutive frames of one size. The first has 1 + a multiple of
                `temporal_factor` frames, later ones a multiple; the last may have any number.
            text: embedded caption, one row.

        Raises:
            ValueError: a quantiser that does not stream (`PyraTok.streams`), or a segment of
                another number of frames before the last one.
        """
        if not self.model.streams:
            raise ValueError(f"quantizer {self.config.quantizer!r} cannot walk a clip in chunks")
        encoder_caches = decoder_caches = None
        filled = False
        for number, frames in enumerate(segments):
            if filled:
                raise ValueError(f"segment {number - 1} is not the last and does not fill its grid")
            size = self._segment_padding(frames, first=number == 0)
            filled = size.padded_frames != size.frames
            padded = jnp.asarray(size.pad(frames)[None])
            ids, encoder_caches = self._programs.tokenize_next(padded, text, encoder_caches)
            video, decoder_caches = self._programs.detokenize_next(ids, decoder_caches)
            reconstruction = size.crop(np.asarray(video[0]))
            yield Segment(frames, reconstruction, tuple(np.asarray(level) for level in ids))

    def _segment_padding(self, frames: np.ndarray, *, first: bool) -> Padding:
        """Padding of a segment; a later one, which has no frame 0, to a multiple of frames."""
        t, h, w = frames.shape[:3]
        size = self.padding(t if first else t + 1, h, w)
        if first:
            return size
        return dataclasses.replace(size, frames=t, padded_frames=size.padded_frames - 1)

    def reconstruct_continuous(
        self, video: UInt8[np.ndarray, "*b t h w 3"]
    ) -> UInt8[np.ndarray, "*b t h w 3"]:
        """What the frozen VAE makes of a clip or batch without any quantisation: the ceiling."""
        size = self.padding(*video.shape[-4:-1])
        batch = size.pad(video if video.ndim == 5 else video[None])
        found = self._programs.reconstruct_continuous(jnp.asarray(batch))
        cropped = size.crop(np.asarray(found))
        return cropped if video.ndim == 5 else cropped[0]

    def code_embeddings(self, ids: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Codes of every level in the text space, float32 (b, t, h, w, D).

        Without an alignment module the +-1 codes themselves.
        """
        codes = [ids_to_bits(jnp.asarray(x, jnp.uint32), self.config.bits) for x in ids]
        if self.alignment is not None:
            codes = [self.alignment.text_embed(q, level) for level, q in enumerate(codes)]
        return tuple(np.asarray(q) for q in codes)

    def text_features(self, captions: Sequence[str]) -> np.ndarray:
        """Each text in the text space, where codes are compared with it, float32 (n, D).

        Raises:
            UserError: this tokenizer has no text encoder.
        """
        text = self.embed(captions)
        if text is None:
            raise UserError("this tokenizer has no language model: there are no text features")
        return np.asarray(self.model.captions(text).pooled)


def local_devices(count: int) -> list[jax.Device]:
    """The first devices of this host.

    Raises:
        UserError: it has fewer.
    """
    devices = jax.local_devices()
    if not 1 <= count <= len(devices):
        raise UserError(f"--spatial {count}: this host has {len(devices)} devices")
    return devices[:count]
