import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from pyratok_jax.data.config import data_config
from pyratok_jax.data.pipeline import make_loader
from pyratok_jax.data.prepare import beam_options, main, parser
from pyratok_jax.data.sources.index import index_clips
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.data.video.files import BrokenVideoError, read_clip, read_image
from pyratok_jax.errors import UserError
from pyratok_jax.io import sharded_job
from tests.data.synthetic import numbers_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def raw(clips_folder, tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("raw")
    for i in range(4):
        for suffix in ("mp4", "txt"):
            shutil.copy(clips_folder / f"clip{i}.{suffix}", folder)
    (folder / "bad.mp4").write_text("no video")
    Image.new("RGB", (64, 48), (200, 10, 10)).save(folder / "red.png")
    Image.new("RGB", (8, 8)).save(folder / "tiny.png")
    return folder


def prepare(raw, output, *more, runner="none"):
    main(["--input", str(raw), "--output", str(output), "--shards", "2", "--runner", runner,
          "--clip-seconds", "0.8", "--min-side", "16", "--buckets", "5x24x32", "--time-limit",
          "30", *more])  # fmt: skip
    return output


def hashes(folder):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.iterdir())
        if p.is_file()
    }


@pytest.fixture(scope="module")
def reencoded(raw, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "reencoded"
    return prepare(raw, output, "--store", "reencode", "--height", "24")


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    return prepare(raw, tmp_path_factory.mktemp("out") / "bytes")


def test_statistics_and_rejections(prepared):
    statistics = json.loads((prepared / "statistics.json").read_text())
    assert statistics["clips"] == 9 and statistics["frames"] == 161
    assert statistics["rejected_by_reason"] == {"broken": 1, "resolution": 1}
    rejected = [json.loads(x) for x in (prepared / "rejected.jsonl").read_text().splitlines()]
    assert {r["id"] for r in rejected} == {"bad.mp4", "tiny.png"}
    assert all(r["reason"] and r["path"] for r in rejected)


def test_the_output_is_a_tfds_dataset(prepared):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(prepared))
    assert builder.info.splits["train"].num_examples == 9
    rows = list(builder.as_data_source(split="train"))
    by_id = {str(row["id"], "utf-8") if isinstance(row["id"], bytes) else row["id"]: row
             for row in rows}  # fmt: skip
    row = by_id["clip2.mp4#001"]
    caption = row["caption"]
    assert (caption.decode() if isinstance(caption, bytes) else caption) == "grey ramp number 2"
    assert row["frames"] == 20 and row["width"] == 64
    clip = read_clip(bytes(row["video"]), start=float(row["start"]), frames=3)
    assert numbers_of(clip[:, 8:]) == [20, 21, 22]


@pytest.mark.parametrize("store", ["bytes", "reencode", "frames"])
@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_training_reads_shards_of_every_kind(raw, tmp_path, kind, store):
    more = {"bytes": [], "reencode": ["--height", "40", "--crf", "4"], "frames": ["--height", "40"]}
    output = prepare(raw, tmp_path / "out", "--format", kind, "--store", store, *more[store])
    records = load_source(str(output))
    assert len(records) == 9
    assert np.isinf(index_clips(records, None).seconds).sum() == 1  # The image; nothing is read.
    config = data_config(sources=(str(output),), buckets=("5x24x32",), decode_time_limit=0.0)
    loader = make_loader(config, seed=0, batch_size=9)
    batch = next(loader)
    loader.close()
    assert sorted(batch["ids"])[:2] == ["clip0.mp4#000", "clip0.mp4#001"]
    assert not loader.broken
    for name, clip in zip(batch["ids"], batch["video"], strict=True):
        if name == "red.png":
            assert np.abs(clip.astype(int) - [200, 10, 10]).max() <= 4
            continue
        # Twice encoded: grey levels (6 per frame) are only right to about half a step.
        grey = clip[:, 6:, :8].mean(axis=(1, 2, 3))
        assert (np.abs(np.diff(grey) - 6) < 2.5).all()
        first = (grey[0] - 10) / 6 - 20 * int(name[-1])
        assert -0.75 < first < 15.75


def test_shards_of_others_are_found_by_common_keys(tmp_path, clips_folder):
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["mp4"].bytes_list.value.append((clips_folder / "clip1.mp4").read_bytes())
    feature["txt"].bytes_list.value.append(b"from elsewhere")
    writer = ArrayRecordWriter(str(tmp_path / "x.array_record"), "group_size:1")
    writer.write(example.SerializeToString())
    writer.write(b"\xff\xff garbage")
    writer.close()
    records = load_source(str(tmp_path))
    assert records[0].caption == "from elsewhere"
    assert numbers_of(read_clip(records[0].media, start=0.2, frames=2)) == [5, 6]
    with pytest.raises(BrokenVideoError, match=r"x.array_record#1"):
        records[1]
    config = data_config(
        sources=(str(tmp_path),), buckets=("5x24x32",), decode_time_limit=0.0, max_broken_share=0.6
    )
    loader = make_loader(config, seed=0, batch_size=2)
    assert next(loader)["video"].shape == (2, 5, 24, 32, 3) and len(loader.broken) == 1
    loader.close()


