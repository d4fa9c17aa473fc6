"""Exporting: exactness, resuming, locks, faults; the output as others read it."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from pyratok_jax.data.padding import ClipSizes
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.data.video.files import BrokenVideoError, iter_frames, read_image
from pyratok_jax.errors import UserError
from pyratok_jax.io import sharded_job
from pyratok_jax.io.locks import folder_lock
from pyratok_jax.tokens import TokenDataset, blocks, exporting
from pyratok_jax.tokens import batches as reading
from pyratok_jax.tokens.blocks import WindowJoiner, cut_blocks, tile_starts
from pyratok_jax.tokens.exporting import drop_damaged, export, write_card
from pyratok_jax.tokens.options import ExportOptions, Machine


def export_lock(output, index, count):
    return folder_lock(output, index, count, "exporting to", "give another --output")


def contents(folder):
    """Everything of all records, by id."""
    result = {}
    for r in TokenDataset(str(folder)):
        assert r.id not in result
        fields = {f.name: getattr(r, f.name) for f in dataclasses.fields(r) if f.name != "tokens"}
        result[r.id] = fields, [x.tobytes() for x in r.tokens]
    return result


def hashes(folder):
    shards = sorted(folder.glob("tokens-train*"))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in shards}


@pytest.fixture(scope="module")
def records(videos):
    return load_source(str(videos))


@pytest.fixture(scope="module")
def exported(records, tokenizer, tmp_path_factory):
    from tests.tokens.conftest import plan_of

    output = tmp_path_factory.mktemp("tokens") / "out"
    plan = plan_of(tokenizer, records, output)
    export(plan, records, tokenizer, Machine())
    return output, write_card(plan)


def test_tokens_are_those_of_every_block_alone(exported, records, tokenizer, videos):
    """Against the tokenizer itself, one block at a time, padded by hand."""
    found = {r.id: r for r in TokenDataset(str(exported[0]))}
    assert len(found) == 12
    for record in records:
        if record.id in ("text.mp4", "cut.mp4"):
            continue
        if record.id == "still.png":
            whole = read_image(record.path)[None]
        else:
            whole = np.stack(list(iter_frames(record.path)))
        windows = [whole[i : i + 5] for i in range(0, len(whole), 5)]
        for number, window in enumerate(windows):
            name = record.id if len(windows) == 1 else f"{record.id}#{number:05d}"
            padded, padding = ClipSizes(4, 16).pad(window)
            expected = tokenizer.encode_padded(padded[None], [record.caption])
            assert found[name].padding == padding
            assert (found[name].first_frame, found[name].blocks) == (5 * number, len(windows))
            for a, b in zip(found[name].tokens, expected, strict=True):
                np.testing.assert_array_equal(a, b[0])


@pytest.mark.parametrize(
    ("changes", "machine"),
    [
        ({"shards": 1}, {}),
        ({"shards": 5, "batch": 1}, {"readers": 1}),
        ({"batch": 3}, {"readers": 3, "buffer_bytes": 1}),
        ({"format": "tfrecord", "compress": True}, {}),
    ],
)
def test_the_same_records_whatever_the_way(
    exported, records, tokenizer, tmp_path, make_plan, changes, machine
):
    plan = make_plan(records, tmp_path / "o", **changes)
    export(plan, records, tokenizer, Machine(**machine))
    card = write_card(plan)
    assert contents(tmp_path / "o") == contents(exported[0])
    assert card["tokens"] == exported[1]["tokens"] > 1000
    assert card["levels"] == exported[1]["levels"]


def test_hosts_share_the_work_and_write_the_same_bytes(
    exported, records, tokenizer, tmp_path, make_plan
):
    plan = make_plan(records, tmp_path / "o")
    for index in (1, 0):
        with export_lock(plan.output, index, 2):
            export(plan, records, tokenizer, Machine(index, 2))
        assert (write_card(plan) is None) == (index == 1)
    assert hashes(tmp_path / "o") == hashes(exported[0])


def test_broken_videos_are_named_and_leave_nothing(exported):
    output, card = exported
    rejected = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in rejected] == ["cut.mp4", "text.mp4"]
    assert all(entry["reason"] for entry in rejected)
    assert card["rejected"] == 2 and card["clips"] == 8
    assert not any(r.video in ("cut.mp4", "text.mp4") for r in TokenDataset(str(output)))


def test_a_video_that_breaks_late_is_rejected_whole(
    records, tokenizer, tmp_path, make_plan, monkeypatch
):
    def breaking(record):
        for number, frame in enumerate(iter_frames(record.path)):
            if record.id == "clip2.mp4" and number == 11:
                raise BrokenVideoError(record.path, "it ends early")
            yield frame

    monkeypatch.setattr(blocks, "clip_frames", breaking)
    plan = make_plan(records, tmp_path / "o", shards=1, batch=1)
    export(plan, records, tokenizer, Machine())
    write_card(plan)
    assert "clip2.mp4" not in {r.video for r in TokenDataset(str(tmp_path / "o"))}
    assert "it ends early" in (tmp_path / "o" / "rejected.jsonl").read_text()


def test_files_out_of_reach_for_a_moment_are_tried_again(
    records, tokenizer, tmp_path, make_plan, monkeypatch
):
    real, failed = reading.open_clip, set()

    def flaky(record, *arguments):
        if record.id not in failed:
            failed.add(record.id)
            raise BrokenVideoError(record.path, "no answer", transient=True)
        return real(record, *arguments)

    monkeypatch.setattr(reading, "open_clip", flaky)
    monkeypatch.setattr(reading, "_FIRST_DELAY", 0.001)
    plan = make_plan(records, tmp_path / "o")
    assert export(plan, records, tokenizer, Machine()).clips == 8 and len(failed) == 10


def test_finished_shards_are_not_computed_again(
    exported, records, tokenizer, tmp_path, make_plan, copy_of
):
    output = copy_of(exported[0], tmp_path / "o")
    plan = make_plan(records, output)
    plan.write_or_compare()
    (output / "reports" / "00001.json").unlink()
    damaged = output / plan.job.shard_name(2)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    stamp = (output / plan.job.shard_name(0)).stat().st_mtime_ns
    seen = []
    export(plan, records, tokenizer, Machine(), lambda p: seen.append(p.clips + p.rejected))
    assert seen[-1] == len(plan.clips_of(1)) + len(plan.clips_of(2)) < len(records)
    assert (output / plan.job.shard_name(0)).stat().st_mtime_ns == stamp
    assert hashes(output) == hashes(exported[0])


@pytest.mark.parametrize("damage", ["flip", "swap", "report", "counts"])
def test_damaged_shards_are_made_again(exported, records, tokenizer, tmp_path, make_plan, damage):
    shutil.copytree(exported[0], tmp_path / "o")
    plan = make_plan(records, tmp_path / "o")
    one, two = (Path(plan.job.shard_path(number)) for number in (0, 1))
    if damage == "flip":
        data = bytearray(one.read_bytes())
        data[len(data) // 2] ^= 1
        one.write_bytes(data)
    elif damage == "swap":  # Equal sizes are not needed: reports are swapped in size, too.
        for number, other in ((0, two), (1, one)):
            path = Path(plan.job.report_path(number))
            size = {"file_bytes": other.stat().st_size}
            path.write_text(json.dumps(json.loads(path.read_text()) | size))
        one.rename(tmp_path / "x"), two.rename(one), (tmp_path / "x").rename(two)
    elif damage == "report":
        Path(plan.job.report_path(1)).write_text(json.dumps({"file_bytes": two.stat().st_size}))
    else:
        Path(plan.job.report_path(1, "npz")).write_bytes(b"")
    drop_damaged(plan, Machine())
    export(plan, records, tokenizer, Machine())
    assert hashes(tmp_path / "o") == hashes(exported[0])


def test_another_export_in_the_same_folder_is_refused(exported, records, make_plan, tmp_path):
    make_plan(records, tmp_path / "o").write_or_compare()
    make_plan(records, tmp_path / "o").write_or_compare()
    with pytest.raises(UserError, match=r"differs in shards \(3, now 4\)"):
        make_plan(records, tmp_path / "o", shards=4).write_or_compare()
    with pytest.raises(UserError, match="the list of clips"):
        make_plan(records[1:], tmp_path / "o").write_or_compare()
    other = make_plan(records, tmp_path / "o")
    other = dataclasses.replace(
        other, provenance=dataclasses.replace(other.provenance, checkpoint="other")
    )
    with pytest.raises(UserError, match="checkpoint"):
        other.write_or_compare()


def test_two_clips_of_one_id_are_refused(records, make_plan, tmp_path):
    with pytest.raises(UserError, match="two clips with the id clip0.mp4"):
        make_plan([*records, records[0]], tmp_path / "o")


def test_locks(tmp_path):
    with export_lock(str(tmp_path), 0, 2), export_lock(str(tmp_path), 1, 2):
        with (
            pytest.raises(UserError, match=rf"process {os.getpid()} on .* is exporting"),
            export_lock(str(tmp_path), 1, 2),
        ):
            pass
        with pytest.raises(UserError, match="of 2"), export_lock(str(tmp_path), 0, 1):
            pass
    with export_lock(str(tmp_path), 0, 1):
        pass


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
@pytest.mark.parametrize("bits", [6, 18])
def test_tfds_and_tensorflow_read_it(records, tmp_path, make_plan, kind, bits):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    from tests.tokens.conftest import plan_of
    from tests.tokens.tiny import PixelTokenizer

    tokenizer = PixelTokenizer(bits=bits)
    plan = plan_of(tokenizer, records, tmp_path / "o", format=kind)
    export(plan, records, tokenizer, Machine())
    card = write_card(plan)
    ours = {r.id: r for r in TokenDataset(str(tmp_path / "o"))}
    builder = tfds.builder_from_directory(str(tmp_path / "o"))
    assert builder.info.splits["train"].num_examples == len(ours) == 12
    if kind == "array_record":  # TFDS has one way of reading for each format.
        rows = list(builder.as_data_source(split="train"))
    else:
        rows = list(builder.as_dataset(split="train").as_numpy_iterator())
    assert len(rows) == 12
    for row in rows:
        name = row["id"].decode() if isinstance(row["id"], bytes) else row["id"]
        for number, level in enumerate(ours[name].tokens, start=1):
            stored = row[f"tokens_{number}"]
            assert stored.dtype == (np.uint16 if bits <= 16 else np.uint32)
            shape = stored.shape if bits <= 16 else tuple(row[f"grid_{number}"])
            assert shape == level.shape
            np.testing.assert_array_equal(stored.reshape(level.shape), level)
        assert row["checksum"] and row["frames"] == ours[name].frames
    if kind == "tfrecord":
        spec = {key: eval(text, {"tf": tf}) for key, text in card["feature_spec"].items()}
        files = sorted(str(p) for p in (tmp_path / "o").glob("*.tfrecord-*"))
        parsed = tf.data.TFRecordDataset(files).map(lambda x: tf.io.parse_single_example(x, spec))
        for row in parsed:
            level = ours[row["id"].numpy().decode()].tokens[0]
            if bits <= 16:
                flat = tf.io.decode_raw(row["tokens_1/value"], tf.uint16)
                ids = tf.reshape(flat, row["tokens_1/shape"])
            else:
                ids = tf.reshape(tf.sparse.to_dense(row["tokens_1"]), row["grid_1"])
            np.testing.assert_array_equal(ids.numpy(), level)


def test_grain_reads_it(exported):
    import grain
    import jax

    dataset = TokenDataset(str(exported[0]))
    batches = grain.MapDataset.source(dataset.sequences()).shuffle(seed=0).to_iter_dataset()
    items = {item["id"]: item for item in batches}
    assert len(items) == 12
    record = next(r for r in dataset if r.id == "clip0.mp4")
    item = items["clip0.mp4"]
    assert item["sequence"].shape == (30 + 18 + 12 + 48 + 4,)
    assert item["caption"] == record.caption == "noise number 0"
    assert isinstance(dataset.sequences(as_jax=True)[0]["sequence"], jax.Array)


def test_the_card_adds_up(exported):
    output, card = exported
    stored = list(TokenDataset(str(output)))
    assert card["tokens"] == sum(r.count for r in stored)
    assert card["frames"] == 5 + 7 + 12 + 5 + 9 + 3 + 5 + 1
    pixels = (5 + 12 + 5 + 9 + 3 + 5) * 32 * 48 + 7 * 40 * 30 + 30 * 41
    assert card["bpp_raw"] == pytest.approx(card["tokens"] * 6 / pixels)
    counts = np.bincount(np.concatenate([r.tokens[2].ravel() for r in stored]), minlength=64)
    assert card["levels"][2]["used"] == (counts > 0).sum()
    assert sum(card["levels"][2]["histogram"].values()) == 64
    text = (output / "DATASET_CARD.md").read_text()
    assert "| rejected clips | 2 |" in text and "tokens_4/value" in text


def test_memory_is_bounded_by_the_buffer():
    from pyratok_jax.tokens.batches import Budget

    budget = Budget(100)
    assert budget.take(1000)  # One item always fits.
    budget.give(1000)
    assert budget.take(60) and budget.take(40)
    budget.close()
    assert not budget.take(1)


def test_a_full_disk_ends_clearly_and_can_be_continued(
    exported, records, tokenizer, tmp_path, make_plan, monkeypatch
):
    plan = make_plan(records, tmp_path / "o", shards=3)
    real, calls = sharded_job.publish, []

    def publish(local, target):
        calls.append(target.name)
        # From the second shard on; another may be written before the first failure is noticed.
        if len(calls) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(local, target)

    monkeypatch.setattr(sharded_job, "publish", publish)
    with pytest.raises(UserError, match="full: 1 of 3 shards are finished.*same command"):
        export(plan, records, tokenizer, Machine())
    assert [p for p in (tmp_path / "o").iterdir() if p.name.startswith(".unf")] == []
    monkeypatch.undo()
    export(plan, records, tokenizer, Machine())
    assert hashes(tmp_path / "o") == hashes(exported[0])


def test_a_file_system_that_is_too_small(records, tokenizer, tmp_path, make_plan):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        plan = make_plan(records, disk / "o")
        with pytest.raises(UserError, match="is full"):
            export(plan, records, tokenizer, Machine())
        whole = [n for n in range(3) if plan.job.is_done(n)]
        for number in whole:
            assert len(TokenDataset(str(disk / "o" / plan.job.shard_name(number))))
        mount[4] = "remount,size=30m"
        subprocess.run(mount, check=True)
        export(plan, records, tokenizer, Machine())
        assert len(contents(disk / "o")) == 12
    finally:
        # Lazily: readers may still hold files.
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("name", ["publish", "write_json"])
def test_interrupted_at_every_write_and_started_again(
    exported, records, tokenizer, tmp_path, make_plan, monkeypatch, name
):
    """Shard, counts and report of each of three shards; then the same bytes as in one go."""
    real = getattr(sharded_job, name)
    for stop in range(1, 7 if name == "publish" else 4):
        plan = make_plan(records, tmp_path / str(stop))
        calls = []

        def write(*arguments, stop=stop, calls=calls):
            calls.append(arguments)
            if len(calls) == stop:
                raise KeyboardInterrupt
            real(*arguments)

        monkeypatch.setattr(sharded_job, name, write)
        with pytest.raises(KeyboardInterrupt):
            export(plan, records, tokenizer, Machine())
        monkeypatch.undo()
        assert write_card(plan) is None
        export(plan, records, tokenizer, Machine())
        assert hashes(tmp_path / str(stop)) == hashes(exported[0])
        assert write_card(plan) == exported[1]


def test_killed_and_started_again(exported, videos, tmp_path, start_export, make_plan, records):
    output = tmp_path / "o"
    arguments = ["--checkpoint", "0", "--input", videos, "--output", output, "--shards", "3",
                 "--window", "5", "--batch", "2"]  # fmt: skip
    # The first shard's three batches, and no more.
    process = start_export(*arguments, "--readers", "1", wait=False, FAST="3")
    deadline = time.monotonic() + 200
    while not list(output.glob("reports/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        refused = start_export(*arguments)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert refused.returncode == 2 and f"process {process.pid} on" in refused.err
    assert refused.err.count("\n") == 1
    left = [p.name for p in output.iterdir() if p.name.startswith(".unfinished")]
    done = hashes(output)
    assert len(done) == 1 and left
    again = start_export(*arguments)
    assert again.returncode == 4, again.err  # Done; some of the videos are damaged.
    assert hashes(output) == hashes(exported[0])
    assert (output / "rejected.jsonl").read_bytes() == (exported[0] / "rejected.jsonl").read_bytes()
    assert not [p for p in output.iterdir() if p.name.startswith(".unfinished")]
    assert "dataset_card" not in again.out and "DATASET_CARD.md" in again.out.replace("\n", "")


def test_tiles_cover_and_blend():
    assert tile_starts(100, 0, 0) == [0]
    assert tile_starts(100, 40, 10) == [0, 30, 60]
    assert tile_starts(95, 40, 10) == [0, 30, 55]
    video = np.random.default_rng(0).integers(0, 255, (3, 50, 70, 3), dtype=np.uint8)
    blocks = list(cut_blocks(iter(video), 2, 32, 8))
    assert [b.first_frame for b in blocks] == [0] * 6 + [2] * 6
    assert [b.number for b in blocks] == list(range(12))
    joiner = WindowJoiner(2, 50, 70)
    for block in blocks[:6]:
        assert block.frames.shape == (2, 32, 32, 3)
        joiner.add(block.frames, block.top, block.left, 8)
    np.testing.assert_array_equal(joiner.frames(), video[:2])
    seam = WindowJoiner(1, 4, 12)
    seam.add(np.full((1, 4, 8, 3), 100, np.uint8), 0, 0, 4)
    seam.add(np.full((1, 4, 8, 3), 200, np.uint8), 0, 4, 4)
    # Weights 4 3 2 1 of 5 fall from left to right, 1 2 3 4 rise.
    assert seam.frames()[0, 0, :, 0].tolist() == [100] * 4 + [120, 140, 160, 180] + [200] * 4


def test_options_are_checked():
    for changes, message in (
        ({"window": 6}, "4k.1; the nearest that are: 5 and 9"),
        ({"shards": 0}, "--shards is below 1"),
        ({"round_frames": 6}, "multiple of 4"),
        ({"round_sides": 24}, "multiple of 16"),
        ({"round_sides": -16}, "--round-sides -16 is not a multiple of 16"),
        ({"tile": 32, "overlap": 20}, "half a tile"),
        ({"overlap": 32}, "--overlap 32 goes with --tile"),
        ({"short_side": -3}, "--short-side -3: expected pixels"),
        ({"fps": -5.0}, "--fps -5.0: expected frames per second"),
        ({"fps": float("nan")}, "--fps nan"),
        ({"fps": float("inf")}, "--fps inf"),
    ):
        with pytest.raises(UserError, match=message):
            ExportOptions(**changes).resolved(4).check(4, 16)


def test_rate_and_size_can_be_reduced(videos):
    record = next(r for r in load_source(str(videos)) if r.id == "clip2.mp4")
    stream = blocks.open_clip(record, fps=10.0, short_side=16)
    kept = list(stream.frames)
    # 12 frames at 25/s last 0.48 s; at 0, .1, .2, .3, .4 s the frames 0, 2, 5, 7, 10 are shown.
    assert stream.fps == 10.0 and len(kept) == 5 and kept[0].shape == (16, 24, 3)
    whole = list(blocks.open_clip(record).frames)
    picked = [f for n, f in enumerate(whole) if n in (0, 2, 5, 7, 10)]
    same = list(blocks.open_clip(record, fps=10.0).frames)
    np.testing.assert_array_equal(np.stack(same), np.stack(picked))


def test_defects_are_not_taken_for_broken_videos(
    records, tokenizer, tmp_path, make_plan, monkeypatch
):
    def defect(*arguments):
        raise RuntimeError("a defect")

    monkeypatch.setattr(exporting.Encoding, "_encode", defect)
    with pytest.raises(RuntimeError, match="a defect"):
        export(make_plan(records, tmp_path / "o"), records, tokenizer, Machine())
