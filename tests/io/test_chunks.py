"""ArrayRecord files by their chunks: all are found, and none is inflated without bound."""

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from pyratok_jax.errors import UserError
from pyratok_jax.io import shards
from pyratok_jax.io.chunks import check_inflation, chunks
from pyratok_jax.io.shards import open_records


def write(path, options, records):
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()


@pytest.mark.parametrize(
    ("options", "sizes", "count"),
    [
        ("group_size:1,uncompressed", (0, 5000), 1000),
        ("group_size:1,uncompressed", (200_000, 200_001), 20),
        ("group_size:100", (0, 1), 2000),
        ("transpose:true,group_size:50", (10, 11), 1000),
        ("", (0, 3000), 1000),
    ],
)
def test_the_chunks_hold_all_records_and_reach_the_end(tmp_path, options, sizes, count):
    rng, path = np.random.default_rng(0), tmp_path / "a.array_record"
    records = [rng.bytes(int(n)) for n in rng.integers(*sizes, size=count)]
    write(path, options, records)
    found = list(chunks(path))
    # Those of the index at the end come on top: groups, and two of the file.
    assert sum(chunk.records for chunk in found) >= count
    assert sum(chunk.decoded for chunk in found) >= sum(map(len, records))
    last = found[-1]
    assert last.offset + last.size < path.stat().st_size <= last.offset + last.size + (1 << 17)
    check_inflation(path)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_file_that_would_be_inflated_without_bound_is_refused(tmp_path, monkeypatch, at_once):
    path = tmp_path / "a.array_record"
    write(path, "group_size:1", [b"good", bytes(300 << 20)])
    assert path.stat().st_size < 1 << 18
    if at_once:
        with pytest.raises(UserError, match="would be inflated from"):
            open_records(str(path))
        return
    monkeypatch.setattr(shards, "_CHECKED_AT_ONCE", 0)
    records = open_records(str(path))
    for number in (0, 1):
        with pytest.raises(ValueError, match="would be inflated from .* to 3145728"):
            records[number]


def test_damage_ends_the_walk(tmp_path):
    path = tmp_path / "a.array_record"
    write(path, "group_size:1,uncompressed", [b"x" * 1000] * 50)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(50):
        data = bytearray(whole[: int(rng.integers(1, len(whole)))])
        data[int(rng.integers(len(data)))] ^= 0xFF
        path.write_bytes(data)
        assert len(list(chunks(path))) <= 200
