"""The tokenizer over a clip in chunks with carried caches, against the whole clip."""

import jax
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.nn.text_attention import TextCondition
from tests.models.wan_vae.reference import noise, quick, relative
from tests.tiny_tokenizer import tiny_tokenizer

CHUNKS = ((0, 5), (5, 9), (9, 13))


@pytest.fixture(scope="module")
def model():
    """Maps that start at zero would hide what their convolutions remember."""
    model = nnx.clone(tiny_tokenizer().model)
    for level, synthesis in enumerate(model.quantizer.synthesis):
        synthesis.smooth_out.kernel[...] = 0.3 * noise(*synthesis.smooth_out.kernel.shape)
        for block in (synthesis.smooth_in, model.quantizer.blocks[level].lateral.mix):
            block.bias[...] = 0.3 * noise(*block.bias.shape, seed=level)
        out = model.quantizer.blocks[level].attention.out
        out.kernel[...] = 0.3 * noise(*out.kernel.shape)
    return model


def test_chunks_give_the_whole_clip(model):
    video = noise(1, 13, 16, 32, 3)
    text = TextCondition(noise(1, 3, 12, seed=1), np.ones((1, 3), bool))
    tokenize = quick(type(model).tokenize, model, video, text)
    expected = quick(type(model).detokenize, model, tokenize)
    graph, state = nnx.split(model)
    options = {"xla_backend_optimization_level": 0}
    tokenize_next = jax.jit(
        lambda s, *given: nnx.merge(graph, s).tokenize_next(*given), compiler_options=options
    )
    detokenize_next = jax.jit(
        lambda s, *given: nnx.merge(graph, s).detokenize_next(*given), compiler_options=options
    )
    parts, videos, seen, shown = [], [], None, None
    for start, stop in CHUNKS:
        ids, seen = tokenize_next(state, video[:, start:stop], text, seen)
        parts.append(ids)
        # Codes of the whole clip, so that a code that rounding flipped does not count twice.
        given = tuple(
            level[:, -(-start // dt) : 1 + (stop - 1) // dt]
            for level, (dt, _) in zip(tokenize, model.config.grids, strict=True)
        )
        assert [a.shape for a in given] == [a.shape for a in ids]
        frames, shown = detokenize_next(state, given, shown)
        videos.append(frames)
    for whole, *pieces in zip(tokenize, *parts, strict=True):
        joined = np.concatenate(pieces, axis=1)
        assert np.mean(joined == np.asarray(whole)) > 0.99
    assert relative(np.concatenate(videos, axis=1), expected) < 1e-5


def test_memory_of_the_chunks_does_not_grow(model):
    """The caches have one size whatever came before."""
    shapes = []
    seen = None
    for start, stop in ((0, 1), (1, 5), (5, 9), (9, 13)):
        chunk = jax.ShapeDtypeStruct((1, stop - start, 16, 32, 3), np.float32)
        _, seen = jax.eval_shape(lambda v, c: model.tokenize_next(v, None, c), chunk, seen)
        shapes.append([a.shape for a in jax.tree.leaves(seen)])
    assert shapes[0] == shapes[1] == shapes[2] == shapes[3]
