"""Records, their checksum, the entropy coder, and flat sequences."""

import contextlib
import dataclasses
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from pyratok_jax.errors import UserError
from pyratok_jax.metrics.code_usage import count_codes, usage
from pyratok_jax.tokens import DamagedRecordError, flatten, separator_id, soi_id, unflatten
from pyratok_jax.tokens.coding import pack, unpack
from pyratok_jax.tokens.schema import (
    TOKEN_SCHEMA,
    SchemaError,
    TokenRecord,
    checksum,
    decode_grids,
    decode_record,
    encode_record,
    feature_spec,
    tfds_features,
)

GRIDS = ((5, 2, 3), (2, 4, 6))


def record(bits=16, **changes):
    rng = np.random.default_rng(bits)
    dtype = np.uint16 if bits <= 16 else np.uint32
    tokens = tuple(rng.integers(0, 2**bits, g, dtype=np.uint64).astype(dtype) for g in GRIDS)
    numbers = dict.fromkeys(TOKEN_SCHEMA.integers, 3) | {
        "bits": bits, "levels": 2, "schema": 1, "vocabulary": 2**bits, "block": 2,
        "padded_frames": 5, "padded_height": 4, "padded_width": 6,
        "video_frames": 6, "video_height": 6, "video_width": 6,
    }  # fmt: skip
    values = dict(tokens=tokens, id="a", video="a", path="/x/ä.mp4", caption="Ein Hund", fps=25.0,
                  text_encoder="", code="c", checkpoint="k", start=-1.0, end=1.5)  # fmt: skip
    return TokenRecord(**(values | numbers | changes))


def same(a, b):
    for field in dataclasses.fields(a):
        if field.name not in ("tokens", "read"):
            assert getattr(a, field.name) == getattr(b, field.name), field.name
    for x, y in zip((*a.tokens, *a.read), (*b.tokens, *b.read), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("bits", [1, 6, 16, 17, 32])
@pytest.mark.parametrize("packed", [False, True])
def test_records_survive_storing(bits, packed):
    r = record(bits)
    data = encode_record(r, packed)
    assert data == encode_record(r, packed)
    same(decode_record(data, "x"), r)


def test_the_checksum_is_the_documented_one():
    """Computed here by another way: one buffer, one call."""
    r = record()
    texts = [r.id, r.video, r.path, r.caption, r.text_encoder, r.code, r.checkpoint]
    items = [t.encode() for t in texts]
    items += [np.float32(v).astype("<f4").tobytes() for v in (r.fps, r.start, r.end)]
    items += [np.int64(getattr(r, key)).astype("<i8").tobytes() for key in TOKEN_SCHEMA.integers]
    items += [level.astype("<u2").tobytes() for level in r.tokens]
    expected = zlib.crc32(b"".join(len(i).to_bytes(8, "little") + i for i in items))
    assert checksum(r) == expected


def test_every_damaged_byte_is_noticed():
    r = record()
    data = bytearray(encode_record(r))
    for place in range(len(data)):
        data[place] ^= 4
        try:
            same(decode_record(bytes(data), "shard#3"), r)  # Only the order of keys can be equal.
        except DamagedRecordError as error:
            assert error.where == "shard#3" and error.reason
        except SchemaError:
            pass
        data[place] ^= 4


@pytest.mark.parametrize("bits", [6, 17])
@pytest.mark.parametrize("packed", [False, True])
def test_what_was_read_lies_beside_the_tokens(bits, packed):
    plain = record(bits)
    r = dataclasses.replace(plain, read=tuple(level ^ 1 for level in plain.tokens))
    data = encode_record(r, packed)
    found = decode_record(data, "x")
    for level, expected in zip((*found.tokens, *found.read), (*r.tokens, *r.read), strict=True):
        assert level.dtype == expected.dtype
        np.testing.assert_array_equal(level, expected)
    assert decode_grids(data, "x") == (GRIDS, 2**bits, True)
    assert decode_grids(encode_record(plain, packed), "x") == (GRIDS, 2**bits, False)
    spec = feature_spec(bits, 2, packed, flipped=True)
    example = tf_example_pb2.Example.FromString(data)
    assert set(example.features.feature) == set(spec)
    assert {key.split("/")[0] for key in spec} == set(tfds_features(bits, 2, packed, flipped=True))
    # Whoever does not know the keys sees the record without them, to the byte.
    for key in [key for key in example.features.feature if key.startswith("read_")]:
        del example.features.feature[key]
    assert example.SerializeToString(deterministic=True) == encode_record(plain, packed)


def test_every_damaged_byte_of_what_was_read_is_noticed():
    r = record()
    r = dataclasses.replace(r, read=tuple(level ^ 1 for level in r.tokens))
    data = bytearray(encode_record(r))
    for place in range(len(data)):
        data[place] ^= 4
        with contextlib.suppress(DamagedRecordError, SchemaError):
            same(decode_record(bytes(data), "shard#3"), r)
        data[place] ^= 4


def test_other_versions_are_refused_unless_forced():
    data = encode_record(record(schema=9))
    with pytest.raises(SchemaError, match="version 9.*up to 1"):
        decode_record(data, "x")
    assert decode_record(data, "x", any_schema=True).schema == 9
    with pytest.raises(DamagedRecordError, match="no key schema"):
        decode_record(b"", "x")


@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 1, 5), (4, 6, 6)])
def test_random_ids_cost_at_most_a_byte_more(grid):
    ids = np.random.default_rng(0).integers(0, 2**16, grid, dtype=np.uint16)
    data = pack(ids, 16)
    assert len(data) <= ids.nbytes + 1
    np.testing.assert_array_equal(unpack(data, grid, 16), ids)


