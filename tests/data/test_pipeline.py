import os
import signal

import numpy as np
import pytest

from pyratok_jax.data.config import data_config
from pyratok_jax.data.pipeline import make_loader
from pyratok_jax.data.video import decoding
from pyratok_jax.data.video.decoding import Decoder
from pyratok_jax.data.video.files import BrokenVideoError
from pyratok_jax.errors import UserError
from tests.data.synthetic import numbered_frames, numbers_of, write_video


def config(folder, **changes):
    base = {"sources": (str(folder),), "buckets": ("5x24x32",), "decode_time_limit": 0.0}
    return data_config(**(base | changes))


def take(config, steps, **changes):
    loader = make_loader(config, **({"seed": 0, "batch_size": 4} | changes))
    try:
        return [next(loader) for _ in range(steps)], loader
    finally:
        loader.close()


def test_batches_have_consecutive_frames_and_the_right_caption(clips_folder):
    def tokenize(captions):
        ids = np.array([[len(c or "")] * 3 for c in captions])
        return ids, ids > 0

    batches, _ = take(config(clips_folder, caption_dropout=0.5), 6, tokenize=tokenize)
    starts = set()
    for batch in batches:
        assert batch["video"].shape == (4, 5, 24, 32, 3) and batch["video"].dtype == np.uint8
        assert batch["text_ids"].dtype == np.int32 and batch["text_mask"].dtype == bool
        for clip, name, caption, has in zip(
            batch["video"], batch["ids"], batch["captions"], batch["has_text"], strict=True
        ):
            numbers = numbers_of(clip[:, 6:])
            assert np.diff(numbers).tolist() == [1, 1, 1, 1]
            starts.add(numbers[0])
            assert has == (caption is not None)
            assert caption in (None, f"grey ramp number {name[4]}")
        assert (batch["text_ids"][:, 0] > 0).tolist() == batch["has_text"].tolist()
    assert len(starts) > 5
    share = np.mean([b["has_text"].mean() for b in batches])
    assert 0.2 < share < 0.8


def test_target_rate_and_record_times(clips_folder, tmp_path):
    (tmp_path / "m.csv").write_text(f"path,start,end\n{clips_folder}/clip0.mp4,0.4,1.0\n")
    batches, _ = take(config(tmp_path / "m.csv", fps=12.5), 4)
    for batch in batches:
        for clip in batch["video"]:
            numbers = numbers_of(clip[:, 6:])
            assert np.diff(numbers).tolist() == [2, 2, 2, 2] and 10 <= numbers[0] <= 16
    # A clip too short for the bucket repeats its last frame, and never shows what follows it.
    (tmp_path / "short.csv").write_text(f"path,start,end\n{clips_folder}/clip0.mp4,0.4,0.52\n")
    batches, _ = take(config(tmp_path / "short.csv"), 1)
    assert numbers_of(batches[0]["video"][0][:, 6:]) == [10, 11, 12, 12, 12]


def test_decoded_cache_gives_frames_of_the_right_time(clips_folder):
    batches, _ = take(config(clips_folder, cache_decoded=True, fps=12.5), 3)
    for clip in np.concatenate([b["video"] for b in batches]):
        assert np.diff(numbers_of(clip[:, 6:])).tolist() == [2, 2, 2, 2]


def test_mixture_weights(clips_folder, tmp_path):
    write_video(tmp_path / "other.mp4", numbered_frames(20, 48, 64))
    c = config(clips_folder, sources=(str(clips_folder), str(tmp_path)), weights=(1.0, 3.0))
    batches, _ = take(c, 8)
    names = [name for b in batches for name in b["ids"]]
    assert names.count("other.mp4") == 24
    with pytest.raises(UserError, match="1 weights for 2 sources"):
        take(config(clips_folder, sources=(str(clips_folder),) * 2, weights=(1.0,)), 1)


def test_images_are_clips_of_one_still(tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 48), (200, 10, 10)).save(tmp_path / "red.png")
    batches, _ = take(config(tmp_path), 1)
    assert np.abs(batches[0]["video"].astype(int) - [200, 10, 10]).max() <= 2


def test_heldout_split_and_bad_settings(clips_folder):
    c = config(clips_folder, heldout=(str(clips_folder),), caption_dropout=1.0)
    batches, _ = take(c, 1, split="heldout")
    assert batches[0]["has_text"].all()
    with pytest.raises(UserError, match="multiple of the 3 processes"):
        take(c, 1, process_count=3)
    with pytest.raises(KeyError, match="bukets"):
        data_config(bukets=())


def test_state_of_another_seed_is_refused(clips_folder):
    loader = make_loader(config(clips_folder), seed=1, batch_size=2)
    loader.set_state({"step": 3, "seed": 1})
    assert loader.get_state() == {"step": 3, "seed": 1}
    with pytest.raises(UserError, match="seed"):
        loader.set_state({"step": 3, "seed": 2})


