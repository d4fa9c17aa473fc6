"""The CogVideoX VAE against diffusers where both agree, and against the original rule."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from pyratok_jax.models.cogvideox import COGVIDEOX_2B, CogVideoXVAE, tiny
from tests.models import vae_reference as reference

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def pair():
    config = tiny()
    model = reference.torch_vae(config)
    return model, reference.our_vae(model, config)


def torch_encode(model, video):
    """Moments of the whole clip, and every frame's features before time is halved."""
    blocks = model.encoder.down_blocks
    last = [block.resnets[-1] for block in blocks]
    (moments, _), found = reference.taps(lambda: model.encoder(reference.to_torch(video)), *last)
    stages = []
    for block, x in zip(blocks, found, strict=True):
        for layer in block.downsamplers or ():
            b, c, t, h, w = x.shape
            frames = x.transpose(1, 2).reshape(b * t, c, h, w)
            with torch.no_grad():
                y = layer.conv(F.pad(frames, (0, 1, 0, 1)))
            x = y.reshape(b, t, *y.shape[1:]).transpose(1, 2)
        stages.append(x)
    return moments, stages


@pytest.mark.parametrize(
    "shape",
    [(1, 9, 16, 24), *(pytest.param(s, marks=SLOW) for s in ((1, 1, 8, 16), (2, 5, 24, 16)))],
)
def test_encode(pair, shape):
    """The latent, the features, and that these averaged in pairs are the published blocks'."""
    model, vae = pair
    video = reference.noise(*shape, 3)
    encoded = reference.quick(CogVideoXVAE.encode, vae, video)
    assert reference.parity(encoded, *torch_encode(model, video)) < 1e-5
    _, found = reference.taps(
        lambda: model.encoder(reference.to_torch(video)), *model.encoder.down_blocks
    )
    for stage, block, stride in zip(encoded.stages, found, (2, 2, 1, 1), strict=True):
        b, t, h, w, c = stage.shape
        pairs = np.asarray(stage[:, 1:]).reshape(b, (t - 1) // stride, stride, h, w, c).mean(2)
        halved = np.concatenate([stage[:, :1], pairs], axis=1)
        assert reference.relative(halved, reference.from_torch(block)) < 1e-5


@pytest.mark.parametrize("frames", [21, pytest.param(17, marks=SLOW)])
def test_encode_in_parts_of_eight_frames_is_diffusers(pair, frames):
    model, vae = pair
    config = dataclasses.replace(vae.config, encode_frames=8)
    parts = reference.our_vae(model, config)
    video = reference.noise(1, frames, 16, 8, 3)
    with torch.no_grad():
        mean = reference.from_torch(model.encode(reference.to_torch(video)).latent_dist.mean)
    assert reference.relative(reference.quick(CogVideoXVAE.encode, parts, video).mean, mean) < 1e-5


@pytest.mark.parametrize("latents", [5, *(pytest.param(n, marks=SLOW) for n in (1, 3))])
def test_decode_odd_latents(pair, latents):
    model, vae = pair
    z = reference.noise(1, latents, 2, 3, 4)
    with torch.no_grad():
        expected = reference.from_torch(model.decode(reference.to_torch(z)).sample)
    assert reference.relative(reference.quick(CogVideoXVAE.decode, vae, z), expected) < 1e-5


def sat_decode(model, z):
    """The original decoder: parts of two latents, frame 0 apart in the first part alone."""

    def nearest(x, size, first):
        if not first or x.shape[2] == 1:
            return F.interpolate(x, size=size)
        start = F.interpolate(x[:, :, :1], size=(1, *size[1:]))
        return torch.cat([start, F.interpolate(x[:, :, 1:], size=(size[0] - 1, *size[1:]))], 2)

    caches: dict = {}

    def conv(layer, x):
        past = caches.get(layer, x[:, :, :1].repeat(1, 1, 2, 1, 1))
        x = torch.cat([past, x], 2)
        caches[layer] = x[:, :, -2:]
        return layer.conv(x)

    def norm(layer, x, z, first):
        zq = nearest(z, x.shape[2:], first)
        return F.silu(layer.norm_layer(x) * layer.conv_y.conv(zq) + layer.conv_b.conv(zq))

    def resnet(block, x, z, first):
        y = conv(block.conv1, norm(block.norm1, x, z, first))
        y = conv(block.conv2, norm(block.norm2, y, z, first))
        return y + (block.conv_shortcut(x) if hasattr(block, "conv_shortcut") else x)

    decoder, videos = model.decoder, []
    for start in range(0, z.shape[2], 2):
        part, first = z[:, :, start : start + 2], start == 0
        x = conv(decoder.conv_in, part)
        for block in decoder.mid_block.resnets:
            x = resnet(block, x, part, first)
        for stage in decoder.up_blocks:
            for block in stage.resnets:
                x = resnet(block, x, part, first)
            for layer in stage.upsamplers or ():
                t, h, w = x.shape[2:]
                if layer.compress_time:
                    t = 2 * t - first
                x = nearest(x, (t, 2 * h, 2 * w), first and layer.compress_time)
                frames = x.transpose(1, 2).flatten(0, 1)
                x = layer.conv(frames).unflatten(0, (len(z), -1)).transpose(1, 2)
        videos.append(conv(decoder.conv_out, norm(decoder.norm_out, x, part, first)))
    return torch.cat(videos, 2)


@pytest.mark.parametrize("latents", [4, pytest.param(2, marks=SLOW)])
def test_decode_even_latents_by_the_original_rule(pair, latents):
    model, vae = pair
    z = reference.noise(1, latents, 2, 3, 4)
    with torch.no_grad():
        expected = reference.from_torch(sat_decode(model, reference.to_torch(z)))
    ours = reference.quick(CogVideoXVAE.decode, vae, z)
    assert ours.shape[1] == 4 * (latents - 1) + 1
    assert reference.relative(ours, expected) < 1e-5


@SLOW
def test_gradients(pair):
    """Of a reconstruction through both halves: the input's."""
    model, vae = pair
    video = reference.noise(1, 9, 8, 16, 3)
    target = reference.noise(*video.shape, seed=1)
    given = reference.to_torch(video).requires_grad_()
    mean = model.encoder(given)[0].chunk(2, dim=1)[0]
    ((model.decode(mean).sample - reference.to_torch(target)) ** 2).mean().backward()

    def loss(vae, video):
        return jnp.mean((vae.decode(vae.encode(video).mean) - target) ** 2)

    grad = reference.quick(nnx.grad(loss, argnums=1), vae, video)
    assert reference.relative(grad, reference.from_torch(given.grad)) < 1e-4


def test_bad_sizes():
    with pytest.raises(ValueError, match="latents_std need 8"):
        tiny(z_dim=8, latents_mean=(0.0,) * 4)
    with pytest.raises(ValueError, match="encode_frames 6"):
        tiny(encode_frames=6)
    assert COGVIDEOX_2B.default_grids == ((1, 32), (2, 16), (4, 16), (4, 8))


@SLOW
def test_published_sizes():
    model = reference.torch_vae(COGVIDEOX_2B)
    vae = reference.our_vae(model, COGVIDEOX_2B)
    assert sum(value.numel() for value in model.state_dict().values()) == 215_583_907
    video, z = reference.noise(1, 9, 16, 24, 3), reference.noise(1, 3, 2, 3, 16)
    with torch.no_grad():
        decoded = reference.from_torch(model.decode(reference.to_torch(z)).sample)
    encoded = reference.quick(CogVideoXVAE.encode, vae, video)
    errors = [reference.parity(encoded, *torch_encode(model, video))]
    errors.append(reference.relative(reference.quick(CogVideoXVAE.decode, vae, z), decoded))
    print("relative errors", *(f"{error:.1e}" for error in errors))
    assert max(errors) < 1e-5
    narrow = reference.our_vae(model, COGVIDEOX_2B, dtype="bfloat16")
    assert max(reference.bfloat16_errors(vae, narrow, video, z)) < 0.1
