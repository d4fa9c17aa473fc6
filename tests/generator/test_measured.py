"""A prior as the task `generation` sees it: samples, nats and codes of real clips."""

import numpy as np
import pytest
from flax import nnx

from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.evaluation.models.generators import PriorSamples, Wanted
from pyratok_jax.generator import Generator
from pyratok_jax.models.prior.config import PriorConfig, Sampling
from pyratok_jax.models.prior.model import Prior
from tests.generator.tiny import LANGUAGE, Letters, tokenizer


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def samples():
    made = tokenizer()
    sizes = PriorConfig(
        strides=made.config.grids, bits=6, latent_stride=made.config.latent_stride,
        latent_channels=made.config.vae.z_dim, order="raster", width=32, layers=1, heads=2,
        kv_heads=1, condition="text", text_width=LANGUAGE.width,
    )  # fmt: skip
    generator = Generator(
        Prior(sizes, rngs=nnx.Rngs(0)), made, text=made.text,
        captions=CaptionTokenizer(Letters(), 4), size=(5, 16, 16), fps=8.0,
        sampling=Sampling(steps=(1,)), checkpoint_hash="cd" * 32,
    )  # fmt: skip
    return PriorSamples(generator)


def test_samples_have_the_size_of_the_real_clips_and_keep_with_their_numbers(samples, rng):
    real = list(rng.integers(0, 256, (2, 5, 16, 16, 3), np.uint8))
    both = samples.draw(Wanted(["a b", "c"], 4, 0, real))
    alone = samples.draw(Wanted(["c"], 5, 0, real[1:]))
    assert both[0].video.shape == (5, 16, 16, 3) and both[0].video.dtype == np.uint8
    for level, again in zip(both[1].ids, alone[0].ids, strict=True):
        np.testing.assert_array_equal(level, again)
    assert samples.fps == 8 and samples.vocabulary == 64


def test_real_clips_have_nats_codes_and_a_reconstruction(samples, rng):
    real = rng.integers(0, 256, (5, 16, 16, 3), np.uint8)
    known = samples.look(real, "a b", 0)
    assert known.rebuilt.shape == real.shape
    assert [level.shape for level in known.ids] == [(2, 1, 1), (2, 2, 2)]
    # An untrained head knows about nothing.
    assert known.nats["nats"] == pytest.approx(6 * np.log(2), rel=0.5)
    assert known.nats == samples.look(real, "a b", 0).nats
    assert known.nats != samples.look(real, "d d", 0).nats
    beside = samples.look(real, "a b", 0, another="d d").nats
    assert {k: beside[k] for k in known.nats} == known.nats
    assert len({beside["nats"], beside["nats_none"], beside["nats_another"]}) == 3
    # Of the tokens that are made under the clip's own caption.
    assert "nats_level_2_none" in beside and not any("accuracy_none" in name for name in beside)


def test_other_sampling_is_another_model(samples):
    generator = samples._generator
    colder = PriorSamples(generator, Sampling(steps=(1,), temperature=(0.5,)))
    assert colder.checkpoint_hash != samples.checkpoint_hash
