"""What an export makes, and what it may use of the machine."""

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

from pyratok_jax.data.padding import ClipSizes
from pyratok_jax.errors import UserError

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import TokenizerLike


_FLIPS = ("flip", "flip_seed")


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What decides the content of the shards, beside the input and the tokenizer.

    Attributes:
        format: "array_record" or "tfrecord".
        shards: number of files.
        window: frames per block, valid for the VAE (0: 17 or the next valid number, which
            `resolved` fills in).
        tile: side of a spatial tile in pixels (0: whole frames).
        overlap: pixels that neighbouring tiles share (0 without tiles).
        fps: frames per second to keep, finite (0: all frames).
        short_side: pixels to shrink the short side to (0: keep the size).
        round_frames: blocks are padded to this multiple, plus one frame (0: the frame step of the
            tokenizer's VAE, which `resolved` fills in).
        round_sides: sides are padded to this multiple (0: the least that the tokenizer takes).
        batch: blocks per batch, at most.
        batch_pixels: pixels per batch, at most (but always one block).
        compress: entropy-code the tokens.
        spatial: devices that share every frame's height (1: whole frames on one device).
        flip: largest share of bits that are flipped between levels (`models.pyratok.flips`).
        flip_seed: of the flips.
    """

    format: Literal["array_record", "tfrecord"] = "array_record"
    shards: int = 16
    window: int = 0
    tile: int = 0
    overlap: int = 0
    compress: bool = False
    fps: float = 0.0
    short_side: int = 0
    round_frames: int = 0
    round_sides: int = 0
    batch: int = 8
    batch_pixels: int = 8 * 17 * 256 * 256
    spatial: int = 1
    flip: float = 0.0
    flip_seed: int = 0

    def resolved(self, temporal_factor: int) -> "ExportOptions":
        """These options with what the VAE's frame step decides where they leave it open."""
        return dataclasses.replace(
            self,
            window=self.window or ClipSizes(temporal_factor, 1).padding(17, 1, 1).padded_frames,
            round_frames=self.round_frames or temporal_factor,
        )

    def check(self, temporal_factor: int, spatial_multiple: int) -> None:
        """Refuse what the tokenizer cannot do.

        Raises:
            UserError: naming the option.
        """
        for name in ("shards", "batch", "batch_pixels", "window", "spatial"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is below 1; give at least that")
        self._check_alone()
        if (self.window - 1) % temporal_factor:
            raise UserError(
                f"--window {self.window} is not {temporal_factor}k+1; the nearest that are: "
                f"{self.window - (self.window - 1) % temporal_factor} and "
                f"{self.window + (1 - self.window) % temporal_factor}"
            )
        if self.round_frames < 1 or self.round_frames % temporal_factor:
            raise UserError(
                f"--round-frames {self.round_frames} is not a multiple of {temporal_factor}, as "
                "the tokenizer needs it"
            )
        if self.round_sides < 0 or self.round_sides % spatial_multiple:
            raise UserError(
                f"--round-sides {self.round_sides} is not a multiple of {spatial_multiple}, as the "
                "tokenizer needs it"
            )

    def _check_alone(self) -> None:
        """Refuse what no tokenizer can do."""
        if not 0 <= self.fps < math.inf:
            raise UserError(f"--fps {self.fps}: expected frames per second, or 0 to keep all")
        if self.short_side < 0:
            raise UserError(f"--short-side {self.short_side}: expected pixels, or 0: as they are")
        if not 0 <= self.flip <= 1:
            raise UserError(f"--flip {self.flip} is not within 0 .. 1")
        if self.overlap and not self.tile:
            raise UserError(f"--overlap {self.overlap} goes with --tile; give both, or neither")
        if self.tile < 0 or self.overlap < 0 or (self.tile and self.overlap * 2 > self.tile):
            raise UserError(
                f"--overlap {self.overlap} does not suit --tile {self.tile}: at most half a tile"
            )

    def side_multiple(self, tokenizer: "TokenizerLike") -> int:
        """What sides are padded to a multiple of, unless `round_sides` says more."""
        if self.spatial > 1:
            return tokenizer.rows_multiple(self.spatial)
        return tokenizer.config.spatial_multiple

    def to_dict(self) -> dict[str, str | int | float]:
        """Plain values for JSON; flips are named where there are some."""
        values = dataclasses.asdict(self)
        return values if self.flip else {k: v for k, v in values.items() if k not in _FLIPS}

    def batch_size(self, frames: int, height: int, width: int) -> int:
        """Blocks in a batch of that padded shape; it depends on nothing else."""
        return max(min(self.batch, self.batch_pixels // (frames * height * width)), 1)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What does not change the tokens: this process's place, its threads, its memory."""

    index: int = 0
    count: int = 1
    readers: int = 2
    buffer_bytes: int = 1 << 30