def test_tfds_builders_by_name(raw, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    output = prepare(raw, tmp_path / "clips" / "1.0.0")
    monkeypatch.setattr(tfds, "builder", lambda name: tfds.builder_from_directory(str(output)))
    assert len(load_source("tfds:clips:train")) == 9
    with pytest.raises(UserError, match="no shards of split test"):
        load_source("tfds:clips:test")
    monkeypatch.undo()
    with pytest.raises(UserError, match="knows no dataset"):
        load_source("tfds:no_such_set_of_clips")


def test_same_bytes_again_and_resumed_without_redoing(raw, prepared, tmp_path, monkeypatch):
    other = prepare(raw, tmp_path / "again")
    assert hashes(other) == hashes(prepared)
    shard = sorted(other.glob("clips-train*"))[0]
    (other / "reports" / "00000.json").unlink()  # As after an interruption in the first shard.
    shard.write_bytes(b"half")
    stamps = {p.name: p.stat().st_mtime_ns for p in other.glob("clips-train*")}
    written = []
    real = sharded_job.publish
    monkeypatch.setattr(sharded_job, "publish", lambda a, b: (written.append(b.name), real(a, b)))
    prepare(raw, other)
    assert hashes(other) == hashes(prepared)
    assert [n for n in written if n.startswith("clips-train")] == [shard.name]
    last = sorted(other.glob("clips-train*"))[1]
    assert last.stat().st_mtime_ns == stamps[last.name]


def test_a_bucket_is_prepared_in_another_and_resumed(raw, prepared, bucket, capsys):
    for name in ("clip0.mp4", "clip0.txt", "clip1.mp4", "bad.mp4"):
        bucket.store(f"raw/{name}", (raw / name).read_bytes())
    for there in (0, 1):
        prepare("gs://bucket/raw", "gs://bucket/prepared")
        assert f"2 shards, {there} of them already written" in capsys.readouterr().out
        bucket.store("prepared/reports/00000.json", b"cut")
    statistics = json.loads(bucket.objects["prepared/statistics.json"][0])
    assert statistics["rejected_by_reason"] == {"broken": 1}
    own, local = load_source("gs://bucket/prepared"), load_source(str(prepared))
    assert [r.id for r in own] == [r.id for r in local if r.id.startswith(("clip0", "clip1"))]
    frames = (read_clip(some[0].media, start=0.0, frames=3) for some in (own, local))
    np.testing.assert_array_equal(*frames)


def test_damaged_shards_are_written_again(raw, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PYRATOK_VERIFY", raising=False)
    other = tmp_path / "again"
    shutil.copytree(prepared, other)
    shards = sorted(other.glob("clips-train*"))
    data = bytearray(shards[0].read_bytes())
    data[len(data) // 2] ^= 1
    shards[0].write_bytes(data)
    report = other / "reports" / "00001.json"
    values = json.loads(report.read_text())
    values["clips"][0]["frames"] = "many"
    report.write_text(json.dumps(values))
    prepare(raw, other)
    assert hashes(other) == hashes(prepared)
    said = capsys.readouterr().out
    assert all(f"{path.name} is damaged" in said for path in shards)


# Memory that is used before it is written shows: it is filled with another byte in each.
@pytest.mark.parametrize("fill", ["17", "165"])
def test_reencoding_gives_the_same_bytes_in_every_process(raw, reencoded, tmp_path, fill):
    code = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from pyratok_jax.data.prepare import main; main(sys.argv[1:])"
    )
    given = ["--input", raw, "--output", tmp_path / "b", "--shards", "2", "--runner", "none",
             "--clip-seconds", "0.8", "--min-side", "16", "--buckets", "5x24x32",
             "--time-limit", "30", "--store", "reencode", "--height", "24"]  # fmt: skip
    subprocess.run(
        [sys.executable, "-c", code, *map(str, given)], check=True, capture_output=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT), MALLOC_PERTURB_=fill),
    )  # fmt: skip
    assert hashes(reencoded) == hashes(tmp_path / "b")


def test_shards_of_two_preparations_never_lie_in_one_folder(raw, prepared):
    before = hashes(prepared)
    for more in (["--shards", "3"], ["--format", "tfrecord"], ["--name", "other"]):
        with pytest.raises(UserError, match="clips-train.*of another preparation"):
            prepare(raw, prepared, *more)
    assert hashes(prepared) == before


