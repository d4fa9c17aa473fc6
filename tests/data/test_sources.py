import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyratok_jax.data.sources.examples import encode_example
from pyratok_jax.data.sources.manifests import load_manifest
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.errors import UserError
from pyratok_jax.io.shards import ShardWriter


def test_folder_with_sidecars(clips_folder):
    records = load_source(str(clips_folder))
    assert [r.id for r in records] == [f"clip{i}.mp4" for i in range(8)]
    assert records[3].caption == "grey ramp number 3"


def test_folder_with_images_and_json_sidecars(tmp_path):
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "deep" / "a.png")
    (tmp_path / "deep" / "a.json").write_text(json.dumps({"caption": "black"}))
    Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg")
    assert [(r.id, r.caption) for r in load_source(str(tmp_path))] == [
        ("b.jpg", None),
        ("deep/a.png", "black"),
    ]


def test_shards_that_are_missing_or_empty_are_refused(tmp_path):
    for number in (0, 2):
        path = tmp_path / f"c-train.array_record-{number:05d}-of-00003"
        with ShardWriter(path, "array_record") as writer:
            writer.write(encode_example({"id": str(number)}, [b"video"]))
    with pytest.raises(
        UserError, match="lacks c-train.array_record-00001-of-00003: the command"
    ) as said:
        load_source(str(tmp_path))
    assert f"{tmp_path}/*-of-* as the source" in str(said.value) and "\n" not in str(said.value)
    assert [r.id for r in load_source(f"{tmp_path}/*-of-*")] == ["0", "2"]
    empty = tmp_path / "empty"
    empty.mkdir()
    for number in range(2):
        with ShardWriter(empty / f"c-train.array_record-{number:05d}-of-00002", "array_record"):
            pass
    with pytest.raises(UserError, match="hold no clip"):
        load_source(str(empty))


def rows():
    return [
        {"path": "a.mp4", "caption": "one"},
        {"path": "/x/b.mp4", "caption": "two", "start": 1.5, "end": 2.5},
        {"path": "gs://bucket/c.mp4", "caption": "three", "width": 640, "height": 360},
    ]


def write(folder, kind):
    path = folder / f"m.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows()))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    elif kind == "csv":
        lines = ["path,caption,start,end,width,height", "a.mp4,one,,,,", "/x/b.mp4,two,1.5,2.5,,"]
        path.write_text("\n".join([*lines, "gs://bucket/c.mp4,three,,,640,360"]))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {key: None for row in rows() for key in row}
        pq.write_table(pa.Table.from_pylist([columns | row for row in rows()]), path)
    return str(path)


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_manifest_kinds_agree(tmp_path, kind):
    a, b, c = load_source(write(tmp_path, kind))
    assert (a.path, a.caption, a.start) == (str(tmp_path / "a.mp4"), "one", None)
    assert (b.path, b.start, b.end, b.span) == ("/x/b.mp4", 1.5, 2.5, 1.0)
    assert (c.path, c.width, c.height) == ("gs://bucket/c.mp4", 640, 360)


