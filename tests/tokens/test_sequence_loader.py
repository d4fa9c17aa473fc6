"""Batches of token sequences: buckets, hosts, resume, captions, damage."""

import collections
import dataclasses
import itertools
import json
import pickle

import numpy as np
import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.io.shards import ShardWriter, shard_name
from pyratok_jax.tokens import TokenDataset
from pyratok_jax.tokens.dataset import flatten, sequence_length, unflatten
from pyratok_jax.tokens.schema import TOKEN_SCHEMA, TokenRecord, encode_record
from pyratok_jax.tokens.sequence_loader import Reading, make_sequence_loader

SMALL, LARGE = ((1, 1, 1), (1, 2, 2)), ((2, 1, 2), (2, 2, 4))
VOCABULARY = 60


def record(number: int) -> TokenRecord:
    """Two in three have small grids; every fourth lacks a caption; tokens tell the number."""
    grids = LARGE if number % 3 == 2 else SMALL
    rng = np.random.default_rng(number)
    tokens = tuple(rng.integers(0, VOCABULARY, grid).astype("<u2") for grid in grids)
    values = dict.fromkeys(TOKEN_SCHEMA.texts, "") | dict.fromkeys(TOKEN_SCHEMA.floats, 1.0)
    values |= dict.fromkeys(TOKEN_SCHEMA.integers, 1)
    values |= dict.fromkeys(("first_frame", "top", "left", "block", "overlap"), 0)
    values |= dict.fromkeys(("padded_frames", "padded_height", "padded_width"), 4)
    values |= {"id": f"r{number}", "bits": 6, "vocabulary": VOCABULARY, "levels": 2}
    values["caption"] = "" if number % 4 == 3 else ("cat" if number % 2 else "dog")
    return TokenRecord(tokens=tokens, **values)


def write(folder, records, packed=False, damaged=()):
    """Two shards; of the records in `damaged` a token is changed after the checksum was made."""
    folder.mkdir()
    for shard in range(2):
        path = folder / shard_name("tokens", "array_record", shard, 2)
        with ShardWriter(path, "array_record") as writer:
            for number, one in list(enumerate(records))[shard::2]:
                data = encode_record(one, packed)
                writer.write(data.replace(b"r5", b"rX") if number in damaged else data)
    return str(folder)


@pytest.fixture(scope="module", params=[False, True], ids=["raw", "packed"])
def folder(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("d") / "o", [record(n) for n in range(36)], request.param)


def take(loader, count):
    batches = list(itertools.islice(loader, count))
    loader.close()
    return batches


def same(a, b):
    assert (a.ids, a.captions, a.grids) == (b.ids, b.captions, b.grids)
    np.testing.assert_array_equal(a.sequences, b.sequences)


def test_sequences_are_those_of_the_records(folder):
    records = {r.id: r for r in TokenDataset(folder)}
    batches = take(make_sequence_loader(folder, seed=0, batch_size=4), 12)
    assert {batch.grids for batch in batches} == {SMALL, LARGE}
    for batch in batches:
        assert batch.sequences.shape == (4, sequence_length(batch.grids))
        assert batch.sequences.dtype == np.int32 and batch.vocabulary == VOCABULARY
        for row, name in enumerate(batch.ids):
            tokens = records[name].tokens
            np.testing.assert_array_equal(batch.sequences[row], flatten(tokens, VOCABULARY))
            for level, stored in zip(batch.levels(row), tokens, strict=True):
                np.testing.assert_array_equal(level, stored)
            assert batch.captions[row] == (records[name].caption or None)
        assert unflatten(batch.sequences[0], batch.grids, VOCABULARY)[0].shape == batch.grids[0]


def test_steps_are_shared_by_the_numbers_of_records_and_epochs_are_whole(folder):
    batches = take(make_sequence_loader(folder, seed=3, batch_size=4), 96)
    steps = collections.Counter(batch.bucket for batch in batches)
    assert steps == {"1x1x1+1x2x2": 64, "2x1x2+2x2x4": 32}
    for grids, size in ((SMALL, 24), (LARGE, 12)):
        ids = [name for batch in batches if batch.grids == grids for name in batch.ids]
        epochs = [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)]
        assert len(epochs) >= 10
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_are_disjoint_and_together_read_what_one_reads(folder, hosts):
    whole = take(make_sequence_loader(folder, seed=1, batch_size=4), 9)
    parts = [
        take(make_sequence_loader(folder, seed=1, batch_size=4, process_index=i,
                                  process_count=hosts), 9)
        for i in range(hosts)
    ]  # fmt: skip
    for batch, shards in zip(whole, zip(*parts, strict=True), strict=True):
        assert {shard.bucket for shard in shards} == {batch.bucket}
        assert sum((shard.ids for shard in shards), ()) == batch.ids
        assert all(shard.rows == 4 for shard in shards)
        np.testing.assert_array_equal(
            np.concatenate([shard.sequences for shard in shards]), batch.sequences
        )


def test_resumes_exactly_in_the_middle_with_other_threads_and_hosts(folder):
    whole = take(make_sequence_loader(folder, seed=2, batch_size=4, caption_dropout=0.3), 14)
    loader = make_sequence_loader(folder, seed=2, batch_size=4, caption_dropout=0.3)
    for _ in range(5):
        next(loader)
    state = json.loads(json.dumps(loader.get_state()))
    loader.close()
    other = make_sequence_loader(
        folder, seed=2, batch_size=4, caption_dropout=0.3, reading=Reading(threads=5, ahead=4)
    )
    next(other)
    other.set_state(state)
    for resumed, expected in zip(take(other, 9), whole[5:], strict=True):
        same(resumed, expected)
    second = make_sequence_loader(folder, seed=2, batch_size=4, caption_dropout=0.3,
                                  process_index=1, process_count=2)  # fmt: skip
    second.set_state(state)
    assert take(second, 1)[0].ids == whole[5].ids[2:]