def test_a_damaged_index_of_sizes_is_refused(prepared, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    with np.load(prepared / "clips.npz") as file:
        columns = dict(file)
    wrong = (
        {k: v for k, v in columns.items() if k != "seconds"},
        columns | {"fps": np.array([{}] * 9)},
        columns | {"width": columns["width"] * np.nan},
        columns | {"seconds": columns["seconds"] * -1},
        columns | {"fps": columns["fps"][:, None]},
    )
    for values in wrong:
        np.savez(folder / "clips.npz", **values)
        with pytest.raises(UserError, match="clips.npz.*remove it: sizes and lengths are then"):
            load_source(str(folder))
    (folder / "clips.npz").write_bytes(b"")
    with pytest.raises(UserError, match="clips.npz.*remove it"):
        load_source(str(folder))


def test_filters_name_their_reason(raw, tmp_path):
    output = prepare(raw, tmp_path / "o", "--min-seconds", "0.81", "--max-aspect", "1.2",
                     "--clip-seconds", "0", "--min-side", "0")  # fmt: skip
    reasons = json.loads((output / "statistics.json").read_text())["rejected_by_reason"]
    assert reasons == {"aspect": 5, "broken": 1}
    output = prepare(raw, tmp_path / "p", "--max-seconds", "1", "--clip-seconds", "0")
    reasons = json.loads((output / "statistics.json").read_text())["rejected_by_reason"]
    assert reasons == {"broken": 1, "duration": 4, "resolution": 1}
    with pytest.raises(UserError, match="no clip was kept.*resolution"):
        prepare(raw, tmp_path / "q", "--min-side", "49")


def test_wrong_arguments(raw, tmp_path):
    (tmp_path / "file").write_text("")
    for more in (["--shards", "0"], ["--buckets", "5x5"], ["--nonsense", "1"]):
        with pytest.raises(UserError):
            prepare(raw, tmp_path / "x", *more)
    with pytest.raises(UserError, match="is a file"):
        prepare(raw, tmp_path / "file")
    assert not (tmp_path / "x").exists()
    assert "resolution" not in parser().format_help() and "--runner" in parser().format_help()


def test_frames_are_stored_as_images(raw, tmp_path):
    import tensorflow_datasets as tfds

    output = prepare(raw, tmp_path / "o", "--store", "frames", "--height", "24")
    record = next(r for r in load_source(str(output)) if r.id == "clip1.mp4#001")
    assert len(record.stored) == 20
    assert read_image(record.stored[3]).shape == (24, 32, 3)
    again = prepare(output, tmp_path / "again", "--clip-seconds", "0")
    assert next(r for r in load_source(str(again)) if r.id == "clip1.mp4#001") == record
    rows = tfds.builder_from_directory(str(again)).as_data_source(split="train")
    assert np.stack(rows[0]["video"]).shape[1:] == (24, 32, 3) and len(rows) == 9


def test_beam_writes_the_same_bytes_without_a_word_about_its_clients(
    raw, prepared, tmp_path, caplog
):
    prepare(raw, tmp_path / "beam", runner="DirectRunner")
    assert hashes(tmp_path / "beam") == hashes(prepared)
    assert "apitools" not in caplog.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--min-secnds 100 --stroe frames", "--min-seconds for --min-secnds, --store for --stroe"),
        ("--nonsense", "unknown arguments --nonsense"),
        ("--direct_num_workers many", "invalid int value: 'many'"),
    ],
)
def test_options_that_beam_does_not_know_either_are_refused(raw, tmp_path, words, said):
    with pytest.raises(UserError, match=said) as caught:
        prepare(raw, tmp_path / "o", *words.split(), runner="DirectRunner")
    assert "\n" not in str(caught.value) and not (tmp_path / "o").exists()


def test_options_of_beam_and_of_the_server_of_a_runner_pass():
    beam_options("DirectRunner", ["--direct_num_workers=2", "--temp_location", "/tmp/x"])
    beam_options("FlinkRunner", ["--parallelism", "4"])
    with pytest.raises(UserError, match="--quality for --qualty=3"):
        beam_options("FlinkRunner", ["--qualty=3"])


def test_without_beam_the_command_says_what_to_install(raw, tmp_path):
    code = "import sys; sys.modules['apache_beam'] = None; sys.argv = sys.argv[:1] + sys.argv[2:];"
    code += "from pyratok_jax.data.prepare import main, run_cli; run_cli(main)"
    result = subprocess.run(
        [sys.executable, "-c", code, "x", "--input", str(raw), "--output", str(tmp_path / "o")],
        capture_output=True, text=True, check=False, env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    named = re.search(r"pip install -e '\.\[(\w+)\]'", result.stderr).group(1)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"][named]
    assert any(requirement.startswith("apache-beam") for requirement in wanted)
