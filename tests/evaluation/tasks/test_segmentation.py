"""Segmentation: masks, tracks, their scores, and the task with oracle and random features."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from pyratok_jax.errors import UserError
from pyratok_jax.evaluate import main
from pyratok_jax.evaluation.data.labelled import category_of, semantic_units
from pyratok_jax.evaluation.data.vis import (
    davis_track,
    decode_mask,
    encode_mask,
    load_davis,
    load_vis,
    read_frames,
)
from pyratok_jax.evaluation.models.features import Features, LevelFeatures
from pyratok_jax.evaluation.synthetic import uncompressed_rle
from pyratok_jax.evaluation.task import parse_settings
from pyratok_jax.evaluation.tasks.segmentation import Segmentation
from pyratok_jax.evaluation.vision.masks import (
    FieldSettings,
    log_odds,
    resize_masks,
    similarity_maps,
    split_instances,
    to_pixels,
    unit_masks,
)
from pyratok_jax.evaluation.vision.vis_scores import score_tracks

FAST = ("--set", "crf_iterations=2", "--set", "place_weight=0", "--limit", "2")


def run(data, output, checkpoint, *more):
    main(
        ["--task", "segmentation", "--checkpoint", checkpoint, "--data", str(data)]
        + ["--output", str(output), *more]
    )
    return json.loads((output / "results.json").read_text())


def track(video, category, masks, score):
    segmentations = [encode_mask(m) if m.any() else None for m in masks]
    return {
        "video_id": video.id,
        "category_id": category,
        "score": score,
        "segmentations": segmentations,
    }


def boxes(*spans, frames=4, size=20):
    """Masks (t, size, size): a box of rows `first`..`end`, one span for all frames."""
    masks = np.zeros((frames, size, size), bool)
    for first, end in spans:
        masks[:, first:end, 2:12] = True
    return masks


def test_semantic_units_of_a_prompt():
    prompt = "A red circle moves to the right, and a small dog sits on the green grass."
    assert semantic_units(prompt) == ["red circle", "small dog", "green grass"]
    assert semantic_units("the of and") == []
    categories = {1: "dog", 2: "giant_panda", 3: "red circle"}
    assert category_of("small dog", categories) == 1
    assert category_of("a giant panda", categories) == 2
    assert category_of("circle", categories) is None


def test_run_lengths_of_every_form(rng):
    mask = rng.random((7, 5)) > 0.5
    mask[0, 0] = True
    plain = uncompressed_rle(mask)
    packed = coco.frPyObjects(plain, 7, 5)
    for form in (plain, packed, encode_mask(mask)):
        np.testing.assert_array_equal(decode_mask(form, 7, 5), mask)
    square = [[1.0, 1.0, 4.0, 1.0, 4.0, 4.0, 1.0, 4.0]]
    assert decode_mask(square, 7, 5).sum() == 9
    with pytest.raises(ValueError, match="a mask of"):
        decode_mask(plain, 5, 7)


def test_similarities_reach_their_pixels():
    values = np.zeros((2, 2, 2, 3), np.float32)
    values[0, 0, 0], values[1, 1, 1] = [3, 0, 0], [0, 5, 0]
    level = LevelFeatures(values, np.array([0, 1, 1]), (4, 4))
    maps = similarity_maps(level, np.eye(3, dtype=np.float32)[:2])
    assert maps[0, 0, 0].tolist() == [1, 0] and maps[1, 1, 1].tolist() == [0, 1]
    pixels = to_pixels(maps, level, (7, 6))
    assert pixels.shape == (3, 7, 6, 2)
    np.testing.assert_array_equal(pixels[1], pixels[2])
    assert pixels[0, 0, 0, 0] == 1 and pixels[0, 6, 5, 0] == 0
    assert 0 < pixels[0, 3, 0, 0] < 1


def test_contrast_takes_off_what_a_token_has_in_common_with_every_unit():
    values = np.zeros((1, 1, 2, 3), np.float32)
    # The first token is like all units, the second a little like the second unit alone.
    values[0, 0, 0], values[0, 0, 1] = [1, 1, 1], [0, 0.2, 0.3]
    level = LevelFeatures(values, np.array([0]), (4, 4))
    queries = np.eye(3, dtype=np.float32)[:2]
    plain, contrast = (similarity_maps(level, queries, contrast=c)[0, 0] for c in (False, True))
    assert plain[:, 1].argmax() == 0 and contrast[:, 1].argmax() == 1
    np.testing.assert_allclose(contrast, plain - plain.mean(axis=1, keepdims=True), rtol=1e-6)


def test_each_unit_has_its_own_range_unless_it_is_shared():
    maps = np.zeros((1, 2, 2, 2), np.float32)
    maps[0, 0, 0], maps[0, 1, 1] = (0.9, 0.1), (0.1, 0.3)
    own = log_odds(maps, FieldSettings()) > 0
    assert own[..., 0].sum() == 1 and own[0, 1, 1, 1]
    shared = log_odds(maps, FieldSettings(), shared=True) > 0
    assert shared[0, 0, 0, 0] and not shared[..., 1].any()


def test_a_mask_per_unit_or_pixels_of_one_unit_and_parts_are_ordered_by_size():
    odds = np.full((2, 4, 4, 2), -1.0)
    odds[:, :2, :, 0], odds[:, :, :2, 1] = 20.0, 21.0  # Equal as float32 probabilities.
    masks = unit_masks(odds)
    assert [mask.sum() for mask in masks] == [2 * 2 * 4, 2 * 4 * 2]
    masks = unit_masks(odds, exclusive=True)
    assert not (masks[0] & masks[1]).any()
    assert masks[0].sum() == 2 * 2 * 2 and masks[1].sum() == 2 * 4 * 2
    mask = np.zeros((3, 8, 8), bool)
    mask[:, :2, :2], mask[1, 5:8, 5:8], mask[0, 7, 0] = True, True, True
    parts = split_instances(mask, least=2, most=5)
    assert [part.sum() for part in parts] == [12, 9]
    assert split_instances(np.zeros((2, 2, 2), bool), 1, 5) == []


def test_resized_masks_take_the_nearest_pixel():
    mask = np.zeros((1, 2, 2), bool)
    mask[0, 0, 1] = True
    big = resize_masks(mask, (4, 6))
    assert big[0, :2, 3:].all() and big.sum() == 6
    np.testing.assert_array_equal(resize_masks(big, (2, 2)), mask)


@pytest.fixture
def two_tracks(tmp_path):
    """One video with two things of different classes, as YouTube-VIS writes it."""
    shapes = {1: boxes((0, 10)), 2: boxes((12, 18))}
    annotations = [
        {
            "id": n,
            "video_id": 7,
            "category_id": n,
            "segmentations": [uncompressed_rle(m) for m in masks],
            "iscrowd": 0,
        }
        for n, masks in shapes.items()
    ]
    names = [f"v/{t}.png" for t in range(4)]
    content = {
        "videos": [{"id": 7, "file_names": names, "height": 20, "width": 20}],
        "annotations": annotations,
        "categories": [{"id": n, "name": f"thing{n}"} for n in (1, 2, 3)],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return load_vis(path, tmp_path / "JPEGImages"), content, path


def test_scores_by_hand(two_tracks):
    data = two_tracks[0]
    video = data.videos[0]
    perfect = [track(video, 1, boxes((0, 10)), 0.9), track(video, 2, boxes((12, 18)), 0.8)]
    scores = score_tracks(data, data.videos, perfect)
    assert [scores[k] for k in ("map", "j", "ar")] == pytest.approx([100] * 3)
    # 8 of 10 rows: IoU .8 passes .5 to .8, seven of ten thresholds; the other class is perfect.
    shorter = [track(video, 1, boxes((0, 8)), 0.9), perfect[1]]
    scores = score_tracks(data, data.videos, shorter)
    assert scores["map"] == pytest.approx((70 + 100) / 2)
    assert scores["j"] == pytest.approx((80 + 100) / 2)
    assert scores["ap50"] == pytest.approx(100)
    # One class is not predicted at all.
    scores = score_tracks(data, data.videos, perfect[:1])
    assert [scores[k] for k in ("map", "j")] == pytest.approx([50, 50])
    # A better-ranked false track halves the precision; J takes the best match.
    wrong = [track(video, 1, boxes((15, 20)), 0.95), *perfect]
    scores = score_tracks(data, data.videos, wrong)
    assert [scores[k] for k in ("map", "j")] == pytest.approx([75, 100])


def test_defined_scores_without_predictions_or_truth(two_tracks):
    data, content, path = two_tracks
    empty = score_tracks(data, data.videos, [])
    assert empty["map"] == empty["j"] == 0
    # Predictions of a class that has no ground truth anywhere do not count.
    other = [track(data.videos[0], 3, boxes((0, 10)), 0.9)]
    assert score_tracks(data, data.videos, other)["map"] == 0
    content["annotations"] = []
    path.write_text(json.dumps(content))
    bare = load_vis(path, path.parent)
    assert set(score_tracks(bare, bare.videos, other).values()) == {None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "YouTube-VIS"),
        (lambda c: c.update(annotations=None), "no annotations"),
        (lambda c: c["annotations"][0].pop("video_id"), "annotations.0.video_id"),
        (lambda c: c["annotations"][1].update(category_id=9), "annotation 1"),
        (lambda c: c["annotations"][0]["segmentations"].pop(), "3 masks for 4 frames"),
        (lambda c: c["videos"][0].pop("height"), "videos.0.height"),
        (lambda c: c["videos"][0].update(height=21), "annotation 1, frame 0"),
        (
            lambda c: c["annotations"][1].update(segmentations=["x"] * 4),
            "annotations.1.segmentations.0",
        ),
    ],
)
def test_broken_annotation_files_say_what_is_wrong(two_tracks, change, message):
    _, content, path = two_tracks
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_vis(path, path.parent)


def test_oracle_reaches_100_and_random_nothing(constructed, tmp_path):
    best = run(constructed / "vis", tmp_path / "oracle", "oracle", *FAST)
    for name in ("map", "ap50", "ap75", "ar", "j"):
        assert best["metrics"][name] == pytest.approx(100), name
    assert (tmp_path / "oracle" / "report.html").read_text().count("<img") == 4
    blind = run(constructed / "vis", tmp_path / "random", "random", *FAST)
    assert blind["metrics"]["map"] < 5 and blind["metrics"]["j"] < 30


def test_davis_folders_with_names_and_void(constructed, tmp_path):
    copy = tmp_path / "davis"
    shutil.copytree(constructed / "davis", copy)
    data = load_davis(copy)
    assert len(data.videos) == 3 and len(data.videos[0].tracks) == 2
    masks = np.zeros((2, 6, 6), bool)
    masks[1, 2:4, 1:3] = True
    made = davis_track(masks, 1, 2, 1)
    assert made["segmentations"][0] is None and made["areas"] == [None, 4]
    # A void strip in one frame: kept apart, and not an object.
    file = sorted((copy / "Annotations/480p/scene-000").iterdir())[0]
    labels = np.array(Image.open(file))
    labels[:, :3] = 255
    Image.fromarray(labels).save(file)
    (copy / "objects.json").unlink()
    data = load_davis(copy)
    assert data.videos[0].void[0] is not None and data.videos[0].void[1] is None
    assert {t["category_id"] for t in data.videos[0].tracks} == {1}
    assert data.categories[1] == "scene 000"
    result = run(constructed / "davis", tmp_path / "out", "oracle", *FAST, "--limit", "1")
    assert result["metrics"]["j"] == pytest.approx(100)


def test_missing_and_wrong_frames_are_broken_items(constructed, tmp_path):
    copy = tmp_path / "vis"
    shutil.copytree(constructed / "vis", copy)
    (copy / "JPEGImages/scene_001/00003.png").unlink()
    Image.new("RGB", (9, 9)).save(copy / "JPEGImages/scene_002/00000.png")
    data = load_vis(copy / "instances.json", copy / "JPEGImages")
    assert len(read_frames(data.videos[2])) == 13
    result = run(copy, tmp_path / "out", "oracle", "--set", "crf_iterations=0")
    reasons = [entry["reason"] for entry in result["broken"]]
    assert "no such frame" in reasons[0] and "9x9 pixels" in reasons[1]
    assert result["metrics"]["j"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("setting", "message"),
    [("level=9", "no level 9, only 4"), ("level=-1", "level=-1"), ("units=-2", "units=-2")],
)
def test_levels_count_from_one_and_must_exist(constructed, tmp_path, setting, message):
    with pytest.raises(UserError, match=message):
        run(constructed / "vis", tmp_path, "random", "--set", setting, "--limit", "1")
    assert not list(tmp_path.rglob("*.npz"))  # Nothing was encoded for it.


class Halves:
    """Level 1 is like the first unit in the left half, the last level like the second one there.

    All tokens are a little like all units.
    """

    checkpoint_hash = "halves"

    def video(self, clip, truth=None, caption=None):
        levels = []
        for unit in (0, 1):
            values = np.full((len(clip), 4, 4, 3), 0.3, np.float32)
            values[:, :, :2, unit] += 1.0
            levels.append(LevelFeatures(values, np.arange(len(clip)), (16, 16)))
        return Features(tuple(levels), bits=1.0)


@pytest.fixture
def found(constructed):
    """By unit, what share of its track in one video is in the left half, or the track's score."""

    def call(*, scores=False, **settings):
        fields = {"side": 64, "crf_side": 64, "crf_iterations": 0, **settings}
        task = Segmentation(str(constructed / "vis"), **fields)
        task._names = {n: str(n) for n in list(task.dataset().categories)[:3]}
        task._queries = np.eye(3, dtype=np.float32)
        tracks = task.evaluate_item(Halves(), task.items()[0])["tracks"]
        shares = {}
        for row in tracks:
            size = row["segmentations"][0]["size"]
            masks = np.stack([decode_mask(s, *size) for s in row["segmentations"] if s])
            share = masks[:, :, : size[1] // 2].sum() / masks.sum()
            number = list(task._names).index(int(row["category_id"]))
            shares[number] = float(row["score"] if scores else share)
        return shares

    return call


def test_settings_choose_level_units_and_whether_masks_overlap(found):
    first, last = found(level=1), found(level=0)
    # Where a token is like one unit, cosines of the others are lower: theirs is the other half.
    assert first[0] > 0.7 > 0.3 > first[1] and last[1] > 0.7 > 0.3 > last[0]
    assert len(first) == 3 and len(found(level=1, units=2)) == 2 and len(found(units=0)) == 3
    # Of two units with one mask a pixel can be of one alone.
    assert first[1] == first[2] and len(found(level=1, exclusive=True)) < 3


def test_contrast_lowers_what_a_token_is_alike_to_all_units(found):
    plain, contrast = found(level=1, scores=True), found(level=1, contrast=True, scores=True)
    # Tokens of the left half: (1.3, .3, .3), of the right one (.3, .3, .3).
    inside = np.array([1.3, 0.3, 0.3]) / np.linalg.norm([1.3, 0.3, 0.3])
    assert contrast[0] < plain[0] < inside[0] + 1e-6
    assert contrast[0] == pytest.approx(inside[0] - inside.mean(), abs=0.1)


def test_contrast_needs_two_units(constructed, tmp_path):
    more = ("--set", "prompt=a red circle", "--set", "contrast=true")
    with pytest.raises(UserError, match="only one"):
        run(constructed / "vis", tmp_path, "random", *more)


def test_a_prompt_names_what_is_looked_for(constructed, tmp_path):
    with pytest.raises(UserError, match="names a category"):
        run(constructed / "vis", tmp_path, "oracle", "--set", "prompt=an elephant")
    more = ("--set", "crf_iterations=0", "--set", "prompt=a red circle and a blue square")
    result = run(constructed / "vis", tmp_path, "oracle", *more)
    assert result["protocol"]["semantic_units"] == ["red circle", "blue square"]


@pytest.mark.parametrize(
    "setting",
    [
        "temperature=0", "temperature=nan", "place_space=0", "place_time=-1", "colour_space=0",
        "colour_time=0", "colour_range=0", "place_weight=-1", "colour_weight=nan", "level=-1",
        "crf_iterations=-1", "clip_frames=0", "threshold=nan", "least_area=nan", "crf_side=-1",
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(constructed, setting):
    changes = parse_settings(Segmentation, [setting])
    with pytest.raises(
        UserError, match=f"--set {setting.partition('=')[0]}=.*: expected"
    ) as caught:
        Segmentation(str(constructed / "vis"), **changes).check()
    assert "\n" not in str(caught.value)
