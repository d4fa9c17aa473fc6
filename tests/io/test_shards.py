"""Shards of records: as many as there are, under a limit of open files."""

import os
import resource
import threading

import numpy as np
from PIL import Image

from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.io import shards
from pyratok_jax.io.shards import ArrayRecordFile, ShardWriter, missing_shards
from pyratok_jax.tokens import TokenDataset
from pyratok_jax.tokens.exporting import export, write_card
from pyratok_jax.tokens.options import Machine
from tests.tokens.conftest import plan_of
from tests.tokens.tiny import PixelTokenizer


def test_missing_shards_are_named():
    names = [f"t-train.tfrecord-{n:05d}-of-00004" for n in (0, 2)] + ["lone.array_record"]
    lacking = ["t-train.tfrecord-00001-of-00004", "t-train.tfrecord-00003-of-00004"]
    assert missing_shards([f"/x/{name}" for name in names]) == lacking
    assert missing_shards([*names, *lacking]) == missing_shards([]) == []
    absurd = missing_shards(["t.tfrecord-00001-of-999999999"])
    assert len(absurd) == 21 and absurd[-1] == "999999978 more of t.tfrecord"


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
    files.clear()
    assert open_files() == before and not shards._OPEN


def test_an_export_of_more_shards_than_files_may_be_open(tmp_path):
    tokenizer, count = PixelTokenizer(), 120
    (tmp_path / "in").mkdir()
    for number in range(count):
        pixels = np.full((16, 16, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number:03d}.png")
    records = load_source(str(tmp_path / "in"))
    plan = plan_of(tokenizer, records, tmp_path / "out", shards=count)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(file) for file in os.listdir("/proc/self/fd")) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        assert export(plan, records, tokenizer, Machine()).clips == count
        assert write_card(plan)["clips"] == count
        found = {record.video for record in TokenDataset(str(tmp_path / "out"))}
        assert len(found) == count
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
