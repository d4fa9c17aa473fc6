"""Drawing one batch of clips, whatever the order of the prior."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from pyratok_jax.models.prior import blocks, masked, raster
from pyratok_jax.models.prior.conditioning import Condition
from pyratok_jax.models.prior.config import Sampling
from pyratok_jax.models.prior.heads import RowKeys
from pyratok_jax.models.prior.latents import LevelCodes
from pyratok_jax.models.prior.layout import Layout
from pyratok_jax.models.prior.model import Prior
from pyratok_jax.models.prior.sampling import Given
from pyratok_jax.models.pyratok.lfq import bits_to_ids, ids_to_bits
from pyratok_jax.models.pyratok.quantizers.base import Quantizer

Codes = Float[Array, "b n bits"]
Report = Callable[[float], None]
Ids = tuple[UInt32[np.ndarray, "b _t _h _w"], ...]


def codes_of(ids: Sequence[np.ndarray], bits: int) -> Codes:
    """Codes of the levels' ids (b, t, h, w), in the order of `Layout`."""
    flat = np.concatenate([np.asarray(x).reshape(x.shape[0], -1) for x in ids], axis=1)
    return ids_to_bits(jnp.asarray(flat, jnp.uint32), bits)


def ids_of(codes: Codes, layout: Layout) -> Ids:
    """Ids of every level (b, t, h, w) of codes."""
    return tuple(np.asarray(x) for x in layout.split(np.asarray(bits_to_ids(codes))))


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """What draws clips of one size.

    Attributes:
        prior: any order.
        quantizer: of the tokenizer; only "blocks" reads it.
        layout: of the clips.
        sampling: settings.
    """

    prior: Prior
    quantizer: Quantizer
    layout: Layout
    sampling: Sampling

    def run(
        self, condition: Condition, keys: RowKeys, given: Given | None, report: Report
    ) -> Codes:
        """Codes of all tokens.

        Args:
            condition: with guidance, the unconditional rows follow the conditional ones.
            keys: of the rows.
            given: tokens that are not drawn, for every row; of "blocks" whole leading groups.
            report: called with the share that is done.
        """
        order = self.prior.config.order
        if order == "raster":
            return self._raster(condition, keys, given, report)
        if order == "masked":
            return self._masked(condition, keys, given, report)
        parts = []
        for codes in self.groups(condition, keys, given):
            parts.append(codes)
            jax.block_until_ready(codes)
            report(len(parts) / self.layout.groups)
        levels = [jnp.concatenate(level, axis=1) for level in zip(*parts, strict=True)]
        return jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in levels], axis=1)

    def groups(
        self, condition: Condition, keys: RowKeys, given: Given | None = None
    ) -> Iterator[LevelCodes]:
        """Codes (b, t, h, w, bits) of every level, latent frame after latent frame."""
        groups, layout = self.layout.groups, self.layout
        state = blocks.blocks_start(self.prior, condition, groups=groups, layout=layout)
        known = 0 if given is None else int(self.layout.group[given.known].max(initial=-1)) + 1
        for group in range(groups):
            if given is not None and group < known:
                codes = self._group_of(given.codes, group)
                state = blocks.blocks_given(
                    self.prior, self.quantizer, state, codes, guided=self.sampling.guided,
                    groups=groups, layout=layout,
                )  # fmt: skip
            else:
                state, codes = blocks.blocks_group(
                    self.prior, self.quantizer, state, keys, sampling=self.sampling,
                    groups=groups, layout=layout,
                )  # fmt: skip
            yield codes

    def _group_of(self, codes: Codes, group: int) -> LevelCodes:
        levels = []
        for level, (_, h, w) in enumerate(self.layout.grids):
            own = (self.layout.group == group) & (self.layout.level == level)
            part = codes[:, np.flatnonzero(own)]
            levels.append(part.reshape(part.shape[0], -1, h, w, part.shape[-1]))
        return tuple(levels)

    def _raster(
        self, condition: Condition, keys: RowKeys, given: Given | None, report: Report
    ) -> Codes:
        count = raster.raster_chunks(self.layout)
        state = raster.raster_start(self.prior, condition, rows=keys.shape[0], layout=self.layout)
        parts = []
        for number in range(count):
            state, part = raster.raster_chunk(
                self.prior, state, keys, given, layout=self.layout, sampling=self.sampling
            )
            parts.append(jax.block_until_ready(part))
            report((number + 1) / count)
        return raster.raster_tokens(parts, self.layout)

    def _masked(
        self, condition: Condition, keys: RowKeys, given: Given | None, report: Report
    ) -> Codes:
        config = self.prior.config
        state = masked.masked_start(keys.shape[0], config.bits, self.layout, given)
        for level in range(config.levels):
            state = masked.masked_level(
                self.prior, state, condition, keys, level,
                layout=self.layout, sampling=self.sampling,
            )  # fmt: skip
            jax.block_until_ready(state.codes)
            report((level + 1) / config.levels)
        return state.codes
