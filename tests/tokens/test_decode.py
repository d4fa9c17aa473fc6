"""Decoding: the exact reconstruction, parts, other checkpoints, damaged shards; inspection."""

import dataclasses
import json
import time

import numpy as np
import pytest

from pyratok_jax import decode_tokens
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.data.video.files import iter_frames, probe, read_image
from pyratok_jax.errors import UserError
from pyratok_jax.tokens import DamagedRecordError, TokenDataset, inspect, read_all
from pyratok_jax.tokens.blocks import WindowJoiner
from pyratok_jax.tokens.decoding import Selection, decode_all, mismatch, parse_frames
from pyratok_jax.tokens.exporting import export, write_card
from pyratok_jax.tokens.inspection import Inspection
from pyratok_jax.tokens.options import Machine
from pyratok_jax.tokens.outputs import Taken, output_path
from pyratok_jax.tokens.schema import SchemaError, decode_record, encode_record
from tests.io.test_tfrecords import framed
from tests.tokens.conftest import plan_of
from tests.tokens.tiny import PixelTokenizer


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def tokens(request, videos, tokenizer, tmp_path_factory):
    records = load_source(str(videos))
    output = tmp_path_factory.mktemp("tokens") / "out"
    plan = plan_of(tokenizer, records, output, format=request.param)
    export(plan, records, tokenizer, Machine())
    write_card(plan)
    return output


@pytest.fixture
def decode(monkeypatch, tokens, tmp_path):
    monkeypatch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda c: PixelTokenizer(int(c)))

    def run(*more, source=tokens, checkpoint="0", output=tmp_path / "decoded"):
        code = decode_tokens.main(
            ["--checkpoint", checkpoint, "--input", str(source), "--output", str(output), *more]
        )
        return code, output

    return run


def pictures(folder):
    return {int(p.stem): read_image(p) for p in folder.iterdir()}


def test_a_missing_shard_is_named(tokens, decode, tmp_path, copy_of, capsys):
    folder = copy_of(tokens, tmp_path / "copy")
    lost, *rest = sorted(folder.glob("tokens-train*"))
    lost.unlink()
    code, output = decode("--png", source=folder)
    assert code == 4 and len(list(output.iterdir())) > 0
    assert inspect.main([str(folder), "--output", str(tmp_path / "report")]) == 4
    assert capsys.readouterr().out.count(f"{lost.name}: it is missing") == 2
    with pytest.raises(UserError, match=f"lacks {lost.name}: the command that writes it"):
        TokenDataset(str(folder))
    assert len(TokenDataset(str(rest[0])))


def reconstruction(tokenizer, record, window=5):
    """Windows through the tokenizer in memory."""
    whole = np.stack(list(iter_frames(record.path)))
    starts = range(0, len(whole), window)
    return np.concatenate(
        [tokenizer.reconstruct(whole[i : i + window], record.caption) for i in starts]
    )


def test_decoding_a_file_is_the_reconstruction(decode, videos, tokenizer, capsys):
    code, output = decode("--png")
    assert code == 0
    for record in load_source(str(videos)):
        if record.id in ("cut.mp4", "text.mp4"):
            assert not (output / record.id).exists()
        elif record.id == "still.png":
            expected = reconstruction(tokenizer, record)[0]
            np.testing.assert_array_equal(read_image(output / "still.png"), expected)
        else:
            found = pictures(output / record.id)
            expected = reconstruction(tokenizer, record)
            assert sorted(found) == list(range(len(expected)))
            for number, frame in found.items():
                np.testing.assert_array_equal(frame, expected[number])
    assert "decoded 8 videos, 47 frames" in capsys.readouterr().out


def test_mp4_of_chosen_videos_and_frames(decode, videos, tokenizer):
    code, output = decode("--ids", "clip2.mp4", "clip1.mp4", "--frames", "3:8", "--crf", "0")
    assert code == 0 and sorted(p.name for p in output.iterdir()) == ["clip1.mp4", "clip2.mp4"]
    info = probe(str(output / "clip2.mp4"))
    assert (info.frames, info.height, info.width, info.fps) == (5, 32, 48, 25.0)
    record = next(r for r in load_source(str(videos)) if r.id == "clip2.mp4")
    expected = reconstruction(tokenizer, record)[3:8].astype(float)
    found = np.stack(list(iter_frames(str(output / "clip2.mp4"))))
    assert np.abs(found - expected).mean() < 6  # Colour is stored at half the resolution.


