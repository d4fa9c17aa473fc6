"""Short clips of built-in video, decoded once, as a stream of batches in phases.

For small trainings on few cores, where decoding would cost more than the step: every phase has its
own clip shape and batch size (single frames first, then clips).
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from pyratok_jax.data.sources.builtin import demo_clips, film_clips, street_clips
from pyratok_jax.data.world.films import world_clips
from pyratok_jax.demo.sources import augment, photo_clips, shape_clips
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.training.loop.contracts import ShareOf
from pyratok_jax.training.tasks.clip_batches import ClipBatches

_PATTERN = re.compile(r"(\d+)\*(\d+)x(\d+)x(\d+)")
_CUTTERS: dict[str, Callable[..., np.ndarray]] = {
    "film": film_clips,
    "demo": demo_clips,
    "street": street_clips,
    "shapes": shape_clips,
    "world": world_clips,
    "things": functools.partial(world_clips, things=1),
}


@dataclass(frozen=True)
class Phase:
    """A number of steps with batches of (batch, frames, size, size, 3)."""

    steps: int
    batch: int
    frames: int
    size: int


def parse_phases(specs: Sequence[str]) -> tuple[Phase, ...]:
    """Phases from their written form STEPS*BATCHxFRAMESxSIZE, for example 3000*16x1x64.

    Raises:
        UserError: malformed, or none.
    """
    phases = []
    for spec in specs:
        match = _PATTERN.fullmatch(str(spec))
        if match is None or 0 in map(int, match.groups()):
            raise UserError(
                f"config.data.phases: {spec!r} is not of the form STEPS*BATCHxFRAMESxSIZE, for "
                "example 3000*16x1x64"
            )
        phases.append(Phase(*map(int, match.groups())))
    if not phases:
        raise UserError("config.data.phases is empty; give at least one")
    return tuple(phases)


class PhasedClips:
    """The endless iterator of batches; batch i is a function of (seed, i), past the end as before.

    Args:
        phases: as `parse_phases` takes them.
        counts: clips to cut for each shape, per source ("film", "demo", "street", "shapes",
            "world", "things" (films of the world of one thing), "photos"). A batch's rows are
            drawn from all clips alike.
        seed: of the order.
        shares: per source its share of the rows, where it is not that of its clips.
        augment: see `colours.augment`.
        photos: the folder of pictures that "photos" is cut from.
    """

    def __init__(
        self,
        phases: Sequence[str],
        counts: Mapping[str, int],
        seed: int,
        *,
        shares: Mapping[str, float] | None = None,
        augment: Mapping[str, float] | None = None,
        photos: str = "",
    ) -> None:
        self.phases, self.seed, self.step = parse_phases(phases), seed, 0
        cutters = _CUTTERS | {"photos": lambda _, *given: photo_clips(photos, *given)}
        unknown = set(counts) - set(cutters)
        if unknown or not any(counts.values()):
            known = sorted(cutters)
            raise UserError(f"config.data.clips names {sorted(counts)}; expected of {known}")
        if counts.get("photos") and not (photos and Path(photos).is_dir()):
            raise UserError(
                f"config.data.clips.photos is above 0, and config.data.photos {photos!r} no folder"
            )
        self._cutters = cutters
        self._shares, self.augment = dict(shares or {}), dict(augment or {})
        missing = [name for name, n in counts.items() if n and name not in self._shares]
        if self._shares and missing:
            names = ", ".join(missing)
            raise UserError(f"config.data.shares says nothing of {names} in data.clips")
        self._counts = {name: count for name, count in counts.items() if count}
        self._clips: dict[tuple[int, int], list[np.ndarray]] = {}
        self.broken: dict[str, str] = {}

    def phase(self, step: int) -> Phase:
        """The phase of a step; the last one has no end."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]

    def _arrays(self, frames: int, size: int) -> list[np.ndarray]:
        if (frames, size) not in self._clips:
            # Clips take more room than frames, and differ less.
            share = 1 if frames == 1 else 8
            self._clips[frames, size] = [
                self._cutters[name](None, max(count // share, 1), frames, size, int(frames > 1))
                for name, count in self._counts.items()
            ]
        return self._clips[frames, size]

    def __iter__(self) -> "PhasedClips":
        return self

    def __next__(self) -> dict[str, Json]:
        """A batch: video uint8 (b, t, h, w, 3), half of it mirrored at random."""
        phase = self.phase(self.step)
        arrays = self._arrays(phase.frames, phase.size)
        rng = np.random.default_rng((self.seed, self.step))
        if self._shares:
            weights = np.array([self._shares[name] for name in self._counts])
            picked = rng.choice(len(arrays), phase.batch, p=weights / weights.sum())
            video = np.stack([arrays[i][rng.integers(len(arrays[i]))] for i in picked])
        else:
            rows = rng.integers(sum(map(len, arrays)), size=phase.batch)
            video = np.stack([_row(arrays, row) for row in rows])
        mirrored = rng.integers(2, size=phase.batch).astype(bool)
        video[mirrored] = video[mirrored, :, :, ::-1]
        if self.augment:
            video = augment(video, rng, self.augment)
        self.step += 1
        return {"video": video}

    def get_state(self) -> dict[str, int]:
        """The step of the next batch; plain JSON."""
        return {"step": self.step, "seed": self.seed}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Go on at a saved step."""
        self.step = int(state["step"])

    def close(self) -> None:
        """Let go of the clips."""
        self._clips.clear()


def _row(arrays: list[np.ndarray], row: int) -> np.ndarray:
    for array in arrays:
        if row < len(array):
            return array[row]
        row -= len(array)
    raise IndexError(row)


def phased_clips(config: ConfigDict) -> PhasedClips:
    """The clips that a config asks for; none is cut yet.

    Raises:
        UserError: see `PhasedClips` and `parse_phases`.
    """
    data = config.data
    return PhasedClips(
        data.phases,
        data.clips.to_dict(),
        config.seed,
        shares=data.get("shares", {}),
        augment=data.get("augment", {}),
        photos=data.get("photos", ""),
    )


class PhasedTask:
    """The data half of the demo's own tasks; `config.data` has phases and clips (`PhasedClips`)."""

    config: ConfigDict

    def clips(self) -> PhasedClips:
        """All clips of every batch."""
        return phased_clips(self.config)

    def make_loader(self, share_of: ShareOf) -> ClipBatches:
        """The stream of batches.

        Raises:
            UserError: for a shard of several; the clips are not shared out over processes.
        """
        count = share_of(self.config.batch_size).shard_count
        if count > 1:
            raise UserError(f"config.task {self.config.task} trains in one process, not in {count}")
        return ClipBatches(self.clips(), ("video",))
