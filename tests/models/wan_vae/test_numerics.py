"""Rematerialisation, half precision, and zero input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.ad_checkpoint import saved_residuals

from pyratok_jax.models.wan_vae.layers import ResidualBlock
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.nn import remat
from pyratok_jax.nn.causal_conv import KEPT
from pyratok_jax.nn.remat import LARGE, rematerialised
from tests.models.wan_vae.reference import noise, quick, relative, small


def loss(vae, video):
    return jnp.mean((vae.decode(vae.encode(video).mean) - video) ** 2)


def encoded_mean(vae, video):
    return vae.encode(video).mean


def test_remat_policies():
    """Same gradients; each policy leaves less in memory and computes more than the one before."""
    video = noise(1, 5, 16, 24, 3)
    results = {}
    for policy in ("none", "convs", "stages", "all"):
        vae = WanVAE(small(False, blocks=1), rngs=nnx.Rngs(0), remat=policy)
        graph, state = nnx.split(vae)
        gradient = jax.grad(lambda s, v, g=graph: loss(nnx.merge(g, s), v))
        traced = jax.jit(gradient).trace(state, video)
        # How often the program names a rematerialised region tells policies apart on any backend.
        regions = str(traced.jaxpr).count("prevent_cse")
        results[policy] = (traced.lower().compile()(state, video), regions)
    regions = {policy: count for policy, (_, count) in results.items()}
    assert regions["none"] == 0 < regions["convs"] == regions["stages"] < regions["all"]
    for policy in ("convs", "stages", "all"):
        for a, b in zip(
            jax.tree.leaves(results[policy][0]), jax.tree.leaves(results["none"][0]), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_remat_by_the_size_of_a_clip():
    """What a backward pass is given: with "convs" (small clips) also what convolutions gave."""
    block = ResidualBlock(4, 4, rngs=nnx.Rngs(0))
    x = noise(1, 1, 4, 4, 4)

    def kept(policy, pixels):
        run = rematerialised(policy, pixels)
        found = saved_residuals(lambda x: jnp.sum(run(block, x)), x)
        return sum(f"named '{KEPT}'" in why for _, why in found)

    assert kept("auto", LARGE) == kept("convs", 0) > 0
    assert kept("stages", 0) == kept("auto", LARGE + 1) == 0


@pytest.mark.parametrize("frames", [1, 5])
def test_remat_counts_the_pixels_of_the_video_on_both_ways(monkeypatch, frames):
    """The decoder too, which sees latents alone: "auto" changes at the same size of the video."""
    video = noise(2, frames, 16, 24, 3)

    def kept(policy):
        vae = WanVAE(small(False, blocks=1), rngs=nnx.Rngs(0), remat=policy)
        latent = jax.eval_shape(lambda v: vae.encode(v).mean, video)
        ways = [(lambda v: vae.encode(v).mean, video), (vae.decode, jnp.zeros(latent.shape))]
        found = [saved_residuals(lambda x, way=way: jnp.sum(way(x)), x) for way, x in ways]
        return [sum(f"named '{KEPT}'" in why for _, why in way) for way in found]

    many, few = kept("convs"), kept("stages")
    assert all(a > b for a, b in zip(many, few, strict=True))
    monkeypatch.setattr(remat, "LARGE", video.size // 3)
    assert kept("auto") == many
    monkeypatch.setattr(remat, "LARGE", video.size // 3 - 1)
    assert kept("auto") == few


def test_remat_of_frozen_weights():
    """Only the video's gradient is asked for; the weights come from outside of it."""
    vae = WanVAE(small(False, blocks=1), rngs=nnx.Rngs(0), remat="all")
    graph, state = nnx.split(vae)
    gradient = jax.jit(
        lambda state, video: jax.grad(lambda v: loss(nnx.merge(graph, state), v))(video)
    )
    video = noise(1, 5, 16, 24, 3)
    assert jax.eval_shape(gradient, state, video).shape == video.shape


def test_unknown_remat_policy():
    vae = WanVAE(small(False), rngs=nnx.Rngs(0), remat="some")
    with pytest.raises(ValueError, match="remat policy"):
        jax.eval_shape(vae.encode, noise(1, 1, 8, 8, 3))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_input_has_finite_gradients(dtype):
    """At zero the norms divide by nothing; biases are zero too in a fresh model."""
    vae = WanVAE(small(False, blocks=1), rngs=nnx.Rngs(0), dtype=dtype)
    grads = quick(nnx.grad(loss, argnums=(0, 1)), vae, jnp.zeros((1, 5, 16, 16, 3)))
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()


def test_half_precision_activations():
    """float32 parameters, bfloat16 activations: close to float32, and really bfloat16."""
    full = WanVAE(small(True, blocks=1), rngs=nnx.Rngs(0))
    half = WanVAE(small(True, blocks=1), rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    video = noise(1, 5, 32, 48, 3)
    assert half.encoder.conv_in.kernel[...].dtype == jnp.float32
    encode, decode = partial(quick, encoded_mean), partial(quick, WanVAE.decode)
    expected, mean = encode(full, video), encode(half, video)
    assert mean.dtype == jnp.bfloat16
    assert 1e-5 < relative(mean.astype(jnp.float32), expected) < 0.05
    decoded = decode(half, expected).astype(jnp.float32)
    assert 1e-5 < relative(decoded, decode(full, expected)) < 0.05