@pytest.mark.parametrize("any_bucket", [False, True])
def test_broken_clips_are_skipped_counted_and_named(clips_folder, tmp_path, caplog, any_bucket):
    for file in clips_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "bad.mp4").write_text("no video")
    c = config(tmp_path, any_bucket=any_bucket, max_broken_share=0.2)
    with caplog.at_level("WARNING", logger="absl"):
        batches, loader = take(c, 6)
    assert list(loader.broken) == [str(tmp_path / "bad.mp4")]
    assert loader.broken[str(tmp_path / "bad.mp4")].startswith("Invalid data")
    named = [r.getMessage() for r in caplog.records if "bad.mp4" in r.getMessage()]
    assert len(named) == 1  # Logged once, however often its turn comes.
    assert "bad.mp4" not in {name for b in batches for name in b["ids"]}
    with pytest.raises(UserError, match="1 of 9 clips are unreadable.*bad.mp4"):
        take(config(tmp_path, any_bucket=any_bucket, max_broken_share=0.05), 6)


@pytest.mark.parametrize("any_bucket", [False, True])
def test_nothing_readable_stops_with_a_clear_error(tmp_path, any_bucket):
    for i in range(3):
        (tmp_path / f"bad{i}.mp4").write_text("no video")
    with pytest.raises(UserError, match="readable"):
        take(config(tmp_path, any_bucket=any_bucket, max_broken_share=1.0), 1)


def test_a_decoder_that_hangs_is_cut_off(clips_folder, tmp_path):
    decoder = Decoder(time_limit=1.5)
    decoder.probe(clips_folder / "clip0.mp4")  # The process is up: from here the limit holds.
    os.kill(decoder._child()._process.pid, signal.SIGSTOP)  # It hangs.
    with pytest.raises(BrokenVideoError, match="1.5 s and was cut off"):
        decoder.clip(clips_folder / "clip0.mp4", start=0, frames=1)
    assert decoder.clip(clips_folder / "clip0.mp4", start=0, frames=3).shape == (3, 48, 64, 3)
    with pytest.raises(BrokenVideoError, match="no such file"):
        decoder.clip(tmp_path / "missing.mp4", start=0, frames=3)


def test_guarded_and_plain_decoding_agree(clips_folder):
    data = (clips_folder / "clip1.mp4").read_bytes()
    plain, guarded = Decoder(), Decoder(time_limit=30)
    for source in (clips_folder / "clip1.mp4", data):
        wanted = {"start": 0.4, "frames": 4, "size": (24, 32)}
        np.testing.assert_array_equal(plain.clip(source, **wanted), guarded.clip(source, **wanted))
        assert plain.count(source) == guarded.count(source) == 40


def test_remote_failures_are_retried_with_back_off(monkeypatch):
    waits, calls = [], []
    monkeypatch.setattr(decoding.time, "sleep", waits.append)

    def flaky():
        calls.append(1)
        if len(calls) < 4:
            raise BrokenVideoError("gs://bucket/a.mp4", "bucket is away", transient=True)
        return "there"

    assert decoding.with_back_off(flaky, 4, 0.5) == "there"
    assert waits == [0.5, 1.0, 2.0]
    calls.clear()
    with pytest.raises(BrokenVideoError):
        decoding.with_back_off(flaky, 2, 0.5)
    waits.clear()
    with pytest.raises(BrokenVideoError):  # A local file does not come back.
        Decoder(retries=3).probe("/no/such/file.mp4")
    assert waits == []


def test_buckets_with_batches_of_their_own_size(clips_folder):
    c = config(clips_folder, buckets=("5x24x32", "9x24x32*2"), caption_dropout=0.0)
    batches, _ = take(c, 8)
    sizes = {(b["bucket"], len(b["video"]), len(b["captions"])) for b in batches}
    assert sizes == {("5x24x32", 4, 4), ("9x24x32", 2, 2)}
    # Two readers of the small batch, of which each has a row, and one of the large for both.
    shares = [lambda clips, i=i: (i, 2) if clips == 2 else (0, 1) for i in (0, 1)]
    parts = [take(c, 8, share_of=share)[0] for share in shares]
    for whole, *halves in zip(batches, *parts, strict=True):
        if whole["bucket"] == "9x24x32":
            assert whole["ids"] == halves[0]["ids"] + halves[1]["ids"]
            video = np.concatenate([h["video"] for h in halves])
            np.testing.assert_array_equal(whole["video"], video)
        else:
            assert whole["ids"] == halves[0]["ids"] == halves[1]["ids"]


def test_a_bucket_with_too_few_clips_for_the_hosts_is_refused(clips_folder):
    with pytest.raises(UserError, match="batch of 2 clips of bucket 5x24x32 cannot be shared out"):
        take(config(clips_folder, buckets=("5x24x32*2",)), 1, process_count=4)