@pytest.mark.process
def test_worker_processes_read_the_same(tmp_path):
    folder = write(tmp_path / "o", [record(n) for n in range(12)])
    here = take(make_sequence_loader(folder, seed=0, batch_size=4), 5)
    there = take(make_sequence_loader(folder, seed=0, batch_size=4, reading=Reading(workers=2)), 5)
    for a, b in zip(here, there, strict=True):
        same(a, b)


def test_a_state_of_another_stream_is_refused(folder, tmp_path):
    loader = make_sequence_loader(folder, seed=0, batch_size=4)
    state = loader.get_state()
    with pytest.raises(UserError, match="seed 1"):
        make_sequence_loader(folder, seed=1, batch_size=4).set_state(state)
    other = write(tmp_path / "o", [record(n) for n in range(30)])
    with pytest.raises(UserError, match="other shards"):
        make_sequence_loader(other, seed=0, batch_size=4).set_state(state)


def test_captions_become_ids_or_classes(folder):
    def tokenize(captions):
        ids = np.array([[len(c or "")] * 3 for c in captions])
        return ids, ids > 0

    loader = make_sequence_loader(
        folder, seed=0, batch_size=12, tokenize=tokenize, classes={"cat": 4, "dog": 7}
    )
    (batch,) = take(loader, 1)
    for row, caption in enumerate(batch.captions):
        assert batch.classes[row] == {"cat": 4, "dog": 7, None: -1}[caption]
        assert batch.text_mask[row].all() == (caption is not None)
    assert set(batch.arrays) == {"sequences", "text_ids", "text_mask", "classes", "has_text"}
    assert {len(array) for array in batch.arrays.values()} == {12}
    assert batch.text_ids.dtype == np.int32 and batch.classes.dtype == np.int32
    loader = make_sequence_loader(folder, seed=0, batch_size=12, classes={"cat": 4})
    with pytest.raises(UserError, match="'dog' names none of the classes"):
        take(loader, 1)


def test_dropout_leaves_captions_out(folder):
    every = take(make_sequence_loader(folder, seed=0, batch_size=4, caption_dropout=1.0), 3)
    assert all(caption is None for batch in every for caption in batch.captions)
    half = take(make_sequence_loader(folder, seed=0, batch_size=4, caption_dropout=0.5), 60)
    share = np.mean([caption is None for batch in half for caption in batch.captions])
    assert 0.5 < share < 0.75  # Half of the three quarters that have one, and a quarter.


def test_a_batch_size_for_each_length(folder):
    loader = make_sequence_loader(
        folder, seed=0, batch_size=lambda grids: 84 // sequence_length(grids)
    )
    batches = take(loader, 36)
    assert {(len(b.ids), b.grids) for b in batches} == {(12, SMALL), (3, LARGE)}
    # An epoch is 2 and 4 batches: every record is drawn equally often.
    assert sum(b.grids == SMALL for b in batches) == 12
    for size in (3, 0):
        with pytest.raises(UserError, match="cannot be shared out to 2 hosts"):
            make_sequence_loader(folder, seed=0, batch_size=size, process_count=2)


def test_damaged_records_are_named_and_replaced(tmp_path):
    path = write(tmp_path / "o", [record(n) for n in range(12)], damaged=(5,))
    loader = make_sequence_loader(path, seed=0, batch_size=4)
    ids = [name for batch in itertools.islice(loader, 12) for name in batch.ids]
    assert set(ids) == {f"r{n}" for n in range(12) if n != 5}
    assert [reason for reason in loader.broken.values()] == ["its checksum is wrong"]
    loader.close()


def test_datasets_that_cannot_be_batched(tmp_path):
    other = dataclasses.replace(record(1), vocabulary=50)
    path = write(tmp_path / "o", [record(0), other])
    with pytest.raises(UserError, match="different vocabularies"):
        make_sequence_loader(path, seed=0, batch_size=1)


def test_the_source_can_be_sent_to_another_process(folder):
    loader = make_sequence_loader(folder, seed=0, batch_size=4)
    source = pickle.loads(pickle.dumps(loader._source))
    same(source[3][0], loader._source[3][0])


def test_what_was_read_comes_beside_the_sequences(tmp_path):
    plain = [record(number) for number in range(6)]
    flipped = [dataclasses.replace(r, read=tuple(x ^ 1 for x in r.tokens)) for r in plain]
    folder = write(tmp_path / "flipped", flipped)
    records = {r.id: r for r in TokenDataset(folder)}
    (batch,) = take(make_sequence_loader(folder, seed=0, batch_size=2), 1)
    (same_batch,) = take(
        make_sequence_loader(write(tmp_path / "plain", plain), seed=0, batch_size=2), 1
    )
    same(batch, same_batch)
    assert same_batch.read is None and "read" not in same_batch.arrays
    for row, name in enumerate(batch.ids):
        expected = flatten(records[name].read, VOCABULARY)
        np.testing.assert_array_equal(batch.arrays["read"][row], expected)
        assert (batch.read[row] != batch.sequences[row]).any()
    mixed = write(tmp_path / "mixed", [*plain[:3], *flipped[3:]])
    with pytest.raises(UserError, match=r"flipped bits .* and others; give one export"):
        make_sequence_loader(mixed, seed=0, batch_size=2)
