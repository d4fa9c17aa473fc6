"""A prior as the task `generation` sees it: samples, nats and codes of real clips."""

import json

import numpy as np
import pytest
from flax import nnx

from pyratok_jax import evaluate
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.models.generators import PriorSamples, Wanted
from pyratok_jax.evaluation.tasks.generation import Generation
from pyratok_jax.generator import Generator, publishing
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
    # But it is the same prior.
    assert colder.generator_hash == samples.generator_hash == generator.checkpoint_hash


def test_results_say_which_prior_was_measured(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(Generation, "load", lambda self, checkpoint: samples)
    evaluate.main(["--task", "generation", "--data", "builtin:world-heldout", "--output",
                   str(tmp_path), "--checkpoint", "prior", "--set", "samples=2", "--set",
                   "frames=5", "--set", "side=16", "--set", "fvd=false", "--set", "prior=false",
                   "--set", "condition=none"])  # fmt: skip
    found = json.loads((tmp_path / "results.json").read_text())["checkpoint"]
    assert found["generator"] == "cd" * 32 and found["hash"] == samples.checkpoint_hash


def card_of(folder, protocol, of):
    checkpoint = {"checkpoint": {"name": "prior", "hash": "ef" * 32} | of}
    found = {"task": "generation", "data": "x", "protocol": protocol, "metrics": {}}
    (folder / "results.json").write_text(json.dumps(found | checkpoint))
    return "".join(publishing._results(str(folder), "cd" * 32))


def test_results_of_another_prior_are_not_published(tmp_path):
    own = {"generator": "cd" * 32}
    assert "samples 4" in card_of(tmp_path, {"samples": 4}, own)
    for of in ({"generator": "12" * 32}, {}, {"generator": ""}):
        with pytest.raises(UserError, match="expected results of the prior cdcdcdcdcdcd") as caught:
            card_of(tmp_path, {"samples": 4}, of)
        assert "\n" not in str(caught.value)


def test_a_card_names_only_settings_that_were_given(tmp_path):
    own = {"generator": "cd" * 32}
    open_ones = {
        "samples": 4,
        "guidance": -1.0,
        "candidates": 1,
        "temperature": "",
        "steps": "",
        "things": 0,
    }
    assert "samples 4." in card_of(tmp_path, open_ones, own)
    said = card_of(tmp_path, open_ones | {"guidance": 0.0, "candidates": 4, "steps": "8"}, own)
    assert "samples 4, guidance 0.0, candidates 4, steps 8." in said