def test_a_single_shard(decode, tokens):
    shard = sorted(tokens.glob("tokens-train*"))[2]
    code, output = decode(source=shard)
    assert code == 0
    assert {p.name for p in output.iterdir()} == {r.video for r in TokenDataset(str(shard))}


def test_unknown_ids_are_named(decode):
    with pytest.raises(UserError, match="no nothing.mp4"):
        decode("--ids", "clip2.mp4", "nothing.mp4")


def test_another_checkpoint_is_refused_unless_forced(decode, monkeypatch):
    with pytest.raises(UserError, match="made by checkpoint tiny-0-6, not by tiny-1-6"):
        decode(checkpoint="1")
    renamed = PixelTokenizer()
    renamed.checkpoint_hash = "renamed"
    monkeypatch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda c: renamed)
    with pytest.raises(UserError, match="--force"):
        decode()
    assert decode("--force", "--ids", "clip0.mp4")[0] == 0
    monkeypatch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda c: PixelTokenizer(bits=18))
    with pytest.raises(UserError, match="4 levels of 6 bits, the checkpoint 4 of 18"):
        decode("--force")


def test_truncated_and_corrupt_shards(decode, tokens, tmp_path, copy_of, capsys):
    folder = copy_of(tokens, tmp_path / "damaged")
    first, second = sorted(folder.glob("tokens-train*"))[:2]
    whole = list(TokenDataset(str(first)))
    data = first.read_bytes()
    first.write_bytes(data[: data.index(encode_record(whole[-1])) + 200])  # Within the last record.
    target = list(TokenDataset(str(second)))[1]
    data = bytearray(second.read_bytes())
    data[data.index(encode_record(target)) + 200] ^= 1
    second.write_bytes(bytes(data))
    items = list(read_all(str(folder)))
    good = [item for item in items if not isinstance(item, DamagedRecordError)]
    lost = {whole[-1].id, target.id}
    assert {r.id for r in good} == {r.id for r in TokenDataset(str(tokens))} - lost
    code, output = decode("--png", source=folder)
    text = capsys.readouterr().out.replace("\n", "")
    assert code == 4 and f"{second.name}#1" in text and f"{first.name}" in text
    assert (output / "clip4.mp4").is_dir() and "decoded" in text
    assert decode("--ids", "clip4.mp4", source=folder, output=tmp_path / "part")[0] == 4


def test_a_missing_block_stays_black_and_is_named(tokenizer, tokens, tmp_path):
    records = [r for r in TokenDataset(str(tokens)) if r.video == "clip2.mp4"]
    outcome = decode_all([records[0], records[2]], tokenizer, tmp_path, Selection(), crf=None)
    assert ["1 of 3 blocks are missing" in text for text in outcome.bad] == [True]
    found = pictures(tmp_path / "clip2.mp4")
    assert len(found) == 12
    assert all(not found[n].any() for n in range(5, 10)) and found[4].any() and found[10].any()


def test_nothing_is_left_behind_when_decoding_fails(tokenizer, tokens, tmp_path, monkeypatch):
    records = [r for r in TokenDataset(str(tokens)) if r.video == "clip2.mp4"]
    real, calls = tokenizer.decode_padded, []

    def decode(ids):
        calls.append(ids)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return real(ids)

    monkeypatch.setattr(tokenizer, "decode_padded", decode)
    for crf in (None, 12):
        calls.clear()
        with pytest.raises(RuntimeError, match="out of memory"):
            decode_all(records, tokenizer, tmp_path, Selection(), crf=crf)
    assert not list(tmp_path.iterdir())


def test_tiles_are_blended(videos, tokenizer, tmp_path, decode):
    record = next(r for r in load_source(str(videos)) if r.id == "clip0.mp4")
    plan = plan_of(tokenizer, [record], tmp_path / "o", shards=1, tile=32, overlap=8)
    export(plan, [record], tokenizer, Machine())
    stored = list(TokenDataset(plan.output))
    assert [(r.top, r.left, r.width) for r in stored] == [(0, 0, 32), (0, 16, 32)]
    whole = np.stack(list(iter_frames(record.path)))
    joiner = WindowJoiner(5, 32, 48)
    for left in (0, 16):
        tile = tokenizer.reconstruct(whole[:, :, left : left + 32], record.caption)
        joiner.add(tile, 0, left, 8)
    code, output = decode("--png", source=plan.output)
    assert code == 0
    found = pictures(output / "clip0.mp4")
    np.testing.assert_array_equal(np.stack([found[n] for n in range(5)]), joiner.frames())


