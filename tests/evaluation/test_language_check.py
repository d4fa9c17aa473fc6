"""The report's language section: what it measures of the shipped tokenizer, and of none."""

import json

import numpy as np
import pytest

from pyratok_jax.evaluation.language_check import check_language, language_section
from pyratok_jax.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("builtin:world")


def test_names_are_read_off_the_tokens(tokenizer: Tokenizer):
    found = check_language(tokenizer, 24, read=False)
    assert found is not None
    assert found.top1 > 4 * found.chance
    assert found.nats == {}
    levels, columns = len(tokenizer.config.grids), 1 + len(found.phrases)
    assert found.picture.shape == (levels * (128 + 14), columns * 128, 3)
    # A row of frames and one for each level; every second of nine frames.
    assert found.moving.shape == ((1 + levels) * (128 + 14), 5 * 128, 3)
    assert found.alike.shape == (12, 12) and len(found.names) == 12
    # Right names are more alike than others on the whole.
    others = found.alike[~np.eye(12, dtype=bool)]
    assert np.diag(found.alike).mean() > others.mean() + others.std()
    page = str(language_section(found))
    assert page.count("<img") == 3
    assert f"{found.top1} %" in page and found.phrases[-1] in page
    summary = found.summary()
    assert not {"picture", "moving"} & summary.keys() and len(summary["alike"]) == 12
    json.dumps(summary)


def test_shuffled_words_of_a_name_are_at_chance(tokenizer: Tokenizer, monkeypatch):
    texts = tokenizer.text_features
    rng = np.random.default_rng(0)

    def shuffled(captions: list[str]) -> np.ndarray:
        values = np.asarray(texts(captions))
        return values[rng.permutation(len(values))]

    monkeypatch.setattr(tokenizer, "text_features", shuffled)
    found = check_language(tokenizer, 24, read=False)
    assert found is not None and found.top1 < 3 * found.chance


def test_nothing_is_said_of_a_tokenizer_without_language(tokenizer: Tokenizer):
    mute = Tokenizer(tokenizer.model, text=None, captions=None, alignment=None)
    assert check_language(mute, 24) is None
    assert check_language(tokenizer, 0) is None
