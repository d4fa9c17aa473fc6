"""Which clip stands at which place of which batch, as a function of (seed, step) alone.

Every step draws its bucket from a seeded schedule; the step's examples are consecutive positions
of that bucket's endless stream. A position is shared out to the datasets by a second schedule, and
each dataset's clips are shuffled anew for every epoch. Hosts take slices of the same step, so
neither their number nor that of their workers changes what a step holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from absl import logging
from grain.experimental import index_shuffle

from pyratok_jax.data.schedule import Schedule
from pyratok_jax.errors import UserError

# Streams of random numbers that must not be equal for equal positions.
_BUCKETS, _DATASETS, _EPOCHS, _EXAMPLES, _SUBSTITUTES = range(5)


class SampledBucket(Protocol):
    """What the order of examples needs to know of a bucket, of clips or of token sequences."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def weight(self) -> float:
        """Share of the steps, relative to the other buckets."""

    @property
    def clips(self) -> int:
        """Examples of a batch over all hosts; 0: the plan's `batch_size`."""


@dataclass(frozen=True)
class Place:
    """One example of the stream: bucket, and the position in that bucket's stream."""

    bucket: int
    position: int


class SamplingPlan:
    """The endless order of examples.

    Args:
        buckets: all buckets; their weights share out the steps.
        eligible: per dataset and bucket, the numbers of the clips that fit (a 1-D array).
        weights: of the datasets (empty: their numbers of clips).
        seed: of everything.
        batch_size: examples of a step, over all hosts, where its bucket does not say.

    Raises:
        UserError: no clip fits any bucket, or the weights are not as many as the datasets.
    """

    def __init__(
        self,
        buckets: Sequence[SampledBucket],
        eligible: Sequence[Sequence[np.ndarray]],
        weights: Sequence[float],
        seed: int,
        batch_size: int,
    ) -> None:
        if weights and len(weights) != len(eligible):
            raise UserError(
                f"the data config has {len(weights)} weights for {len(eligible)} sources; "
                "give one for each, or none"
            )
        self.seed, self.batch_size, self.eligible = seed, batch_size, eligible
        self.clips = [bucket.clips or batch_size for bucket in buckets]
        self._datasets: list[Schedule | None] = []
        shares: list[float] = []
        for number, bucket in enumerate(buckets):
            sizes = [len(lists[number]) for lists in eligible]
            mix = [
                (weights[i] if weights else size) if size else 0.0 for i, size in enumerate(sizes)
            ]
            if bucket.weight > 0 and not any(mix):
                logging.warning("no clip fits the bucket %s: it is left out", bucket.name)
            shares.append(bucket.weight if any(mix) else 0.0)
            schedule = Schedule(mix, (seed, _DATASETS, number)) if any(mix) else None
            self._datasets.append(schedule)
        if not any(shares):
            raise UserError(
                "no clip of the sources (with their weights) fits a bucket with a weight above 0; "
                "add buckets of the clips' aspect ratio, or set any_bucket"
            )
        self._buckets = Schedule(shares, (seed, _BUCKETS))

    def place(self, step: int, row: int) -> Place:
        """Where a row of a step lies, of as many rows as its bucket has clips."""
        bucket, rank = self._buckets.pick(step)
        return Place(bucket, rank * self.clips[bucket] + row)

    def bucket(self, step: int) -> int:
        """The bucket of a step, the same on all hosts."""
        return self._buckets.pick(step)[0]

    def clip(self, place: Place, attempt: int = 0) -> tuple[int, int]:
        """(dataset, clip number) at a place; attempts from 1 on are its substitutes, in order."""
        schedule = self._datasets[place.bucket]
        assert schedule is not None
        dataset, rank = schedule.pick(place.position)
        if attempt:
            return self._substitute(place, dataset, attempt)
        clips = self.eligible[dataset][place.bucket]
        epoch, index = divmod(rank, len(clips))
        key = np.random.SeedSequence((self.seed, _EPOCHS, place.bucket, dataset, epoch))
        shuffled = index_shuffle(
            index, max_index=len(clips) - 1, seed=int(key.generate_state(1)[0]), rounds=4
        )
        return dataset, int(clips[shuffled])

    def _substitute(self, place: Place, dataset: int, attempt: int) -> tuple[int, int]:
        """Substitutes come from the same dataset at first, then from any that fits the bucket."""
        key = (self.seed, _SUBSTITUTES, place.bucket, place.position, attempt)
        rng = np.random.default_rng(key)
        if attempt > 8:
            usable = [i for i, lists in enumerate(self.eligible) if len(lists[place.bucket])]
            dataset = usable[rng.integers(len(usable))]
        clips = self.eligible[dataset][place.bucket]
        return dataset, int(clips[rng.integers(len(clips))])

    def rng(self, place: Place, attempt: int = 0) -> np.random.Generator:
        """Randomness for what is done to the clip at a place."""
        key = (self.seed, _EXAMPLES, place.bucket, place.position, attempt)
        return np.random.default_rng(key)
