"""Stages that keep the sides, patches of pixels, and the linear path beside the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.demo.backbone_training import fit_linear, put_arrays
from pyratok_jax.models.wan_vae.config import WAN21, WanVAEConfig
from pyratok_jax.models.wan_vae.linear import LinearPath, from_blocks, to_blocks
from pyratok_jax.models.wan_vae.model import WanVAE
from tests.models.wan_vae.chunks import decode_in_chunks, encode_in_chunks

SIZES = {
    "base_dim": 4,
    "num_res_blocks": 1,
    "spatial_downsample": (True, False, False),
    "in_channels": 48,
    "out_channels": 48,
    "patch_size": 4,
    "linear_path": True,
    "z_dim": 6,
    "latents_mean": (0.0,) * 6,
    "latents_std": (1.0,) * 6,
}


@pytest.fixture(params=[True, False], ids=["residual", "plain"])
def vae(request):
    model = WanVAE(WanVAEConfig(**SIZES, is_residual=request.param), rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(1), 400))
    nnx.update(
        model,
        jax.tree.map(
            lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), nnx.state(model, nnx.Param)
        ),
    )
    return model


def test_sizes_of_stages_that_keep_the_sides():
    config = WanVAEConfig(**SIZES)
    assert config.spatial_factor == 8 and config.temporal_factor == 4
    assert config.stage_strides == ((1, 8), (2, 8), (4, 8), (4, 8))
    assert WAN21.stage_strides == ((1, 2), (2, 4), (4, 8), (4, 8)) and WAN21.spatial_factor == 8
    with pytest.raises(ValueError, match="spatial_downsample"):
        WanVAEConfig(**SIZES | {"spatial_downsample": (True,)})
    assert WanVAEConfig.from_dict({"base_dim": 8}).halves_space == (True, True, True)
    assert WanVAEConfig.from_dict(config.to_dict()) == config


def test_stage_features_have_the_config_s_strides(vae):
    encoded = vae.encode(jnp.zeros((1, 9, 16, 24, 3)))
    for stage, (time, space), width in zip(
        encoded.stages, vae.config.stage_strides, vae.config.stage_channels, strict=True
    ):
        assert stage.shape == (1, 1 + 8 // time, 16 // space, 24 // space, width)
    assert vae.decode(encoded.mean).shape == (1, 9, 16, 24, 3)


def test_chunks_equal_the_whole_clip(vae):
    video = jax.random.uniform(jax.random.key(2), (2, 13, 16, 24, 3), minval=-1)
    whole, streamed = vae.encode(video), encode_in_chunks(vae, video, 1, 4, 4, 4)
    np.testing.assert_allclose(streamed.mean, whole.mean, atol=2e-5)
    for a, b in zip(streamed.stages, whole.stages, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    np.testing.assert_allclose(
        decode_in_chunks(vae, whole.mean, 1, 1, 2), vae.decode(whole.mean), atol=2e-5
    )


def test_no_latent_sees_a_later_frame(vae):
    video = jax.random.uniform(jax.random.key(3), (1, 9, 16, 16, 3))
    changed = video.at[:, 5:].set(0.0)
    a, b = vae.encode(video).mean, vae.encode(changed).mean
    np.testing.assert_allclose(a[:, :2], b[:, :2], atol=1e-6)
    assert float(jnp.abs(a[:, 2] - b[:, 2]).max()) > 1e-3


def test_blocks_come_back():
    video = jax.random.normal(jax.random.key(0), (2, 8, 16, 24, 3))
    blocks = to_blocks(video, 4, 8)
    assert blocks.shape == (2, 2, 2, 3, 768)
    np.testing.assert_array_equal(from_blocks(blocks, 4, 8), video)
    # (frame, row, column, colour)
    assert float(blocks[1, 1, 0, 2, ((3 * 8 + 5) * 8 + 6) * 3 + 1]) == float(video[1, 7, 5, 22, 1])


def test_linear_path_decodes_a_block_from_its_own_latent_and_those_around_and_before():
    path = LinearPath(WanVAEConfig(**SIZES), rngs=nnx.Rngs(0))
    z = jax.random.normal(jax.random.key(0), (1, 3, 3, 4, 6))
    assert float(jnp.abs(path.decode(z)).max()) == 0.0
    for layer in (path.first_out, path.later_out):
        shape = layer.kernel.shape
        layer.kernel.set_value(jax.random.normal(jax.random.key(shape[-1]), shape))
    video = path.decode(z)
    assert video.shape == (1, 9, 24, 32, 3)
    before = np.abs(path.decode(z.at[0, 1, 1, 1].add(1.0)) - video).max(axis=-1)[0]
    assert before[:1].max() == 0 and before[1:5, 8:16, 8:16].min() > 0
    assert before[5:9, :, :24].min() > 0 and before[:, :, 24:].max() == 0
    last = np.abs(path.decode(z.at[0, 2, 1, 1].add(1.0)) - video).max(axis=-1)[0]
    assert last[:5].max() == 0 and last[5:].max() > 0


def test_fitted_linear_path_is_the_best_code_of_blocks_that_it_can_be():
    config = WanVAEConfig(**SIZES)
    rng = np.random.default_rng(0)
    # Blocks that are multiples of six patterns come back exactly.
    basis = {1: rng.normal(size=(6, 192)) / 14, 4: rng.normal(size=(6, 768)) / 28}
    parts = [
        np.asarray(from_blocks(rng.normal(size=(40, n, 2, 2, 6)) @ basis[time], time, 8))
        for n, time in ((1, 1), (2, 4))
    ]
    video = np.concatenate(parts, axis=1).astype(np.float32)
    path = LinearPath(config, rngs=nnx.Rngs(0))
    put_arrays(path, fit_linear(config, [video[:20], video[20:]]))
    z = path.encode(jnp.asarray(video))
    np.testing.assert_allclose(np.std(z[:, 1:], axis=(0, 1, 2, 3)), 1.0, atol=0.05)
    np.testing.assert_allclose(path.decode(z), video, atol=0.02)
