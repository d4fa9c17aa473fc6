"""Whole models against diffusers' chunked, cached run: values and gradients, both layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from pyratok_jax.checkpoints.partition import module_arrays
from pyratok_jax.models.wan_vae.config import WAN21, WAN22
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.nn.lowering import conv_lowering
from tests.models.wan_vae.chunks import decode_in_chunks, encode_in_chunks
from tests.models.wan_vae.reference import (
    chunked_decode,
    chunked_encode,
    from_torch,
    noise,
    our_vae,
    quick,
    relative,
    small,
    to_torch,
    torch_vae,
)
from weights_conversion.networks.wan_vae_published import published_name

LAYOUTS = pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "residual"])
def pair(request):
    config = small(request.param, blocks=1)
    model = torch_vae(config)
    return model, our_vae(model, config)


@pytest.mark.parametrize("frames", [1, 5, 9, 17, 21])
def test_encode(pair, frames):
    model, vae = pair
    config = vae.config
    video = noise(1, frames, 2 * config.spatial_factor, 3 * config.spatial_factor, 3)
    with torch.no_grad():
        moments, stages = chunked_encode(model, to_torch(video))
    encoded = quick(WanVAE.encode, vae, video)
    mean, logvar = np.split(from_torch(moments), 2, axis=-1)
    assert relative(encoded.mean, mean) < 1e-5
    assert relative(encoded.logvar, np.clip(logvar, -30, 20)) < 1e-5
    assert len(encoded.stages) == len(stages) == 4
    for ours, theirs in zip(encoded.stages, stages, strict=True):
        assert relative(ours, from_torch(theirs)) < 1e-5
    for stage, (time, space), width in zip(
        encoded.stages, config.stage_strides, config.stage_channels, strict=True
    ):
        expected = (1 + (frames - 1) // time, video.shape[2] // space, video.shape[3] // space)
        assert stage.shape == (1, *expected, width)


@pytest.mark.parametrize("latents", [1, 2, 3, 5, 6])
def test_decode(pair, latents):
    model, vae = pair
    z = noise(1, latents, 2, 3, vae.config.z_dim)
    with torch.no_grad():
        expected = from_torch(chunked_decode(model, to_torch(z)))
    ours = quick(WanVAE.decode, vae, z)
    assert ours.shape[1] == 4 * (latents - 1) + 1
    assert relative(ours, expected) < 1e-5


def test_batch_rows_are_independent(pair):
    _, vae = pair
    side = 2 * vae.config.spatial_factor
    video = noise(2, 5, side, side, 3)
    both = quick(WanVAE.encode, vae, video).mean
    assert relative(both[1:], quick(WanVAE.encode, vae, video[1:]).mean) < 1e-5


@pytest.mark.parametrize(("batch", "rows"), [(1, 64), (2, 32)])
def test_the_lowering_for_tpus(pair, batch, rows):
    """Frames cut into 8 and 4 strips, the latter walked in chunks too: the same values."""
    _, vae = pair
    factor = vae.config.spatial_factor
    video = noise(batch, 5, rows * factor // 8, 2 * factor, 3)
    expected = quick(WanVAE.encode, vae, video)
    decoded = quick(WanVAE.decode, vae, expected.mean)
    with conv_lowering("tpu"):
        ways = [(WanVAE.encode, WanVAE.decode), (encode_in_chunks, decode_in_chunks)]
        for encode, decode in ways[:batch]:
            found = quick(encode, vae, video)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                assert relative(a, b) < 1e-5
            assert relative(quick(decode, vae, expected.mean), decoded) < 1e-5


@LAYOUTS
def test_gradients(residual):
    """Of a reconstruction through both halves: the input's and every parameter's."""
    config = small(residual)
    model = torch_vae(config)
    vae = our_vae(model, config)
    video = noise(1, 9, 2 * config.spatial_factor, 3 * config.spatial_factor, 3)
    target = noise(*video.shape, seed=1)

    given = to_torch(video).requires_grad_()
    mean = model._encode(given).chunk(2, dim=1)[0]
    loss = ((chunked_decode(model, mean) - to_torch(target)) ** 2).mean()
    loss.backward()

    def ours(vae, video):
        return jnp.mean((vae.decode(vae.encode(video).mean) - target) ** 2)

    grads, input_grad = quick(nnx.grad(ours, argnums=(0, 1)), vae, video)
    assert relative(input_grad, from_torch(given.grad)) < 1e-4
    theirs = {name: p.grad for name, p in model.named_parameters()}
    total = 0
    flat = {".".join(map(str, path)): v for path, v in nnx.to_flat_state(grads)}
    assert flat.keys() == module_arrays(vae).keys()
    for name, grad in flat.items():
        expected = theirs[published_name(name, "diffusers", config)].numpy()
        if expected.ndim == 5:
            expected = expected.transpose(2, 3, 4, 1, 0)
        elif expected.ndim == 4 and not name.endswith("gamma"):
            expected = expected.transpose(2, 3, 1, 0)
        error = np.abs(np.asarray(grad[...]) - expected.reshape(grad[...].shape)).max()
        assert error <= 1e-4 * max(np.abs(expected).max(), 1e-6), name
        total += 1
    assert total == len(theirs)


def test_wrong_sizes_are_refused(pair):
    _, vae = pair
    side = vae.config.spatial_factor
    with pytest.raises(ValueError, match="frames must be 4k"):
        vae.encode(noise(1, 4, side, side, 3))
    with pytest.raises(ValueError, match="multiples of"):
        vae.encode(noise(1, 5, side, side + 1, 3))


def test_normalisation_is_the_published_one():
    assert len(WAN21.latents_mean) == 16 and len(WAN22.latents_mean) == 48
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        published = AutoencoderKLWan().config
    assert tuple(published.latents_mean) == WAN21.latents_mean
    assert tuple(published.latents_std) == WAN21.latents_std


@pytest.mark.slow
@pytest.mark.parametrize("config", [WAN21, WAN22], ids=["wan21", "wan22"])
def test_published_sizes(config):
    """Every value at the sizes of the published checkpoints, random weights."""
    model = torch_vae(config)
    vae = our_vae(model, config)
    encode = nnx.jit(lambda m, v: m.encode(v))
    decode = nnx.jit(lambda m, z: m.decode(z))
    for frames in (1, 5, 9, 17, 21):
        video = noise(1, frames, 3 * config.spatial_factor, 4 * config.spatial_factor, 3)
        z = noise(1, (frames - 1) // 4 + 1, 3, 4, config.z_dim)
        with torch.no_grad():
            moments, stages = chunked_encode(model, to_torch(video))
            decoded = from_torch(chunked_decode(model, to_torch(z)))
        encoded = encode(vae, video)
        mean, logvar = np.split(from_torch(moments), 2, axis=-1)
        errors = [relative(encoded.mean, mean), relative(encoded.logvar, np.clip(logvar, -30, 20))]
        errors += [relative(a, from_torch(b)) for a, b in zip(encoded.stages, stages, strict=True)]
        errors.append(relative(decode(vae, z), decoded))
        print(f"T={frames}", " ".join(f"{error:.1e}" for error in errors))
        assert max(errors) < 1e-5
