"""Clips whose frames are stored one by one: prepared again, cut, exported, never re-read."""

import dataclasses

import numpy as np
import pytest

from pyratok_jax.data.buckets import parse_buckets
from pyratok_jax.data.clip_shards import plan_shards, write_shard
from pyratok_jax.data.options import PrepareOptions
from pyratok_jax.data.sources.examples import decode_example, encode_example
from pyratok_jax.data.sources.index import shape_of
from pyratok_jax.data.sources.payloads import clip_frames
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.data.video.cutting import Cut, DecodedCache, cut_clip
from pyratok_jax.data.video.decoding import Decoder
from pyratok_jax.tokens.blocks import open_clip
from tests.data.synthetic import numbered_frames, numbers_of, write_video


def prepared(source, output, **options):
    """The clips of a preparation, by id, without the metadata that takes TensorFlow."""
    values = PrepareOptions(**{"shards": 1, "time_limit": 0.0} | options)
    output.mkdir(parents=True)
    for shard in plan_shards(load_source(str(source)), str(output), values):
        write_shard(shard)
    return {record.id: record for record in load_source(str(output))}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "many.mp4", numbered_frames(20, 48, 64), fps=10.0)
    write_video(folder / "one.mp4", numbered_frames(1, 48, 64, start=7), fps=10.0)
    return folder


@pytest.fixture(scope="module")
def frames(videos, tmp_path_factory):
    """The folder of both as frames; the files that they came from are others by now."""
    output = tmp_path_factory.mktemp("prepared") / "frames"
    prepared(videos, output, store="frames")
    write_video(videos / "many.mp4", numbered_frames(3, 96, 96, start=30))
    (videos / "one.mp4").unlink()
    return output


def numbers(record):
    return numbers_of(np.stack(list(clip_frames(record))))


@pytest.mark.parametrize("store", ["bytes", "frames", "reencode"])
def test_prepared_again_from_what_is_stored(frames, tmp_path, store):
    found = prepared(frames, tmp_path / "again", store=store)
    assert {name: numbers(r) for name, r in found.items()} == {
        "many.mp4": list(range(20)), "one.mp4": [7],
    }  # fmt: skip
    for name, seconds in (("many.mp4", 2.0), ("one.mp4", 0.1)):
        record = found[name]
        shape = shape_of(record, Decoder())
        assert dataclasses.astuple(shape) == pytest.approx((48, 64, seconds, 10.0))
        if store == "bytes":
            assert record.stored == {r.id: r for r in load_source(str(frames))}[name].stored


@pytest.mark.parametrize("store", ["bytes", "frames", "reencode"])
def test_cut_and_shrunk_from_what_is_stored(frames, tmp_path, store):
    height = 0 if store == "bytes" else 24
    found = prepared(frames, tmp_path / "cut", store=store, clip_seconds=0.7, height=height)
    assert sorted(found) == ["many.mp4#000", "many.mp4#001", "many.mp4#002", "one.mp4"]
    parts = [found[f"many.mp4#00{n}"] for n in range(3)]
    assert [len(numbers(part)) for part in parts] == [7, 7, 6]
    assert [n for part in parts for n in numbers(part)] == list(range(20))
    assert {(r.height, r.width) for r in found.values()} == {
        (height or 48, 64 * (height or 48) // 48)
    }


def test_a_lower_rate_leaves_frames_out(frames):
    """Stored frames and files alike: at 4 of 10 frames a second 0, 2, 5, 7, 10, ... are shown."""
    records = {r.id: r for r in load_source(str(frames))}
    stream = open_clip(records["many.mp4"], fps=4.0)
    assert stream.fps == 4.0
    assert numbers_of(np.stack(list(stream.frames))) == [0, 2, 5, 7, 10, 12, 15, 17]
    same = open_clip(records["many.mp4"], fps=25.0)
    assert same.fps == 10.0 and len(list(same.frames)) == 20


@pytest.mark.parametrize("fps", [0.0, 4.0])
def test_a_video_of_one_frame_is_exported(frames, fps):
    record = {r.id: r for r in load_source(str(frames))}["one.mp4"]
    stream = open_clip(record, fps)
    assert numbers_of(np.stack(list(stream.frames))) == [7] and stream.fps == (fps or 10.0)


def test_one_image_of_others_is_a_picture(frames):
    image = {r.id: r for r in load_source(str(frames))}["one.mp4"].stored[0]
    record = decode_example(encode_example({}, [image]), "shard#0")
    assert record.still and np.isinf(shape_of(record, Decoder()).seconds)
    video = decode_example(encode_example({"seconds": 0.1, "path": "a.mp4"}, [image]), "shard#0")
    assert not video.still and video.stored == (image,)


def test_the_cache_of_decoded_clips_holds_what_is_stored(frames):
    buckets = parse_buckets(["5x24x32"])
    record = {r.id: r for r in load_source(str(frames))}["many.mp4"]
    cache = DecodedCache(buckets, 1.0)
    clips = [
        cut_clip(record, shape_of(record, Decoder()), buckets[0], Cut(), np.random.default_rng(0),
                 Decoder(), cached)
        for cached in (cache, None)
    ]  # fmt: skip
    np.testing.assert_array_equal(*clips)
