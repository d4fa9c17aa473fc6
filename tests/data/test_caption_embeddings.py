"""Stored caption embeddings: what was embedded comes back, and only that."""

import json

import numpy as np
import pytest

from pyratok_jax.data.caption_embeddings import StoredCaptions, write_embeddings
from pyratok_jax.errors import UserError

CAPTIONS = ["a", "bb", "ccc", "a", "  ", "dddd"]


def _embed(group):
    mask = np.array([[n < len(caption) for n in range(5)] for caption in group])
    values = np.stack([np.full((5, 3), ord(c[0]) / 8) + np.arange(5)[:, None] for c in group])
    return values.astype(np.float32), mask


@pytest.fixture
def folder(tmp_path):
    output = tmp_path / "stored"
    return write_embeddings(output, CAPTIONS, _embed, length=5, model="m", batch=2, shard_tokens=3)


def test_round_trip(folder):
    stored = StoredCaptions(folder)
    values, mask = stored(["ccc", None, "a", "dddd", ""])
    want, want_mask = _embed(["ccc", "a", "dddd"])
    np.testing.assert_array_equal(mask[[0, 2, 3]], want_mask)
    np.testing.assert_array_equal(values[[0, 2, 3]], want * want_mask[..., None])
    assert not mask[[1, 4]].any() and not values[[1, 4]].any()
    assert len(list(folder.glob("shard-*"))) == 2
    assert len(json.loads((folder / "index.json").read_text())["captions"]) == 4


def test_unknown_captions_and_folders_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="'new one'"):
        StoredCaptions(folder)(["new one"])
    with pytest.raises(UserError, match="index.json"):
        StoredCaptions(tmp_path)
    with pytest.raises(UserError, match="exists"):
        write_embeddings(folder, ["a"], _embed, length=5, model="m")
    next(folder.glob("shard-*")).unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        StoredCaptions(folder)(["a"])


def test_a_flipped_bit_of_an_embedding_is_refused(folder, monkeypatch):
    monkeypatch.delenv("PYRATOK_VERIFY", raising=False)
    path = sorted(folder.glob("shard-*"))[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="holds other bytes than were stored"):
        StoredCaptions(folder)(["a"])


def test_a_failure_leaves_nothing(tmp_path):
    def bad(group):
        values, mask = _embed(group)
        return values * 1e9, mask

    with pytest.raises(UserError, match="float16"):
        write_embeddings(tmp_path / "x", ["a"], bad, length=5, model="m")
    assert not list(tmp_path.iterdir())


def test_what_is_embedded_is_what_the_hash_is_of(tmp_path):
    asked = []

    def embed(group):
        asked.extend(group)
        return _embed(group)

    captions = ["  a cat \n", "a cat", "b"]
    folder = write_embeddings(tmp_path / "s", captions, embed, length=5, model="m")
    assert asked == ["a cat", "b"] and StoredCaptions(folder)([" a cat"])[1].all()


class Interrupted:
    """`_embed` until the call of a number, which is interrupted; notes what it embeds."""

    def __init__(self, call=None):
        self.call, self.asked = call, []

    def __call__(self, group):
        if self.call is not None and len(self.asked) >= self.call:
            raise KeyboardInterrupt
        self.asked.append(list(group))
        return _embed(group)


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("damaged", [False, True])
def test_an_interrupted_call_goes_on_after_its_finished_shards(folder, tmp_path, damaged):
    output, part = tmp_path / "again", tmp_path / "again.part"
    how = {"length": 5, "model": "m", "batch": 2, "shard_tokens": 3}
    with pytest.raises(KeyboardInterrupt):
        write_embeddings(output, CAPTIONS, Interrupted(1), **how)
    assert not output.exists() and (part / "shard-00000.safetensors").is_file()
    if damaged:
        (part / "shard-00000.safetensors").write_bytes(b"x")
    for other in ({"length": 6}, {"model": "n"}, {"bits": 8}):
        if not damaged:
            with pytest.raises(
                UserError, match=r"again\.part holds unfinished .* 5 tokens"
            ) as caught:
                write_embeddings(output, CAPTIONS, _embed, **how | other)
            assert "\n" not in str(caught.value)
    embed, done = Interrupted(), []
    write_embeddings(output, CAPTIONS, embed, **how, progress=done.append)
    assert embed.asked == [["a", "bb"], ["ccc", "dddd"]][0 if damaged else 1 :]
    assert sum(done) == 4 and not part.exists()
    assert _files(output) == _files(folder)


@pytest.mark.parametrize("name", ["letter.txt", ".letter"])
def test_a_folder_of_the_user_is_no_unfinished_output(tmp_path, name):
    (tmp_path / "x.part").mkdir()
    (tmp_path / "x.part" / name).write_text("mine")
    with pytest.raises(UserError, match=r"x\.part holds no unfinished embeddings"):
        write_embeddings(tmp_path / "x", ["a"], _embed, length=5, model="m")
    assert _files(tmp_path / "x.part") == {name: b"mine"}


def test_bits_are_stored_and_folders_of_old_count_as_not_quantised(folder, tmp_path):
    made = write_embeddings(tmp_path / "b", ["a"], _embed, length=5, model="m", bits=4)
    assert StoredCaptions(made).bits == 4
    index = json.loads((folder / "index.json").read_text())
    assert index.pop("bits") == 0
    (folder / "index.json").write_text(json.dumps(index))
    assert StoredCaptions(folder).bits == 0
