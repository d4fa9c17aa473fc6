"""Generation against transformers, ragged prompts, and the sampling rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from pyratok_jax.models.language.config import tiny
from pyratok_jax.models.language.generate import Sampling, choose, generate
from pyratok_jax.models.language.model import LanguageModel
from tests.models.language.families import ours, reference


def _prompts(side, lengths=(7, 4, 2)):
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, 60, n) for n in lengths]
    ids, mask = np.zeros((3, 7), int), np.zeros((3, 7), bool)
    for row, one in enumerate(rows):
        place = slice(0, len(one)) if side == "right" else slice(7 - len(one), 7)
        ids[row, place], mask[row, place] = one, True
    return rows, jnp.asarray(ids), jnp.asarray(mask)


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2_5_vl"])
def test_greedy_equals_transformers_for_every_row(family):
    """New tokens run past Gemma's window of 4; each row equals the unpadded prompt alone."""
    theirs = reference(family)
    mine = ours(theirs)
    expected = []
    for row in _prompts("left")[0]:
        ids = torch.tensor(row)[None]
        with torch.no_grad():
            for _ in range(6):
                ids = torch.cat([ids, theirs(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        expected.append(ids[0, len(row) :].numpy())
    for side in ("left", "right"):
        _, ids, mask = _prompts(side)
        got = generate(mine, ids, mask, new_tokens=6, eos=())
        np.testing.assert_array_equal(got.tokens, np.stack(expected))
        assert got.lengths.tolist() == [6, 6, 6]


def test_rows_end_at_their_own_end_token():
    model = LanguageModel(tiny(), rngs=nnx.Rngs(0))
    _, ids, mask = _prompts("left")
    free = np.asarray(generate(model, ids, mask, new_tokens=8, eos=()).tokens)
    end = int(free[0, 2])
    got = generate(model, ids, mask, new_tokens=8, eos=(end,))
    for row in range(3):
        hits = np.flatnonzero(free[row] == end)
        length = int(hits[0]) + 1 if hits.size else 8
        assert int(got.lengths[row]) == length
        np.testing.assert_array_equal(got.tokens[row, :length], free[row, :length])
        assert (np.asarray(got.tokens)[row, length:] == end).all()


def test_embeddings_as_prompt():
    model = LanguageModel(tiny(), rngs=nnx.Rngs(0))
    _, ids, mask = _prompts("right")
    by_ids = generate(model, ids, mask, new_tokens=4, eos=())
    by_embeddings = generate(model, model.embed(ids), mask, new_tokens=4, eos=())
    np.testing.assert_array_equal(by_ids.tokens, by_embeddings.tokens)


def _frequencies(logits, sampling, count=4000):
    rows = jnp.broadcast_to(jnp.asarray(logits), (count, len(logits)))
    return np.bincount(choose(rows, sampling, jax.random.key(0)), minlength=len(logits)) / count


def test_sampling_follows_the_probabilities():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.log(probabilities)
    np.testing.assert_allclose(_frequencies(logits, Sampling(1.0)), probabilities, atol=0.03)
    np.testing.assert_allclose(
        _frequencies(logits, Sampling(1.0, top_k=2)), [0.625, 0.375, 0, 0], atol=0.03
    )
    np.testing.assert_allclose(
        _frequencies(logits, Sampling(1.0, top_p=0.79)), [0.625, 0.375, 0, 0], atol=0.03
    )
    np.testing.assert_allclose(
        _frequencies(logits, Sampling(1.0, top_p=0.81)), [0.526, 0.316, 0.158, 0], atol=0.03
    )
    cold = probabilities**2 / (probabilities**2).sum()
    np.testing.assert_allclose(_frequencies(logits, Sampling(0.5)), cold, atol=0.03)
    assert _frequencies(logits, Sampling(1.0, top_p=0.01))[0] == 1


def test_same_key_same_sample():
    model = LanguageModel(tiny(), rngs=nnx.Rngs(0))
    _, ids, mask = _prompts("left")
    hot = Sampling(2.0)
    run = [
        np.asarray(
            generate(
                model,
                ids,
                mask,
                new_tokens=5,
                eos=(),
                sampling=hot,
                key=jax.random.key(k),
            ).tokens
        )
        for k in (1, 1, 2)
    ]
    np.testing.assert_array_equal(run[0], run[1])
    assert (run[0] != run[2]).any()
