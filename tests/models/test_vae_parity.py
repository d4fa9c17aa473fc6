"""HunyuanVideo's, Mochi's and SVD's VAEs against diffusers, with random weights."""

import dataclasses

import jax.numpy as jnp
import pytest
import torch
from flax import nnx

from pyratok_jax.models import hunyuan_video, mochi, svd
from pyratok_jax.models.video_vae import VideoVAE, build_vae, decode_next
from tests.models.vae_reference import (
    bfloat16_errors,
    from_torch,
    noise,
    our_vae,
    parity,
    quick,
    relative,
    taps,
    to_torch,
    torch_vae,
)
from weights_conversion.vae.converting import CONVERTERS

SLOW = pytest.mark.slow
PUBLISHED = {
    "hunyuan_video": (hunyuan_video.HUNYUAN_VIDEO, 246_478_803),
    "mochi": (mochi.MOCHI, 459_748_611),
    "svd": (svd.SVD, 97_742_847),
}

# Families whose decode by diffusers in float32 can be more than 1e-5 away from its own in float64.
ROUNDED = {"hunyuan_video"}


def tiny(family):
    return {"hunyuan_video": hunyuan_video, "mochi": mochi, "svd": svd}[family].tiny()


@pytest.fixture(scope="module", params=["hunyuan_video", "mochi", "svd"])
def pair(request):
    config = CONVERTERS[request.param].comparable(tiny(request.param))
    model = torch_vae(config)
    return model, our_vae(model, config)


def torch_encode(model, family, video):
    """Moments, and the outputs of the encoder's blocks."""
    blocks = list(model.encoder.down_blocks)
    if family == "mochi":
        blocks.append(model.encoder.block_out)
    moments, found = taps(lambda: CONVERTERS[family].encode(model, to_torch(video)), *blocks)
    if family == "svd":
        found = [x.unflatten(0, (len(video), -1)).transpose(1, 2) for x in found]
    return moments, found


def frames_of(config, latents):
    return 1 + (latents - 1) * config.frame_step


@pytest.mark.parametrize("latents", [2, pytest.param(3, marks=SLOW), pytest.param(1, marks=SLOW)])
def test_encode(pair, latents):
    model, vae = pair
    video = noise(1, frames_of(vae.config, latents), 16, 24, 3)
    encoded = quick(VideoVAE.encode, vae, video)
    assert parity(encoded, *torch_encode(model, vae.config.family, video)) < 1e-5
    for stage, (time, space), width in zip(
        encoded.stages, vae.config.stage_strides, vae.config.stage_channels, strict=True
    ):
        expected = (1 + (video.shape[1] - 1) // time, 16 // space, 24 // space)
        assert stage.shape == (1, *expected, width)


@pytest.mark.parametrize("latents", [3, pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW)])
def test_decode(pair, latents):
    model, vae = pair
    z = noise(1, latents, 2, 3, vae.config.z_dim)
    with torch.no_grad():
        expected = from_torch(CONVERTERS[vae.config.family].decode(model, to_torch(z)))
    ours = quick(lambda vae, z: vae.decode(z), vae, z)
    assert ours.shape[1] == frames_of(vae.config, latents)
    assert relative(ours, expected) < 1e-5


@SLOW
def test_gradients(pair):
    """Of a reconstruction through both halves: the input's."""
    model, vae = pair
    converter = CONVERTERS[vae.config.family]
    video = noise(1, frames_of(vae.config, 2), 16, 24, 3)
    target = noise(*video.shape, seed=1)
    given = to_torch(video).requires_grad_()
    mean = converter.encode(model, given).chunk(2, dim=1)[0]
    ((converter.decode(model, mean) - to_torch(target)) ** 2).mean().backward()

    def loss(vae, video):
        return jnp.mean((vae.decode(vae.encode(video).mean) - target) ** 2)

    grad = quick(nnx.grad(loss, argnums=1), vae, video)
    assert relative(grad, from_torch(given.grad)) < 1e-4


def test_mochi_drops_first_frames_after_each_upsampling():
    """The original's rule, on diffusers' modules."""
    config = mochi.tiny()
    model = torch_vae(config)
    model.drop_last_temporal_frames = False
    for block in model.decoder.up_blocks:
        drop = block.temporal_expansion - 1
        block.register_forward_hook(lambda _m, _a, out, n=drop: (out[0][:, :, n:], out[1]))
    z = noise(1, 3, 2, 3, 4)
    with torch.no_grad():
        expected = from_torch(model.decode(to_torch(z)).sample)
    ours = quick(lambda vae, z: vae.decode(z), our_vae(model, config), z)
    assert relative(ours, expected) < 1e-5


@SLOW
def test_mochis_decoder_streams():
    vae = build_vae(mochi.tiny(), rngs=nnx.Rngs(0))
    z = noise(1, 3, 2, 3, 4)
    start, caches = quick(lambda m, z: decode_next(m, z, None), vae, z[:, :1])
    later, _ = quick(decode_next, vae, z[:, 1:], caches)
    whole = quick(lambda m, z: m.decode(z), vae, z)
    assert relative(jnp.concatenate([start, later], axis=1), whole) < 1e-5


def test_default_grids():
    assert hunyuan_video.HUNYUAN_VIDEO.default_grids == ((1, 32), (2, 16), (4, 16), (4, 8))
    assert mochi.MOCHI.default_grids == ((1, 32), (2, 16), (6, 16), (6, 8))
    assert svd.SVD.default_grids == ((1, 32), (1, 16), (1, 16), (1, 8))
    assert svd.SVD.preset_grids("pyramid") == svd.SVD.default_grids
    assert mochi.MOCHI.preset_grids("pyramid") == mochi.MOCHI.default_grids
    assert svd.SVD.preset_grids("compact") == ((1, 64), (1, 32), (1, 32), (1, 16))
    assert mochi.MOCHI.preset_grids("uniform") == ((6, 8),) * 4
    assert (mochi.MOCHI.window(), svd.SVD.window(), svd.SVD.window(9)) == (19, 17, 9)
    assert dataclasses.replace(mochi.MOCHI, keeps_first_frames=True).frames_rule == "6k+1"


@SLOW
@pytest.mark.parametrize("family", PUBLISHED)
def test_published_sizes(family):
    """Parity at full width, and what bfloat16 activations change there (`pytest -s`).

    Decode is compared with diffusers' in float32 and in float64, and these with each other.
    """
    config, parameters = PUBLISHED[family]
    config = CONVERTERS[family].comparable(config)
    model = torch_vae(config)
    count = sum(value.numel() for value in model.state_dict().values())
    assert count == parameters
    vae = our_vae(model, config)
    video, z = noise(1, frames_of(config, 2), 16, 24, 3), noise(1, 2, 2, 3, config.z_dim)
    errors = [parity(quick(VideoVAE.encode, vae, video), *torch_encode(model, family, video))]
    ours, decode = quick(lambda vae, z: vae.decode(z), vae, z), CONVERTERS[family].decode
    with torch.no_grad():
        decoded = from_torch(decode(model, to_torch(z)))
        exact = from_torch(decode(model.double(), to_torch(z).double()))
    pairs = ((ours, decoded), (ours, exact), (decoded, exact))
    errors += [relative(*pair) for pair in pairs]
    print(family, count, "relative errors", *(f"{error:.1e}" for error in errors))
    assert errors[0] < 1e-5 and errors[2] < 1e-5
    assert errors[1] < 1e-5 or (family in ROUNDED and errors[3] > 1e-5)
    narrow = our_vae(model.float(), config, dtype="bfloat16")
    assert max(bfloat16_errors(vae, narrow, video, z)) < 0.1