@pytest.mark.parametrize(("text", "frames"), [("3:8", (3, 8)), (":", (0, None)), ("4:", (4, None))])
def test_frames_argument(text, frames):
    assert parse_frames(text) == frames
    for bad in ("3", "a:b", "8:8", "-1:3"):
        with pytest.raises(UserError, match="--frames"):
            parse_frames(bad)


def test_videos_that_end_before_the_frames_are_named(decode, tmp_path, capsys):
    code, output = decode("--frames", "9:", "--ids", "clip2.mp4", "clip0.mp4")
    assert code == 0 and [path.name for path in output.iterdir()] == ["clip2.mp4"]
    text = capsys.readouterr().out
    assert "note: clip0.mp4 has 5 frames, none from 9 on; it is left out" in text
    assert "decoded 1 videos, 3 frames" in text
    with pytest.raises(UserError, match="no video has a frame 100, .*the longest has 12 frames"):
        decode("--frames", "100:", output=tmp_path / "none")
    assert not (tmp_path / "none").exists() and "decoded" not in capsys.readouterr().out


def test_many_videos_of_one_long_name_all_find_a_place(tmp_path):
    taken = Taken()
    for crf in (None, 12) * 60:
        path = output_path(tmp_path, "x" * 300, False, crf, taken)
        assert path not in taken and len(path.name) < 220
        assert crf is None or path.suffix == ".mp4"
        taken.add(path)


def test_outputs_stay_below_the_folder(tmp_path):
    path = output_path(tmp_path, "../../etc/a:b.mkv", False, 12, Taken())
    assert path == tmp_path / "etc" / "a_b.mkv.mp4"
    assert (
        output_path(tmp_path, "x.mp4", False, 12, Taken([tmp_path / "x.mp4"])).name == "x.mp4.mp4"
    )
    assert output_path(tmp_path, "..", False, 12, Taken()).parent == tmp_path


def test_inspection(tokens, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda c: PixelTokenizer())
    output = tmp_path / "report"
    assert inspect.main([str(tokens), "--output", str(output), "--checkpoint", "x"]) == 0
    summary = json.loads((output / "summary.json").read_text())
    card = json.loads((tokens / "dataset_card.json").read_text())
    assert summary["tokens"] == card["tokens"] and summary["videos"] == card["clips"]
    assert summary["bpp_raw"] == pytest.approx(card["bpp_raw"])
    assert [x["used"] for x in summary["levels"]] == [x["used"] for x in card["levels"]]
    assert summary["levels"][0]["bigram_time"]["pairs"] > 100
    assert read_image(output / "contact_sheet.png").shape[1] == 5 * 128
    page = (output / "report.html").read_text()
    assert "Level 4" in page and "data:image/png" in page
    assert "contact_sheet.png" in capsys.readouterr().out


def test_inspection_shows_no_pictures_by_another_tokenizer(tokens, tmp_path, monkeypatch):
    given = [str(tokens), "--output", str(tmp_path / "report"), "--checkpoint", "x"]
    others = {
        "made by checkpoint tiny-0-6, not by tiny-1-6; give that one": PixelTokenizer(1),
        "4 levels of 6 bits, the checkpoint 4 of 4": PixelTokenizer(bits=4),
    }
    for message, other in others.items():
        monkeypatch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda c, one=other: one)
        with pytest.raises(UserError, match=message):
            inspect.main(given)
    with pytest.raises(UserError, match="--pictures -1: expected"):
        inspect.main([*given, "--pictures", "-1"])
    assert not (tmp_path / "report").exists()


def test_a_record_that_cannot_be_shown_is_named(tokenizer, tokens):
    good = block(tokens)
    cut = block(tokens, id="cut", tokens=tuple(level[:1] for level in good.tokens))
    inspection = Inspection()
    inspection.add_all([cut, good], 2, 2, lambda record: mismatch(record, tokenizer))
    assert [record.id for record in inspection.pictured] == [good.id]
    assert inspection.damaged == ["cut: level 1 has a grid of (1, 2, 3), expected (5, 2, 3); "
                                  "it is not shown"]  # fmt: skip


