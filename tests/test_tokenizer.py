"""Clips of any size through a tokenizer: padding, cropping, batches, rate, refusals."""

import inspect

import numpy as np
import pytest

from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.tokenizer import (
    ClipTokenizer,
    EncodedClip,
    Tokenizer,
    TokenizerLike,
    mean_bits_per_pixel,
)
from tests.tiny_tokenizer import tiny_config, tiny_tokenizer
from tests.tokens.tiny import PixelTokenizer


def clip(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize("shape", [(1, 1, 1), (6, 17, 33), (5, 16, 32), (4, 40, 7)])
def test_any_size_comes_back(shape):
    tokenizer, video = PixelTokenizer(), clip(*shape)
    encoded = tokenizer.encode(video, "words")
    padded = encoded.padding
    assert (padded.padded_frames - 1) % 4 == padded.padded_height % 16 == padded.padded_width % 16
    assert [x.ndim for x in encoded.ids] == [3] * 4 and not encoded.batched
    found = tokenizer.decode(encoded)
    assert found.shape == video.shape and found.dtype == np.uint8
    np.testing.assert_array_equal(tokenizer.reconstruct(video, "words"), found)
    by_hand = np.pad(
        video,
        ((0, padded.padded_frames - shape[0]), (0, padded.padded_height - shape[1]),
         (0, padded.padded_width - shape[2]), (0, 0)), mode="edge",
    )  # fmt: skip
    whole = tokenizer.decode_padded(tokenizer.encode_padded(by_hand[None], ["words"]))
    np.testing.assert_array_equal(found, whole[0, : shape[0], : shape[1], : shape[2]])


def test_a_batch_is_its_clips():
    tokenizer = PixelTokenizer()
    videos, captions = clip(3, 6, 20, 18), ["one", None, "three"]
    batch = tokenizer.encode(videos, captions)
    assert batch.batched and tokenizer.decode(batch).shape == videos.shape
    for row, (video, caption) in enumerate(zip(videos, captions, strict=True)):
        alone = tokenizer.encode(video, caption)
        for a, b in zip(alone.ids, batch.ids, strict=True):
            np.testing.assert_array_equal(a, b[row])
        np.testing.assert_array_equal(tokenizer.decode(alone), tokenizer.decode(batch)[row])
    assert batch.bits_per_pixel == alone.bits_per_pixel == mean_bits_per_pixel([batch, alone])


def test_the_rate_is_that_of_the_stored_code_over_the_true_pixels():
    """Six bits per token, whatever the vocabulary: the one rule for bits per token."""
    config = tiny_config(vocabulary=48)
    assert (config.bits_per_token, config.vocabulary_size) == (6, 48)
    assert tiny_config().vocabulary_size == 64
    ids = tuple(np.zeros(shape, np.uint32) for shape in ((5, 1, 2), (2, 2, 4)))
    encoded = EncodedClip(ids, PixelTokenizer().padding(4, 15, 17), config.bits_per_token)
    assert (encoded.tokens, encoded.bits, encoded.pixels) == (26, 156, 4 * 15 * 17)
    assert encoded.bits_per_pixel == 156 / (4 * 15 * 17)


def test_every_consumer_reports_one_rate():
    """With K < 2^bits, evaluation's features and reconstructions count as the tokenizer does."""
    from pyratok_jax.evaluation.models.features import TokenizerFeatures
    from pyratok_jax.evaluation.models.reconstructors import TokenizerReconstructor

    class Smaller(PixelTokenizer):
        def __init__(self):
            super().__init__()
            self.config = tiny_config(vocabulary=48)

    tokenizer, video = Smaller(), clip(5, 16, 16)
    encoded = tokenizer.encode(video)
    assert encoded.bits == 6 * encoded.tokens
    assert TokenizerFeatures(tokenizer).video(video).bits == encoded.bits
    found = TokenizerReconstructor(tokenizer)
    rebuilt = found.reconstruct(video, None)
    assert rebuilt.bits * sum(x.size for x in rebuilt.ids) == encoded.bits
    assert found.vocabulary == 48


@pytest.mark.parametrize(
    ("video", "captions", "error", "message"),
    [
        (clip(5, 16, 16).astype(np.float32), None, TypeError, "uint8"),
        (clip(16, 16), None, ValueError, "expected"),
        (clip(0, 16, 16), None, ValueError, "empty"),
        (clip(5, 16, 16), ["a", "b"], ValueError, "2 captions for 1 clips"),
        (clip(2, 5, 16, 16), "a", ValueError, "1 captions for 2 clips"),
    ],
)
def test_what_is_no_clip_is_refused(video, captions, error, message):
    with pytest.raises(error, match=message):
        PixelTokenizer().encode(video, captions)


def test_doubles_have_the_interface_of_the_tokenizer():
    assert isinstance(PixelTokenizer(), TokenizerLike)
    assert isinstance(tiny_tokenizer(), TokenizerLike)
    names = [name for name in vars(TokenizerLike) if not name.startswith("_")]
    for name in names:
        if inspect.isfunction(getattr(TokenizerLike, name)):
            wanted = list(inspect.signature(getattr(TokenizerLike, name)).parameters)
            for cls in (Tokenizer, PixelTokenizer, ClipTokenizer):
                found = getattr(cls, name, None)
                assert found is None or list(inspect.signature(found).parameters) == wanted


def test_a_segment_that_is_not_full_must_be_the_last():
    segments = iter([clip(3, 16, 16), clip(4, 16, 16)])
    found = tiny_tokenizer().reconstruct_segments(segments)
    with pytest.raises(ValueError, match="segment 0 is not the last"):
        list(found)


def test_a_quantiser_that_cannot_stream_says_so():
    import jax
    from flax import nnx

    config = tiny_config(quantizer="lfq", grids=((4, 8),))
    graph, state = nnx.split(nnx.eval_shape(lambda: PyraTok(config, rngs=nnx.Rngs(0))))
    model = nnx.merge(graph, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state))
    with pytest.raises(ValueError, match="'lfq' cannot walk"):
        next(Tokenizer(model).reconstruct_segments([clip(1, 16, 16)]))
