"""Lists, tables and annotations of evaluations: odd characters, suffixes and damage."""

import contextlib
import json

import numpy as np
import pytest
from PIL import Image

from pyratok_jax.data.caption_embeddings import StoredCaptions
from pyratok_jax.data.sources.manifests import load_manifest
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.labelled import load_classes, load_labelled
from pyratok_jax.evaluation.data.localization import find_video, load_annotations, load_splits
from pyratok_jax.evaluation.data.mvbench import load_questions, parse_answer
from pyratok_jax.evaluation.data.vis import load_davis, load_vis, read_frames, track_masks
from pyratok_jax.evaluation.engine import PartialStore
from pyratok_jax.evaluation.task import BrokenItemError
from tests.damage import damaged, mistaken, survives

MARK = "\ufeff"
OPTIONS = ("red", "green", "blue", "grey")


def test_lists_with_marks_and_odd_line_separators(tmp_path):
    (tmp_path / "list.txt").write_text(f"{MARK}run/a\x0cb.mp4 1\r\nwalk/c\u2028d.mp4 2\n")
    rows = load_labelled(tmp_path, str(tmp_path / "list.txt"))
    assert [row.name for row in rows] == ["run/a\x0cb.mp4", "walk/c\u2028d.mp4"]
    (tmp_path / "classes.txt").write_text(f"{MARK}1 run\n2 walk\n")
    assert load_classes(str(tmp_path / "classes.txt"), rows) == ["run", "walk"]
    (tmp_path / "split_0.list").write_text(f"{MARK}High\x85Jump\n")
    assert load_splits(str(tmp_path)) == {"split_0": ("High\x85Jump",)}


def test_tables_with_marks_quoted_lines_and_suffixes_of_any_case(tmp_path):
    (tmp_path / "id7.MP4").write_bytes(b"x")
    text = f'{MARK}label,youtube_id,time_start,time_end\n"jump\nhigh",id7,0,10\n'
    (tmp_path / "k.csv").write_text(text)
    (row,) = load_labelled(tmp_path, str(tmp_path / "k.csv"))
    assert row.label == "jump\nhigh" and row.path == tmp_path / "id7.MP4"
    (tmp_path / "v_[a].Mkv").write_bytes(b"x")
    assert find_video(tmp_path, "[a]") == tmp_path / "v_[a].Mkv"
    assert find_video(tmp_path, "b") is None


def annotations(path):
    return load_annotations(path)


def questions(path):
    (path.parent / "json").mkdir()
    path.rename(path.parent / "json" / "action_count.json")
    return load_questions(str(path.parent))


@pytest.mark.parametrize("read", [annotations, questions, lambda p: load_vis(p, p.parent)])
@pytest.mark.parametrize("text", ["[" * 200_000, "{", "[3]", '{"videos": 3, "categories": [3]}'])
def test_damaged_annotations_are_one_line(tmp_path, read, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="json") as caught:
        read(tmp_path / "a.json")
    assert len(str(caught.value)) < 400


def test_annotations_with_a_byte_order_mark(tmp_path):
    database = {"v": {"annotations": [{"segment": [0, 1], "label": "a"}]}}
    (tmp_path / "a.json").write_text(MARK + json.dumps({"database": database}))
    assert load_annotations(tmp_path / "a.json").labels == ("a",)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("I think it is A", 0),
        ("The one that fits is B.", 1),
        ("A red ball", 0),
        ("A ball that is neither", None),
        ("(A) and (B) are wrong, so the answer is C.", 2),
        ("Not (B). The answer is (D)", 3),
        ("(B) green", 1),
        ("A", 0),
    ],
)
def test_answers_in_free_text(text, answer):
    assert parse_answer(text, OPTIONS) == answer


def test_pictures_of_any_suffix_are_turned_as_viewers_do(tmp_path):
    for name in ("JPEGImages", "Annotations"):
        (tmp_path / name / "clip").mkdir(parents=True)
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "JPEGImages/clip/0.JPG", quality=95, exif=exif)
    Image.fromarray(np.ones((24, 16), np.uint8)).save(tmp_path / "Annotations/clip/0.PNG")
    (tmp_path / "objects.json").write_text(MARK + '{"clip": {"1": "thing"}}')
    data = load_davis(tmp_path)
    (frame,) = read_frames(data.videos[0])
    assert frame.shape == (24, 16, 3) and frame[:6].min() > 200 and frame[12:].max() < 60
    assert list(data.categories.values()) == ["thing"]


