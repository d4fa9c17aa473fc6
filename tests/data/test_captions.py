"""Captions to ids: padding, missing captions, truncation that is counted."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pyratok_jax.data.captions import CaptionTokenizer, check_captions
from pyratok_jax.errors import UserError


@pytest.fixture
def words():
    names = ["[PAD]", "[UNK]", "a", "red", "car", "drives", "user"]
    vocabulary = {word: number for number, word in enumerate(names)}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]",
        chat_template="{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}",
    )  # fmt: skip


def test_ids_and_mask(words):
    ids, mask = CaptionTokenizer(words, 4)(["a red car", None, "  ", "a boat"])
    assert ids.dtype == np.int32 and mask.dtype == bool
    assert ids.tolist() == [[2, 3, 4, 0], [0] * 4, [0] * 4, [2, 1, 0, 0]]
    assert mask.sum(axis=1).tolist() == [3, 0, 0, 2]


def test_truncation_is_counted(words):
    tokenize = CaptionTokenizer(words, 3)
    ids, _ = tokenize(["a red car drives", "a red car", None])
    assert ids[0].tolist() == [2, 3, 4]
    assert (tokenize.truncated, tokenize.seen) == (1, 2)


def test_truncation_is_reported(words, caplog):
    tokenize = CaptionTokenizer(words, 2)
    with caplog.at_level("WARNING", logger="absl"):
        tokenize(["a red car"])
    assert "1 of 1 are longer than 2 tokens" in caplog.text


def test_chat_template(words):
    ids, mask = CaptionTokenizer(words, 6, chat=True)(["a car"])
    assert ids[0, :3].tolist() == [6, 2, 4] and mask.sum() == 3
    words.chat_template = None
    with pytest.raises(ValueError, match="chat template"):
        CaptionTokenizer(words, 6, chat=True)


def test_only_missing_captions(words):
    ids, mask = CaptionTokenizer(words, 3)([None, None])
    assert ids.shape == (2, 3) and not mask.any()


def test_sources_without_captions_are_refused_and_one_caption_for_all_is_said(caplog):
    with pytest.raises(UserError, match="none of 2 clips"):
        check_captions([None, " "])
    with caplog.at_level("WARNING"):
        check_captions(["a cat", "a dog"])
        assert not caplog.records
        check_captions(["a cat", "a cat", None])
    assert "nothing to tell apart" in caplog.text