PUBLISHED = {
    "openvid.csv": (
        "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,"
        "frame,fps,seconds,new_id\n"
        "celebv_x.mp4,a woman speaks,4.96,2.5,0.99,static,113,29.97,3.77,0\n",
        ("celebv_x.mp4", "a woman speaks", None, None, 3.77, 29.97),
    ),
    "webvid.csv": (
        "videoid,contentUrl,duration,page_dir,name\n"
        "21179416,https://x/1.mp4,PT00H00M11S,006001_006050,Aerial shot winter forest\n",
        ("006001_006050/21179416.mp4", "Aerial shot winter forest", None, None, 11.0, None),
    ),
    "droplet.csv": (
        "video_path,text,start_frame,end_frame,fps\nd/1.mp4,a drop falls,50,150,25\n",
        ("d/1.mp4", "a drop falls", 2.0, 6.0, None, 25.0),
    ),
    "droplet_times.csv": (
        "video,caption,start_time,end_time\nd/1.mp4,a drop falls,00:01:02.5,00:01:04\n",
        ("d/1.mp4", "a drop falls", 62.5, 64.0, None, None),
    ),
    "ultravideo.csv": (
        "clip_id,Brief Description,Detailed Description,Summarized Description\n"
        "vid_17.mp4,short,very long,in short\n",
        ("vid_17.mp4", "in short", None, None, None, None),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_columns(tmp_path, name):
    text, expected = PUBLISHED[name]
    (tmp_path / name).write_text(text)
    (r,) = load_source(str(tmp_path / name))
    path = r.path.removeprefix(f"{tmp_path}/")
    assert (path, r.caption, r.start, r.end, r.seconds, r.fps) == expected


def test_coco_captions(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "val2017" / "000001.jpg")
    table = {
        "images": [{"id": 7, "file_name": "000001.jpg", "width": 8, "height": 6}],
        "annotations": [
            {"image_id": 7, "id": 1, "caption": "a cat"},
            {"image_id": 7, "id": 2, "caption": "another"},
        ],
    }
    file = tmp_path / "annotations" / "captions_val2017.json"
    file.write_text(json.dumps(table))
    (record,) = load_source(str(file))
    assert record.path == str(tmp_path / "val2017" / "000001.jpg")
    assert (record.caption, record.width, record.height) == ("a cat", 8, 6)


BAD = {
    "no_path.json": ('[{"caption": "x"}]', "row 1 of .*no key path"),
    "twice.json": ('[{"path": "a"}, {"path": "a"}]', "rows 1 and 2 .* same clip"),
    "ids.json": ('[{"path": "a", "id": 1}, {"path": "b", "id": 1}]', "rows 1 and 2"),
    "empty.jsonl": ("", "lists no clip"),
    "half.json": ('[{"path": ', "not a valid .json"),
    "half.jsonl": ('{"path": "a"}\n{"pa', "line 2"),
    "list.json": ('["a.mp4"]', "row 1 of .* is not an object"),
    "span.csv": ("path,start,end\na,3,2\n", "no span of time"),
    "word.csv": ("path,start\na,soon\n", "expected a number"),
    "not.parquet": ("PAR", "not a valid .parquet"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_manifests_say_what_and_where(tmp_path, name):
    text, message = BAD[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_source(str(tmp_path / name))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_same_file_with_other_times_is_no_repeat(tmp_path):
    (tmp_path / "m.csv").write_text("path,start,end\na,0,1\na,1,2\n")
    assert len({r.id for r in load_source(str(tmp_path / "m.csv"))}) == 2


def test_missing_and_unknown_sources(tmp_path):
    for spec in (tmp_path / "none", "builtin:cats", tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError):
            load_source(str(spec))
    (tmp_path / "a.xyz").write_text("")
    with pytest.raises(UserError, match="neither"):
        load_source(str(tmp_path / "a.xyz"))


def test_remote_manifest_is_retried(tmp_path, monkeypatch):
    from pyratok_jax.data.sources import manifests
    from pyratok_jax.data.video import decoding

    file = write(tmp_path, "json")
    failures = [OSError("bucket away"), FileNotFoundError("bucket away")]

    class Flaky:
        suffix, stem, parent = ".json", "m", manifests.epath.Path("gs://bucket")

        def __init__(self, _):
            pass

        def read_bytes(self):
            if failures:
                raise failures.pop()
            return Path(file).read_bytes()

    waits = []
    monkeypatch.setattr(manifests.epath, "Path", Flaky)
    monkeypatch.setattr("pyratok_jax.io.remote._unreachable", lambda scheme: "")
    monkeypatch.setattr(decoding.time, "sleep", waits.append)
    assert len(load_manifest("gs://bucket/m.json")) == 3
    assert waits == [1.0, 2.0]
