"""Bits flipped between levels: how many and when, and that later levels correct them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.errors import UserError
from pyratok_jax.models.pyratok.flips import Flips
from pyratok_jax.models.pyratok.inputs import LevelInputs
from pyratok_jax.models.pyratok.quantizers.base import build_quantizer
from pyratok_jax.nn.stream_cache import StreamCache
from pyratok_jax.tokenizer import Tokenizer
from tests.tiny_tokenizer import tiny_config
from tests.tokens.tiny import tiny_network

CLIPS, RATE = 192, 0.6
ALONE = LevelInputs(feature=False, text=False, residual="bypass")
FREE = LevelInputs(previous=False)


@nnx.jit
def quantize(quantizer, target, flips):
    return quantizer(stages(target), target, None, flips=flips)


def stages(target):
    return (jnp.zeros((len(target), 1, 1, 1, 1)),) * 4  # No level reads them.


@pytest.fixture(scope="module")
def quantizer():
    """Levels of the residual alone, fitted to the latents."""
    made = build_quantizer(tiny_config(inputs=(ALONE,) * 4), rngs=nnx.Rngs(0))
    made.fit([latents()[:32]], steps=0)
    return made


def latents():
    return jax.random.normal(jax.random.key(1), (CLIPS, 3, 2, 2, 4))


def flips(rate=RATE):
    return Flips(np.random.default_rng(0).integers(0, 2**32, (CLIPS, 2), np.uint32), rate)


@pytest.fixture(scope="module")
def runs(quantizer):
    return quantize(quantizer, latents(), None), quantize(quantizer, latents(), flips())


def test_a_rate_of_zero_changes_nothing(quantizer, runs):
    levels, latent = quantize(quantizer, latents(), flips(0.0))
    np.testing.assert_array_equal(latent, runs[0][1])
    for level, plain in zip(levels, runs[0][0], strict=True):
        np.testing.assert_array_equal(level.q, plain.q)
        np.testing.assert_array_equal(level.read, plain.q)
        assert plain.read is None


def test_the_share_of_flipped_bits_is_that_of_every_level_and_grows_in_time(runs):
    shares = []
    for level, (dt, _) in zip(runs[1][0], tiny_config().grids, strict=True):
        flipped = np.asarray(level.read != level.q)
        frame = np.arange(flipped.shape[1])
        group = np.where(frame == 0, 0, 1 + (frame - 1) * dt // 4)
        by_group = [flipped[:, group == g].mean() for g in range(3)]
        np.testing.assert_allclose(by_group, [RATE / 6, RATE / 3, RATE / 2], atol=0.04)
        shares.append(flipped.mean((1, 2, 3, 4)))
    # A clip has one rate in all levels, and clips differ.
    assert np.std(shares[0]) > 0.05 and np.corrcoef(shares)[0, 3] > 0.8
    third, fourth = (level.read != level.q for level in runs[1][0][2:])
    assert (third != fourth[:, :, :1, :1]).any()


def test_the_next_level_corrects_what_was_flipped(quantizer, runs):
    """The point of it: with the flipped levels, its codes are nearer than those made without."""
    plain, flipped = ([level.q for level in levels] for levels, _ in runs)
    read = [level.read for level in runs[1][0]]
    first = nnx.jit(lambda quantizer, codes, count: quantizer.synthesize_first(codes, count))
    np.testing.assert_array_equal(plain[0], flipped[0])
    for number in range(1, 4):
        assert (np.asarray(plain[number]) != np.asarray(flipped[number])).mean() > 0.05
        errors = []
        for own in (flipped[number], plain[number]):
            codes = (*read[:number], own, *plain[number + 1 :])
            latent = first(quantizer, codes, jnp.asarray(number + 1))
            errors.append(float(jnp.mean((latent - latents()) ** 2)))
        assert errors[0] < 0.95 * errors[1]
    whole = nnx.jit(lambda quantizer, codes: quantizer.synthesize(codes))(quantizer, tuple(read))
    np.testing.assert_allclose(whole, runs[1][1], atol=1e-5)


def test_flips_do_not_depend_on_the_batch(quantizer, runs):
    keys = flips().keys
    order = np.array([5, 0, 9])
    levels, _ = quantize(quantizer, latents()[order], Flips(keys[order], RATE))
    for level, whole in zip(levels, runs[1][0], strict=True):
        np.testing.assert_array_equal(level.q, whole.q[order])
        np.testing.assert_array_equal(level.read, whole.read[order])


def test_what_cannot_be_flipped_is_refused_in_one_line(quantizer):
    with pytest.raises(ValueError, match="not in chunks"):
        quantizer(
            stages(latents()[:2]), latents()[:2], None, StreamCache(quantizer, None), flips=flips()
        )
    for changes, message in (
        ({"inputs": (FREE,) * 4}, "quantizer lapq"),
        ({"inputs": (ALONE,), "grids": ((4, 8),)}, "quantizer lapq"),
        ({"quantizer": "lfq", "grids": ((4, 8),)}, "quantizer lfq"),
        ({"vocabulary": 60}, "60 of 64 codes"),
    ):
        config = tiny_config(**changes)
        made = nnx.eval_shape(lambda config=config: build_quantizer(config, rngs=nnx.Rngs(0)))
        double = SimpleNamespace(model=SimpleNamespace(quantizer=made), config=config)
        with pytest.raises(UserError, match=f"^--flip: .*{message}") as caught:
            Tokenizer.check_flips(double)
        assert "\n" not in str(caught.value)
        if "vocabulary" not in changes:
            with pytest.raises(ValueError, match="no level sees"):
                made(stages(latents()[:2]), latents()[:2], None, flips=flips())


def test_the_tokenizer_hands_on_targets_and_what_was_read():
    tokenizer = tiny_network()
    tokenizer.check_flips()
    video = np.random.default_rng(0).integers(0, 255, (2, 5, 32, 32, 3), np.uint8)
    words = ["a dog", None]
    plain = tokenizer.encode_padded(video, words)
    ids, read = tokenizer.encode_flipped(video, words, Flips(flips().keys[:2], 0.0))
    for found in (ids, read):
        for level, expected in zip(found, plain, strict=True):
            np.testing.assert_array_equal(level, expected)
    ids, read = tokenizer.encode_flipped(video, words, Flips(flips().keys[:2], 1.0))
    np.testing.assert_array_equal(ids[0], plain[0])
    assert all((a != b).any() for a, b in zip(ids[1:], plain[1:], strict=True))
    assert all((a != b).any() and a.dtype == b.dtype for a, b in zip(ids, read, strict=True))