def test_bigram_entropy_by_hand():
    from pyratok_jax.tokens.inspection import Grams

    grams = Grams()
    grams.add(np.array([[[0, 1, 0, 1, 0]], [[0, 1, 0, 1, 0]]], np.uint16))
    result = grams.entropies()
    # Along a row 0 is followed by 1 and 1 by 0; over time all stays as it is.
    assert result["bigram_row"] == {"entropy": 0.0, "pairs": 8, "distinct": 2}
    assert result["bigram_time"]["distinct"] == 2 and result["bigram_time"]["entropy"] < 1e-12
    grams.add(np.array([[[1, 1, 1, 1, 1]], [[0, 0, 0, 0, 0]]], np.uint16))
    assert grams.entropies()["bigram_time"]["entropy"] > 0.5


def block(dataset, /, **changes):
    record = next(r for r in TokenDataset(str(dataset)) if r.video == "clip0.mp4")
    return dataclasses.replace(record, **changes)


@pytest.mark.parametrize("crf", [None, 12])
def test_what_exists_is_neither_removed_nor_overwritten(tokenizer, tokens, tmp_path, crf):
    kept = tmp_path / "Documents" / "letter.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    (tmp_path / "a.mp4").write_text("mine too")
    records = [block(tokens, video="Documents"), block(tokens, video="a.mp4")]
    outcome = decode_all(records, tokenizer, tmp_path, Selection(), crf=crf)
    assert kept.read_text() == "mine" and (tmp_path / "a.mp4").read_text() == "mine too"
    assert any("exists and is kept" in text for text in outcome.bad)


@pytest.mark.parametrize("names", [("a/b", "a"), ("a", "a/b"), ("a", "a"), ("a", "_a", "a")])
def test_outputs_of_one_run_never_replace_each_other(tokenizer, tokens, tmp_path, names):
    records = [block(tokens, video=name, id=f"{n}") for n, name in enumerate(names)]
    for between in range(len(records) - 1, 0, -1):
        records.insert(between, block(tokens, video=f"other{between}"))
    outcome = decode_all(records, tokenizer, tmp_path, Selection(), crf=None)
    assert not outcome.bad and len(list(tmp_path.rglob("*.png"))) == 5 * len(records)


def test_names_of_outputs_are_short_visible_and_inside(tokenizer, tokens, tmp_path):
    for name in ("x" * 4000, "\u00e9" * 250, ".git", "a\nb", "d/" * 300, "C:\\x"):
        path = output_path(tmp_path, name, False, 12, Taken())
        assert path.is_relative_to(tmp_path) and ".." not in path.parts
        assert all(len(p.encode()) < 220 and p[0] != "." and "\n" not in p for p in path.parts[1:])
    assert output_path(tmp_path, "x" * 300, True, 12, Taken()) != (
        output_path(tmp_path, "x" * 301, True, 12, Taken())
    )
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(outside)
    record = block(tokens, video="link/x")
    outcome = decode_all([record], tokenizer, tmp_path / "out", Selection())
    assert len(outcome.bad) == 1 and not list(outside.iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": 0}, {"frames": 10**9}, {"first_frame": -1}, {"video_frames": 2**40},
        {"fps": float("nan")}, {"fps": 0.0}, {"fps": 1e30}, {"width": -5}, {"video_width": 2**31},
        {"padded_width": 2**40}, {"overlap": -1}, {"block": 7}, {"vocabulary": 0},
        {"tokens": (np.zeros((0, 2, 3), np.uint16),) * 4},
    ],
)  # fmt: skip
def test_absurd_numbers_are_refused_before_anything_is_allocated(tokens, changes):
    with pytest.raises(DamagedRecordError, match="malformed"):
        decode_record(encode_record(block(tokens, **changes)), "here")


def test_a_bad_record_costs_that_record(tokenizer, tokens, tmp_path):
    good = block(tokens)
    bad = [
        block(tokens, video="grid", tokens=tuple(t[:1] for t in good.tokens)),
        block(tokens, video="ids", tokens=tuple(t * 0 + 64 for t in good.tokens)),
        block(tokens, video="size", padded_width=good.padded_width + 1),
    ]
    gap = block(tokens, video="gap", video_frames=2**24)
    outcome = decode_all([*bad, gap, good], tokenizer, tmp_path, Selection(), crf=None)
    assert set(outcome.videos) == {"gap", "clip0.mp4"} and len(outcome.bad) == 4
    assert outcome.frames == 10
    other = dataclasses.replace(good, id="other", video_height=good.video_height + 1)
    outcome = decode_all([good, other, good], tokenizer, tmp_path / "b", Selection(), crf=None)
    assert ["video_height" in text for text in outcome.bad] == [True, False]
    assert "its block 0 comes twice" in outcome.bad[1]


