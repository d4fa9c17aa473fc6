"""Chunks with carried caches give the whole-clip result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.models.wan_vae.streaming import (
    decode_segments,
    encode_chunk,
    encode_segments,
    stream_decode,
    stream_encode,
)
from tests.models.wan_vae.reference import noise, quick, relative, small


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "residual"])
def vae(request):
    vae = WanVAE(small(request.param, blocks=1), rngs=nnx.Rngs(0))
    for path, parameter in nnx.to_flat_state(nnx.state(vae, nnx.Param)):
        # A convolution without bias would hide a cache that starts wrongly.
        if path[-1] == "bias":
            node = vae
            for part in path[:-1]:
                node = node[part] if isinstance(part, int) else getattr(node, part)
            node.bias[...] = 0.3 * noise(*parameter.shape)
    return vae


def clip(vae, frames):
    side = vae.config.spatial_factor
    return noise(1, frames, side, 2 * side, 3)


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_scan_equals_whole_clip(vae, frames):
    video = clip(vae, frames)
    whole = quick(WanVAE.encode, vae, video)
    streamed = quick(stream_encode, vae, video)
    for a, b in zip(jax.tree.leaves(streamed), jax.tree.leaves(whole), strict=True):
        assert relative(a, b) < 1e-5
    expected = quick(WanVAE.decode, vae, whole.mean)
    assert relative(quick(stream_decode, vae, whole.mean), expected) < 1e-5


def test_one_loop_whatever_the_length(vae):
    """The compiled program does not grow with the clip."""

    def size(frames):
        video = jax.ShapeDtypeStruct(clip(vae, frames).shape, jnp.float32)
        graph, state = nnx.split(vae)
        encode = jax.jit(lambda s, v: stream_encode(nnx.merge(graph, s), v, stages=False))
        return len(encode.lower(state, video).as_text().splitlines())

    assert size(9) == size(401)


def test_segments_of_different_lengths(vae):
    video = clip(vae, 21)
    whole = quick(WanVAE.encode, vae, video)
    parts = [video[:, :5], video[:, 5:13], video[:, 13:]]
    encoded = list(encode_segments(vae, parts, stages=True))
    assert [e.mean.shape[1] for e in encoded] == [2, 2, 2]
    joined = jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *encoded)
    for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(whole), strict=True):
        assert relative(a, b) < 1e-5
    decoded = list(decode_segments(vae, (whole.mean[:, i:j] for i, j in ((0, 2), (2, 4), (4, 6)))))
    assert [d.shape[1] for d in decoded] == [5, 8, 8]
    expected = quick(WanVAE.decode, vae, whole.mean)
    assert relative(jnp.concatenate(decoded, axis=1), expected) < 1e-5


def test_later_frames_do_not_change_earlier_results(vae):
    video = clip(vae, 9)
    changed = video.at[:, 5:].add(0.5)
    encode = nnx.jit(stream_encode)
    a, b = (encode(vae, v) for v in (video, changed))
    assert np.array_equal(a.mean[:, :2], b.mean[:, :2])
    assert not np.array_equal(a.mean[:, 2:], b.mean[:, 2:])


def test_caches_of_another_network_are_refused(vae):
    video = clip(vae, 5)
    _, caches = jax.eval_shape(lambda v: encode_chunk(vae, v), video[:, :1])
    with pytest.raises(ValueError, match="another network"):
        jax.eval_shape(
            lambda v, c: encode_chunk(vae, v, c),
            video[:, 1:],
            caches | {"another": next(iter(caches.values()))},
        )
    with pytest.raises(ValueError, match="frames must be 4k"):
        stream_encode(vae, video[:, :4])
