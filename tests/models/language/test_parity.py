"""Every family against transformers in float32: logits and all hidden states, any padding."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pyratok_jax.models.language.attention import mixed_positions
from tests.models.language.families import FAMILIES, ours, reference

LENGTHS = (13, 9, 5)


def _error(got, want):
    return np.abs(np.asarray(got) - want).max() / np.abs(want).max()


def _batch(side):
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 60, size=(len(LENGTHS), max(LENGTHS)))
    slots = np.arange(max(LENGTHS))
    lengths = np.array(LENGTHS)[:, None]
    mask = slots < lengths if side == "right" else slots >= max(LENGTHS) - lengths
    return ids, mask


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    model = reference(request.param)
    return model, ours(model)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_hidden_states(pair, side):
    theirs, mine = pair
    ids, mask = _batch(side)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    if theirs.config.model_type == "qwen2_5_vl":
        positions = np.broadcast_to(positions, (3, *positions.shape))
    with torch.no_grad():
        want = theirs(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask.astype(int)),
            position_ids=torch.tensor(positions.copy()),
            output_hidden_states=True,
            use_cache=False,
        )
    got = mine(jnp.asarray(ids), jnp.asarray(mask), keep_states=True)
    states = [*np.asarray(got.states), np.asarray(got.hidden)]
    assert len(states) == len(want.hidden_states)
    for mine_one, their_one in zip(states, want.hidden_states, strict=True):
        assert _error(mine_one[mask], their_one.numpy()[mask]) < 1e-5
    assert _error(mine.logits(got.hidden)[mask], want.logits.numpy()[mask]) < 1e-5


def test_a_window_matters_and_counts_real_tokens():
    """Beyond the window a sliding layer differs from full attention: the test above sees it."""
    mine = ours(reference("gemma3"))
    ids, mask = _batch("left")
    assert mine.config.window < max(LENGTHS)
    assert mine.config.sliding == (True, False, True)
    near = mine(jnp.asarray(ids), jnp.asarray(mask)).hidden

    mine.config = dataclasses.replace(mine.config, window=64)
    far = mine(jnp.asarray(ids), jnp.asarray(mask)).hidden
    assert np.abs(np.asarray(near - far))[mask].max() > 1e-2


def test_multimodal_positions():
    """Text, a video grid, text: positions and states as the published model computes them."""
    theirs = reference("qwen2_5_vl")
    mine = ours(theirs)
    grid, seconds = (3, 4, 6), 1.5
    merged = (3, 2, 3)
    count = merged[0] * merged[1] * merged[2]
    ids = torch.tensor([[5, 6, 7, 62] + [61] * count + [63, 8, 9]])
    kinds = (ids == 61).int() * 2
    want, _ = theirs.model.get_rope_index(
        ids,
        mm_token_type_ids=kinds,
        video_grid_thw=torch.tensor([grid]),
        second_per_grid_ts=torch.tensor([seconds]),
    )
    assert mine.config.tokens_per_second == 2
    step = mine.config.tokens_per_second * seconds
    positions = mixed_positions([4, merged, 3], step)
    np.testing.assert_array_equal(positions, want[:, 0].numpy())
    embeddings = np.random.default_rng(0).normal(size=(1, ids.shape[1], 32)).astype(np.float32)
    with torch.no_grad():
        states = theirs.model.language_model(
            inputs_embeds=torch.tensor(embeddings), position_ids=want, use_cache=False
        ).last_hidden_state.numpy()
    got = mine(jnp.asarray(embeddings), None, jnp.asarray(positions)[:, None]).hidden
    assert _error(got, states) < 1e-5
    plain = mine(jnp.asarray(embeddings)).hidden
    assert _error(plain, states) > 1e-2
