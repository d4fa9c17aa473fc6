from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyratok_jax.data.buckets import (
    Bucket,
    assign_buckets,
    parse_buckets,
)
from pyratok_jax.data.sampling import Place, SamplingPlan
from pyratok_jax.data.schedule import Schedule
from pyratok_jax.errors import UserError


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6), st.integers(0, 99))
def test_schedule_counts_and_shares(weights, seed):
    schedule = Schedule(weights, (seed,))
    seen = Counter()
    for n in range(300):
        choice, rank = schedule.pick(n)
        assert rank == seen[choice]
        seen[choice] += 1
    counts = schedule.counts / schedule.counts.sum()
    np.testing.assert_allclose(counts, np.array(weights) / sum(weights), atol=0.001)


def test_schedule_meets_simple_shares_exactly_and_differs_by_seed():
    picks = [Schedule((3, 1), (0,)).pick(n)[0] for n in range(160)]
    assert picks.count(1) == 40
    assert picks != [Schedule((3, 1), (1,)).pick(n)[0] for n in range(160)]
    with pytest.raises(ValueError, match="above 0"):
        Schedule((0, 0), (0,))


def plan(seed=0, batch=4, sizes=(7, 5), weights=()):
    buckets = parse_buckets(("5x32x32@3", "9x16x16"))
    eligible, start = [], 0
    for size in sizes:
        eligible.append([np.arange(size), np.arange(0, size, 2)])
        start += size
    return SamplingPlan(buckets, eligible, weights, seed, batch)


def test_every_epoch_holds_every_clip_once_in_new_order():
    p = plan(sizes=(7,))
    stream = [p.clip(Place(0, n))[1] for n in range(21)]
    epochs = [stream[:7], stream[7:14], stream[14:]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_dataset_weights_and_bucket_weights():
    p = plan(weights=(1.0, 3.0))
    assert Counter(p.clip(Place(0, n))[0] for n in range(64)) == {0: 16, 1: 48}
    assert Counter(p.bucket(step) for step in range(64)) == {0: 48, 1: 16}


def test_places_are_not_repeated_and_stay_in_one_bucket():
    p = plan()
    places = [p.place(step, row) for step in range(50) for row in range(4)]
    assert len(set(places)) == 200
    assert all(p.place(s, 0).bucket == p.place(s, 3).bucket for s in range(50))


def test_substitutes_fit_the_bucket_and_are_repeatable():
    p = plan()
    for attempt in range(1, 20):
        dataset, clip = p.clip(Place(1, 3), attempt)
        assert clip % 2 == 0 and (dataset, clip) == plan().clip(Place(1, 3), attempt)


def test_bucket_notation_and_its_errors():
    assert parse_buckets(("17x256x256@0.5",)) == (Bucket(17, 256, 256, 0.5),)
    for bad in (("17x256",), (), ("1x2x3", "1x2x3"), ("0x1x1",), ("1x8x8@0",)):
        with pytest.raises(UserError):
            parse_buckets(bad)


def test_assignment_by_aspect_size_and_length():
    buckets = parse_buckets(("5x64x64", "5x128x128", "25x64x64", "5x64x128"))
    height = np.array([100.0, 200.0, 200.0, 30.0, 200.0])
    width = np.array([100.0, 200.0, 400.0, 30.0, 200.0])
    seconds = np.array([2.0, 0.4, 2.0, 2.0, np.inf])
    fits = assign_buckets(buckets, height, width, seconds, np.full(5, 25.0))
    assert fits.tolist() == [
        [True, False, True, False],
        [True, True, False, False],
        [False, False, False, True],
        [True, False, False, False],  # Too small for all: the smallest of its aspect.
        [True, True, True, False],
    ]
    slow = assign_buckets(buckets, height, width, seconds, np.full(5, 25.0), target_fps=5)
    assert not slow[0, 2] and slow[0, 0]
