"""TFRecord files with damaged lengths: a flipped bit costs no other record."""

import os
import struct

import numpy as np
import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.io import tfrecords
from pyratok_jax.io.shards import open_records, shard_files

HEAD = 12


def framed(records, checksum=tfrecords._masked_crc32c):
    parts = []
    for record in records:
        head = struct.pack("<Q", len(record))
        parts.append(head + struct.pack("<I", checksum(head)) + record + b"sums")
    return b"".join(parts)


@pytest.fixture
def records():
    rng = np.random.default_rng(0)
    return [rng.bytes(int(n)) for n in rng.integers(0, 400, 20)]


def places(records):
    ends = np.cumsum([0] + [HEAD + len(record) + 4 for record in records])
    return ends[:-1].tolist()


def read(path, **options):
    """The records that can be read, None in the place of each other."""
    file, found = tfrecords.TFRecordFile(str(path), **options), []
    for number in range(len(file)):
        try:
            found.append(file[number])
        except ValueError:
            found.append(None)
    return found


def test_the_checksum_is_the_one_that_tensorflow_writes():
    head = bytes.fromhex("6400000000000000435f1cdf")  # Of a record of 100 bytes.
    assert struct.unpack("<QI", head) == (100, tfrecords._masked_crc32c(head))


@pytest.mark.parametrize("number", [0, 9, 19])
def test_a_flipped_bit_of_a_header_costs_nothing(tmp_path, records, number):
    data, path = framed(records), tmp_path / "a.tfrecord"
    for bit in range(8 * HEAD):
        damaged = bytearray(data)
        damaged[places(records)[number] + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert read(path) == records


@pytest.mark.parametrize("block", [64, 1 << 20])
def test_a_header_of_noise_costs_its_record(tmp_path, records, monkeypatch, block):
    monkeypatch.setattr(tfrecords, "_SCAN", block)
    data, path = framed(records), tmp_path / "a.tfrecord"
    rng = np.random.default_rng(1)
    for number in (0, 9, 18):
        damaged = bytearray(data)
        start = places(records)[number]
        damaged[start : start + HEAD] = rng.bytes(HEAD)
        path.write_bytes(damaged)
        assert read(path) == [*records[:number], None, *records[number + 1 :]]


def test_cut_and_compressed_files_are_refused(tmp_path, records):
    data, path = framed(records), tmp_path / "a.tfrecord"
    path.write_bytes(data[:-5])
    with pytest.raises(UserError, match=r"a.tfrecord: it is cut off"):
        open_records(str(path))
    assert read(path, tolerant=True) == records[:-1]
    path.write_bytes(b"\x1f\x8b\x08" + data)
    with pytest.raises(UserError, match="it is compressed"):
        open_records(str(path))


def test_only_regular_files_are_shards(tmp_path):
    os.mkfifo(tmp_path / "a.tfrecord")
    (tmp_path / "b.array_record").mkdir()
    (tmp_path / "c.tfrecord").symlink_to("/dev/zero")
    for path in list(tmp_path.iterdir()):
        with pytest.raises(UserError, match="no regular file"):
            open_records(str(path))
    with pytest.raises(UserError, match="no regular file"):
        shard_files(str(tmp_path))
