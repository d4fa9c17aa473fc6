"""Shards of records: as many as there are, under a limit of open files."""

import os
import threading

from pyratok_jax.io import shards
from pyratok_jax.io.shards import ArrayRecordFile, ShardWriter


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_more_shards_than_a_process_may_open(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_most_open", lambda: 8)
    paths = [tmp_path / f"t-train.array_record-{n:05d}-of-00040" for n in range(40)]
    for number, path in enumerate(paths):
        with ShardWriter(path, "array_record") as writer:
            for record in range(3):
                writer.write(f"{number} {record}".encode())
    before = open_files()
    files = [ArrayRecordFile(str(path)) for path in paths]
    wrong = []

    def read(step):
        for turn in range(200):
            number, record = turn * step % 40, turn % 3
            if files[number][record] != f"{number} {record}".encode():
                wrong.append((number, record))

    threads = [threading.Thread(target=read, args=(step,)) for step in (1, 7, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and before < open_files() <= before + 8
    assert len(shards._OPEN) == 8
    del files
    assert open_files() == before and not shards._OPEN
