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