def test_a_record_of_another_origin_costs_that_record(tokenizer, tokens, tmp_path):
    good = block(tokens)
    others = [
        block(tokens, video="checkpoint", checkpoint="x"),
        block(tokens, video="bits", bits=7),
        block(tokens, video="levels", tokens=good.tokens[:3], levels=3),
    ]
    outcome = decode_all([*others, good], tokenizer, tmp_path, Selection(), crf=None)
    assert set(outcome.videos) == {"clip0.mp4"} and len(outcome.bad) == 3
    for count in (1, 10**9):  # It is read to its end, or given up.
        records = (others[0] for _ in range(count))
        with pytest.raises(UserError, match="made by checkpoint x"):
            decode_all(records, tokenizer, tmp_path / "b", Selection())
    path = tmp_path / "t-train.tfrecord-00000-of-00001"
    newer = dataclasses.replace(good, schema=9)
    path.write_bytes(framed([encode_record(one) for one in (newer, good)]))
    found = list(read_all(str(path)))
    assert "version 9" in found[0].reason and found[1].video == "clip0.mp4"
    path.write_bytes(framed([encode_record(newer)]))
    with pytest.raises(SchemaError, match="version 9 .*update"):
        list(read_all(str(path)))


def test_missing_blocks_do_not_hide_behind_repeated_ones(tokenizer, tokens, tmp_path):
    good = block(tokens, video_frames=10, blocks=2)
    outcome = decode_all([good, good], tokenizer, tmp_path, Selection(), crf=None)
    assert "comes twice" in outcome.bad[0] and "1 of 2 blocks are missing" in outcome.bad[1]


def test_a_small_record_does_not_stand_for_hours_of_work(tokenizer, tokens, tmp_path):
    """Frames that are black, or nearly, are written in proportion to those that there are."""
    changes = {"video_height": 480, "video_width": 640, "video_frames": 9000}
    outcome = decode_all([block(tokens, **changes)], tokenizer, tmp_path, Selection(), crf=None)
    assert outcome.frames <= 5 and "too many" in outcome.bad[0]
    absurd = block(tokens, video_height=8192, video_width=16384)
    with pytest.raises(DamagedRecordError, match="expected a larger one"):
        decode_record(encode_record(absurd), "here")
    wide = block(tokens, video="wide", video_width=20_000)
    outcome = decode_all([wide, block(tokens)], tokenizer, tmp_path / "b", Selection())
    assert "H.264" in outcome.bad[0] and set(outcome.videos) == {"clip0.mp4"}


def test_memory_that_is_refused_costs_that_record(tokens, tmp_path):
    class Small(PixelTokenizer):
        def decode_padded(self, ids):
            if len(calls) == 1:
                raise MemoryError
            if len(calls) == 2:
                raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
            return super().decode_padded(ids)

        def decode(self, encoded):
            calls.append(0)
            return super().decode(encoded)

    calls = []
    records = [block(tokens, video=f"{n}") for n in range(3)]
    outcome = decode_all(records, Small(), tmp_path, Selection(), crf=None)
    assert len(outcome.bad) == 2 and all("memory" in text for text in outcome.bad)
    assert set(outcome.videos) == {"2"}


def test_names_that_differ_in_case_or_accents_alone_find_places_of_their_own(tmp_path):
    taken = Taken([tmp_path / "a.mp4", tmp_path / "\u00e9" / "x.mp4"])
    for name in ("A", "A.MP4", "e\u0301"):
        path = output_path(tmp_path, name, False, 12, taken)
        assert path not in taken and not taken.is_above(path)
        assert path.name.lower() not in ("a.mp4", "e\u0301", "\u00e9")
        taken.add(path)
    assert output_path(tmp_path, "-rf \u202egpj.\x9b1", True, 12, Taken()).name == "_rf _gpj._1.png"


def test_places_of_many_videos_are_found_at_once(tmp_path):
    taken, begin = Taken(), time.process_time()
    for number in range(20_000):
        taken.add(output_path(tmp_path, f"folder{number}/a", False, 12, taken))
    assert time.process_time() - begin < 5