COCO = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 3}, "images: .*list"),
        ({"images": [{"id": 1, "file_name": 7}]}, "images.0.file_name"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "width": -4}]}, "width"),
        ({"images": ["a.jpg"]}, "images.0"),
        ({"annotations": [{"image_id": []}]}, "image_id"),
        ({"annotations": [{"image_id": 1, "caption": {"a": 1}}]}, "caption"),
        ({"images": []}, "lists no image"),
    ],
)
def test_coco_tables_are_checked(tmp_path, change, message):
    (tmp_path / "c.json").write_text(json.dumps(COCO | change))
    with pytest.raises(UserError, match=f"c.json.*{message}"):
        load_manifest(str(tmp_path / "c.json"))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet"])
def test_damaged_manifests_are_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"[" * 200_000)
    with pytest.raises(UserError, match=name):
        load_manifest(str(tmp_path / name))
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="at most"):
        load_manifest(str(tmp_path / name))


INDEX = {"format": "x", "width": 16, "length": 8, "model": "m", "captions": {}}


@pytest.mark.parametrize(
    "value",
    [[], INDEX | {"width": 1 << 40}, INDEX | {"captions": {"a": [1, 2]}}, INDEX | {"length": -1}],
)
def test_damaged_indices_of_embeddings_are_refused(tmp_path, value):
    (tmp_path / "index.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"index\.json"):
        StoredCaptions(tmp_path)


@pytest.mark.parametrize("damage", ["folder", "flip", "cut", "empty"])
def test_damaged_partial_results_are_made_again(tmp_path, damage):
    store = PartialStore(tmp_path)
    store.save("a", {"x": np.arange(500), "y": 1})
    path = store.path("a")
    data = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        flipped = data[:60] + bytes([data[60] ^ 255]) + data[61:]
        path.write_bytes({"flip": flipped, "cut": data[:99], "empty": b""}[damage])
    assert store.load("a") is None
    store.save("a", {"x": np.arange(500), "y": 1})
    assert store.load("a")["y"] == 1


DATABASE = {
    "v": {"subset": "test", "annotations": [{"segment": [0, 1.5], "label": "a"}]},
    "w": {"annotations": [{"segment": [1, 2], "label": "b"}]},
}
QUESTIONS = [
    {"video": "a.mp4", "question": "what?", "candidates": ["x", "y"], "answer": "y",
     "start": 1.0, "end": 2.0},
    {"video": "b.mp4", "question": "which?", "candidates": ["x", "y"], "answer": "x",
     "start": 0, "end": 3},
]  # fmt: skip
VIS = {
    "videos": [{"id": 1, "width": 24, "height": 16, "file_names": ["v/0.jpg", "v/1.jpg"]}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [
        {"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "areas": [4, None],
         "segmentations": [{"size": [16, 24], "counts": [0, 10, 374]}, None]},
        {"id": 2, "video_id": 1, "category_id": 1,
         "segmentations": [None, [[1, 1, 9, 1, 9, 9]]]},
    ],
}  # fmt: skip


def masks(path):
    """All masks; one that is none costs its video."""
    for video in load_vis(path, path.parent).videos:
        for track in video.tracks:
            with contextlib.suppress(BrokenItemError):
                track_masks(track, video.height, video.width)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ({"database": DATABASE}, lambda path: load_annotations(path, "test")),
        (QUESTIONS, lambda path: load_questions(str(path.parent.parent), ["episodic_reasoning"])),
        (VIS, masks),
    ],
)
def test_strange_annotations_are_read_or_refused_in_one_line(tmp_path, value, read):
    path, rng = tmp_path / "json" / "episodic_reasoning.json", np.random.default_rng(0)
    path.parent.mkdir()
    whole, results = json.dumps(value).encode(), []
    for turn in range(250):
        text = json.dumps(mistaken(value, rng)).encode() if turn % 3 else damaged(whole, rng, 0)
        path.write_bytes(whole if turn == 0 else text)
        results.append(survives(lambda: read(path)))
    assert results[0] and not all(results)