def test_what_stays_the_same_over_time_is_coded_in_fewer_bits():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2**16, (8, 8), dtype=np.uint16)
    ids = np.repeat(first[None], 17, axis=0)
    flips = rng.random(ids.shape) < 0.2
    ids = np.where(flips, ids ^ (1 << rng.integers(0, 16, ids.shape)).astype(np.uint16), ids)
    data = pack(ids, 16)
    assert len(data) < 0.4 * ids.nbytes
    np.testing.assert_array_equal(unpack(data, ids.shape, 16), ids)


def test_packed_form_is_fixed():
    """Written by the first version: files have to stay readable."""
    ids = (np.arange(4 * 3 * 5).reshape(4, 3, 5) // 15 * 1000).astype(np.uint16)
    assert zlib.crc32(pack(ids, 16)) == PACKED_CRC


PACKED_CRC = 3812743847


def test_broken_packed_data_is_refused():
    ids = np.zeros((4, 4, 4), np.uint16)
    data = pack(ids, 16)
    assert data[0] == 1
    for bad in (b"", b"\x07abcd", data[:-1], b"\x00abc"):
        with pytest.raises(ValueError):
            unpack(bad, (4, 4, 4), 16)
    with pytest.raises(ValueError):
        unpack(data, (0, 4, 4), 16)


def test_sequence_by_hand():
    levels = (np.array([[[3, 1]]], np.uint16), np.array([[[0]], [[2]]], np.uint16))
    assert (separator_id(4), soi_id(4)) == (4, 5)
    sequence = flatten(levels, 4)
    assert sequence.tolist() == [5, 3, 1, 4, 0, 2]
    back = unflatten(sequence, [(1, 1, 2), (2, 1, 1)], 4)
    for a, b in zip(levels, back, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_sequence_is_ordered_as_the_alignment_sees_it():
    import jax.numpy as jnp
    from flax import nnx

    from pyratok_jax.models.alignment import Alignment
    from pyratok_jax.models.pyratok.lfq import bits_to_ids, ids_to_bits

    r = record(bits=6)
    codes = tuple(ids_to_bits(jnp.asarray(x[None], jnp.uint32), 6) for x in r.tokens)
    seen = Alignment(6, 2, 8, rngs=nnx.Rngs(0)).sequence(codes)
    ids = np.where(seen.separator, separator_id(64), np.asarray(bits_to_ids(seen.targets[0])))
    np.testing.assert_array_equal(flatten(r.tokens, 64), [soi_id(64), *ids])


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [(0, 3, "mark 5 before level 1"), (3, 0, "mark 4 before level 2"), (1, 4, "below 4"),
     (4, -1, "below 4")],
)  # fmt: skip
def test_malformed_sequences(place, value, message):
    sequence = np.array([5, 3, 1, 4, 0, 2])
    sequence[place] = value
    with pytest.raises(UserError, match=message):
        unflatten(sequence, [(1, 1, 2), (2, 1, 1)], 4)
    with pytest.raises(UserError, match="shape"):
        unflatten(sequence[:-1], [(1, 1, 2), (2, 1, 1)], 4)


def test_usage_by_hand():
    counts = np.zeros((1, 16), np.int64)
    count_codes((np.array([[[1, 1, 2, 5]]], np.uint16),), counts, 4)
    row = usage(counts[0], 8)
    assert row["tokens"] == 4 and row["used"] == 3 and row["utilisation"] == 3 / 8
    assert row["entropy"] == pytest.approx(1.5)
    assert row["histogram"] == {"0": 5, "1": 2, "2-3": 1}
    assert row["most"][0] == [1, 2]


def test_reading_needs_neither_models_nor_tensorflow():
    code = (
        "import sys; import pyratok_jax.tokens as t; t.TokenDataset, t.flatten;"
        "from pyratok_jax.tokens.schema import decode_record\n"
        "try: decode_record(b'', 'x')\n"
        "except t.DamagedRecordError: pass\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'jax', 'flax', 'av') "
        "or m.startswith('pyratok_jax.models')]\n"
        "assert not bad, bad"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=120)
