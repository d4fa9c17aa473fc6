"""Chunks with carried caches give the whole-clip result."""

import jax
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.models.video_vae import encode_next
from pyratok_jax.models.wan_vae.model import WanVAE
from tests.models.wan_vae.chunks import decode_in_chunks, encode_in_chunks
from tests.models.wan_vae.reference import (
    noise,
    quick,
    relative,
    small,
)


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


@pytest.mark.parametrize(
    ("frames", "latents"), [((1,), (1,)), ((1, 4, 4), (1, 1, 1)), ((5, 8, 8), (2, 2, 2))]
)
def test_chunks_equal_the_whole_clip(vae, frames, latents):
    video = clip(vae, sum(frames))
    whole = quick(WanVAE.encode, vae, video)
    chunked = quick(lambda model, x: encode_in_chunks(model, x, *frames), vae, video)
    for a, b in zip(jax.tree.leaves(chunked), jax.tree.leaves(whole), strict=True):
        assert relative(a, b) < 1e-5
    expected = quick(WanVAE.decode, vae, whole.mean)
    decoded = quick(lambda model, z: decode_in_chunks(model, z, *latents), vae, whole.mean)
    assert relative(decoded, expected) < 1e-5


def test_caches_do_not_grow_with_the_clip(vae):
    """Those after the second chunk have the shapes of those after the first."""
    video = clip(vae, 9)
    _, first = jax.eval_shape(lambda v: encode_next(vae, v, None), video[:, :1])
    _, second = jax.eval_shape(lambda v, c: encode_next(vae, v, c), video[:, 1:5], first)
    assert second == first


def test_later_frames_do_not_change_earlier_results(vae):
    video = clip(vae, 9)
    changed = video.at[:, 5:].add(0.5)
    a, b = (quick(encode_in_chunks, vae, v) for v in (video, changed))
    assert np.array_equal(a.mean[:, :2], b.mean[:, :2])
    assert not np.array_equal(a.mean[:, 2:], b.mean[:, 2:])


def test_caches_of_another_network_are_refused(vae):
    video = clip(vae, 5)
    _, caches = jax.eval_shape(lambda v: encode_next(vae, v, None), video[:, :1])
    with pytest.raises(ValueError, match="another network"):
        jax.eval_shape(
            lambda v, c: encode_next(vae, v, c),
            video[:, 1:],
            caches | {"another": next(iter(caches.values()))},
        )
