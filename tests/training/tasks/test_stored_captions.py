"""A training that reads stored caption embeddings has the losses of one that runs the model."""

import json
import re
import sys

import jax
import numpy as np
import pytest

from pyratok_jax import embed_captions
from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.errors import UserError
from pyratok_jax.training.distributed.transfer import DataShard
from pyratok_jax.training.tasks.tokenizer import TokenizerTask
from tests.training.tiny import tiny_config


def embedded(world, folder, *more):
    """What the command makes of the world's captions."""
    arguments = ["embed_captions", "--source", world / "videos", "--output", folder]
    arguments += ["--language", world / "language", "--length", 8, "--batch", 4, *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, arguments)))
        assert embed_captions.main() == 0
    return folder


@pytest.fixture(scope="module")
def stored(world, tmp_path_factory):
    return embedded(world, tmp_path_factory.mktemp("stored") / "captions")


def _terms(config):
    """Losses of the first batch of a fresh model, before any step."""
    task = TokenizerTask(config)
    loader = task.make_loader(lambda rows: DataShard(0, 1))
    batch = next(loader).arrays
    loader.close()
    partition = Partition(task.system, task.is_trainable)

    @jax.jit
    def run(params, frozen, batch):
        system = partition.merge(params, frozen)
        return task.loss(system, batch, jax.random.key(0), jax.numpy.float32(0.5))[1]

    return batch, run(partition.trainable, partition.frozen, batch)


def test_losses_are_those_of_the_model_that_was_stored(world, stored):
    config = tiny_config(world)
    config.data.caption_dropout = 0.0
    _, want = _terms(config)
    config.language.stored = str(stored)
    batch, got = _terms(config)
    assert batch["text_embeddings"].shape == (2, 8, 16) and batch["text_mask"].any()
    assert np.abs(batch["text_embeddings"]).max() > 0.1
    assert got.keys() == want.keys()
    for name, value in want.items():
        # What is stored is rounded to float16.
        assert float(got[name]) == pytest.approx(float(value), rel=2e-3, abs=1e-3), name


def test_embeddings_of_another_length_are_refused(world, stored):
    config = tiny_config(world)
    config.language.update({"stored": str(stored), "length": 9})
    with pytest.raises(UserError, match="embed_captions"):
        TokenizerTask(config)


def test_embeddings_of_a_model_that_is_quantised_otherwise_are_refused(
    world, stored, tmp_path, capsys
):
    config = tiny_config(world)
    config.language.update({"stored": str(stored), "bits": 8})
    with pytest.raises(UserError, match=r"0 bits; this training has .*--length 8 --bits 8"):
        TokenizerTask(config)
    config.language.stored = str(embedded(world, tmp_path / "captions", "--bits", 8))
    # What goes to a file tells how far it is, too.
    found = re.search(r"embedding: (\d+)/(\d+), ", capsys.readouterr().out)
    assert found and found[1] == found[2]
    TokenizerTask(config)
    config.language.bits = 0
    with pytest.raises(UserError, match="8 bits; this training has"):
        TokenizerTask(config)


def test_bits_are_those_of_the_checkpoint_where_one_is_named(monkeypatch):
    words = "embed_captions --source x --output y --checkpoint z --bits 8"
    monkeypatch.setattr(sys, "argv", words.split())
    with pytest.raises(UserError, match="--bits is for --language"):
        embed_captions.main()


def test_a_quantised_language_model_is_kept_so_in_training_and_in_the_checkpoint(world, tmp_path):
    config = tiny_config(world)
    config.language.bits = 8
    task = TokenizerTask(config)
    kernel = task.system.text.language_model.layers.mlp.up.kernel[...]
    assert kernel.dtype == jax.numpy.int8
    task.describe(tmp_path)
    said = json.loads((tmp_path / "tokenizer.json").read_text())["language_model"]
    assert said["bits"] == 8
    config.language.bits = 5
    with pytest.raises(UserError, match="expected 0, 8 or 4"):
        TokenizerTask(config)
