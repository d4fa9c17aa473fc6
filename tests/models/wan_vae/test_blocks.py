"""Each block alone against the torch reference's block, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders import autoencoder_kl_wan as theirs
from flax import nnx

from pyratok_jax.models.wan_vae import layers
from pyratok_jax.nn import halo, lowering
from pyratok_jax.nn.frame_attention import attend, blockwise
from tests.models.wan_vae.reference import from_torch, noise, quick, relative, to_torch


def copy(module: torch.nn.Module, ours: nnx.Module, names: dict[str, str] | None = None) -> None:
    """Random values into both: torch's `a.weight` is our `a.kernel`, after `names`."""
    torch.manual_seed(1)
    for name, value in module.named_parameters():
        with torch.no_grad():
            value.copy_(value + 0.2 * torch.randn_like(value))
        for old, new in (names or {}).items():
            name = name.replace(old, new)
        *path, leaf = name.split(".")
        node = ours
        for part in path:
            node = node[int(part)] if part.isdigit() else getattr(node, part)
        array = value.detach().numpy()
        if leaf == "gamma":
            array = array.reshape(-1)
        elif leaf == "weight":
            axes = tuple(range(2, array.ndim))
            leaf, array = "kernel", array.transpose(*axes, 1, 0)
        parameter = getattr(node, leaf)
        assert parameter.shape == array.shape
        parameter[...] = jnp.asarray(array)


def compare(module, ours, x, limit=1e-5):
    """Values and input gradients of both on `x`."""
    given = to_torch(x).requires_grad_()
    expected = module(given)
    weights = noise(*from_torch(expected).shape, seed=3)
    (expected * to_torch(weights)).sum().backward()

    def total(model, x):
        y = model(x)
        return jnp.sum(y * weights), y

    if isinstance(ours, nnx.Module):
        input_grad, y = quick(nnx.grad(total, argnums=1, has_aux=True), ours, x)
    else:
        input_grad, y = jax.jit(lambda x: jax.grad(total, argnums=1, has_aux=True)(ours, x))(x)
    assert relative(y, from_torch(expected)) < limit
    assert relative(input_grad, from_torch(given.grad)) < 10 * limit


def make(kind, *args, **kwargs):
    return kind(*args, rngs=nnx.Rngs(0), **kwargs)


@pytest.mark.parametrize("form", ["frames", "conv3d", "tpu"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_causal_convolution(form, frames):
    module = theirs.WanCausalConv3d(4, 6, 3, padding=1)
    ours = make(layers.CausalConv3d, 4, 6, (3, 3, 3))
    copy(module, ours)
    with lowering.conv_lowering(form):
        compare(module, ours, noise(2, frames, 4, 6, 4))


@pytest.mark.parametrize("size", [(4, 6), (6, 8), (3, 16)])
def test_convolution_of_few_outputs_in_blocks(size):
    module = theirs.WanCausalConv3d(4, 3, 3, padding=1)
    ours = make(layers.CausalConv3d, 4, 3, (3, 3, 3))
    copy(module, ours)
    with lowering.conv_lowering("tpu"):
        compare(module, ours, noise(1, 2, *size, 4))


def test_norm():
    module = theirs.WanRMS_norm(6, images=False)
    ours = layers.ChannelNorm(6)
    copy(module, ours)
    compare(module, ours, noise(2, 3, 2, 4, 6))


@pytest.mark.parametrize("widths", [(4, 4), (4, 8)])
def test_residual_block(widths):
    module = theirs.WanResidualBlock(*widths)
    ours = make(layers.ResidualBlock, *widths)
    copy(module, ours)
    compare(module, ours, noise(1, 3, 4, 6, widths[0]))


def test_attention_block():
    """Frames are wider than high and channels differ from both: swapped axes cannot pass."""
    module = theirs.WanAttentionBlock(8)
    ours = make(layers.AttentionBlock, 8)
    copy(module, ours)
    x = 3 * noise(2, 3, 4, 6, 8)
    compare(module, ours, x)
    # The output depends on other positions of the frame, and on no other frame.
    changed = x.at[0, 1, 0, 0].add(1.0)
    moved = np.abs(np.asarray(quick(run, ours, changed) - quick(run, ours, x))).max(axis=-1)
    assert moved[0, 1, 3, 5] > 1e-4
    assert moved[0, 0].max() == moved[0, 2].max() == moved[1].max() == 0


@pytest.mark.parametrize("positions", [5, 8, 21])
def test_blockwise_attention_is_exact(positions):
    q, k, v = (3 * noise(2, positions, 4, seed=seed) for seed in range(3))

    def total(attention):
        run = jax.value_and_grad(lambda q, k, v: jnp.sum(jnp.sin(attention(q, k, v))), (0, 1, 2))
        return jax.jit(run)

    whole, whole_grads = total(attend)(q, k, v)
    parts, part_grads = total(lambda *qkv: blockwise(*qkv, block=8))(q, k, v)
    assert abs(whole - parts) < 1e-5 * abs(whole) + 1e-6
    for ours, expected in zip(part_grads, whole_grads, strict=True):
        assert relative(ours, expected) < 1e-5


def test_middle_block():
    module = theirs.WanMidBlock(8)
    ours = make(layers.MidBlock, 8)
    copy(module, ours)
    compare(module, ours, noise(1, 2, 4, 6, 8))


def run(module, x):
    return module(x)


class Chunked(torch.nn.Module):
    """The reference's resampling over its chunks: frame 0, then `size` frames at a time."""

    def __init__(self, module, size):
        super().__init__()
        self.module, self.size = module, size

    def forward(self, x):
        cache = [None]
        parts = [self.module(x[:, :, :1], cache, [0])]
        for start in range(1, x.shape[2], self.size):
            parts.append(self.module(x[:, :, start : start + self.size], cache, [0]))
        return torch.cat(parts, dim=2)


NAMES = {"module.": "", "resample.1": "spatial"}


@pytest.mark.parametrize("halves_time", [False, True])
def test_downsampling(halves_time):
    mode = "downsample3d" if halves_time else "downsample2d"
    module = Chunked(theirs.WanResample(4, mode), 4)
    ours = make(layers.Downsample, 4, halves_time=halves_time)
    copy(module, ours, NAMES)
    compare(module, ours, noise(1, 9, 4, 6, 4))


@pytest.mark.parametrize("doubles_time", [False, True])
@pytest.mark.parametrize("form", ["frames", "conv3d", "tpu"])
def test_upsampling(doubles_time, form):
    mode = "upsample3d" if doubles_time else "upsample2d"
    module = Chunked(theirs.WanResample(4, mode), 1)
    ours = make(layers.Upsample, 4, 2, doubles_time=doubles_time)
    copy(module, ours, NAMES)
    with lowering.conv_lowering(form):
        compare(module, ours, noise(1, 4, 4, 6, 4))


@pytest.mark.parametrize(("frames", "time", "space", "out"), [(5, 2, 2, 8), (3, 1, 2, 4)])
def test_average_down(frames, time, space, out):
    module = theirs.AvgDown3D(4, out, time, space)
    compare(module, lambda x: layers.average_down(x, out, time, space), noise(1, frames, 4, 6, 4))


@pytest.mark.parametrize(("time", "space", "out"), [(2, 2, 4), (1, 2, 2)])
def test_duplicate_up(time, space, out):
    module = theirs.DupUp3D(4, out, time, space)
    x = noise(1, 3, 2, 3, 4)
    expected = from_torch(module(to_torch(x), first_chunk=True))
    assert relative(layers.duplicate_up(x, out, time, space), expected) == 0


def test_patches():
    video = noise(1, 2, 4, 6, 3)
    expected = from_torch(theirs.patchify(to_torch(video), 2))
    assert relative(layers.patchify(video, 2), expected) == 0
    assert relative(layers.unpatchify(layers.patchify(video, 2), 2), video) == 0


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("count", [2, 4])
def test_strips_have_their_neighbours_borders(batch, count):
    """Cut frames give what whole ones give, across strips and not across clips."""
    x = noise(batch, 3, 8, 6, 5)
    conv = make(layers.CausalConv3d, 5, 4, (3, 3, 3))
    down = make(layers.Conv2d, 4, 4, (3, 3))
    expected = down(conv(x), padding=(0, 1), stride=2)
    with halo.in_strips(count):
        strips = halo.cut(x)
        assert strips.shape == (batch * count, 3, 8 // count, 6, 5)
        assert relative(halo.join(strips), x) == 0
        found = halo.join(down(conv(strips), padding=(0, 1), stride=2))
    assert relative(found, expected) < 1e-6


def test_strips_only_where_frames_divide():
    assert halo.strips_of(256, 8) == 1  # not on this backend
    with lowering.conv_lowering("tpu"):
        assert [halo.strips_of(h, 8) for h in (256, 160, 48, 24)] == [8, 4, 2, 1]


def test_channel_sums_are_sums_with_gradient():
    x = noise(1, 2, 3, 4, 6)
    sums, back = jax.vjp(lowering.channel_sums, x)
    assert relative(sums, np.repeat(np.sum(x, axis=-1, keepdims=True), 6, axis=-1)) < 1e-2
    given = noise(*x.shape, seed=1)
    expected = np.repeat(np.sum(given, axis=-1, keepdims=True), 6, axis=-1)
    assert relative(back(given)[0], expected) < 1e-2


def test_norm_in_half_precision_on_a_tpu():
    """Its sums run through the matrix unit: as close to float32 as bfloat16 results can be."""
    norm = layers.ChannelNorm(96)
    x = noise(1, 2, 3, 4, 96).astype(jnp.bfloat16)
    weights = noise(*x.shape, seed=2)

    def total(x):
        y = norm(x)
        return jnp.sum(y.astype(jnp.float32) * weights), y

    plain, tpu = (jax.jit(jax.grad(lambda x: total(x), has_aux=True)) for _ in range(2))
    expected_grad, expected = plain(x.astype(jnp.float32))
    with lowering.conv_lowering("tpu"):
        grad, y = tpu(x)
        at_zero = tpu(jnp.zeros_like(x))[0]
    assert y.dtype == grad.dtype == jnp.bfloat16
    assert relative(y.astype(jnp.float32), expected) < 3e-3
    assert relative(grad.astype(jnp.float32), expected_grad) < 5e-3
    assert np.isfinite(np.asarray(at_zero, np.float32)).all()


def test_filled_lanes_change_nothing():
    """Widths that a TPU stores as whole registers are filled with zeros, exactly."""
    block = make(layers.ResidualBlock, 72, 96)
    x = noise(1, 2, 4, 4, 72)
    with lowering.conv_lowering("tpu"):
        expected = quick(run, block, x)
        with lowering.padded_lanes():
            wide = quick(run, block, x)
            narrow = lowering.trim(make(layers.Conv2d, 96, 8, (1, 1))(wide), 8)
            # A block that keeps its width takes a narrow input from outside.
            keeps = make(layers.ResidualBlock, 96, 96)
            kept = quick(run, keeps, expected)
        with lowering.padded_lanes(allowed=False):
            assert quick(run, block, x).shape[-1] == 96
        assert relative(lowering.trim(kept, 96), quick(run, keeps, expected)) < 1e-6
    assert wide.shape[-1] == kept.shape[-1] == 128 and narrow.shape[-1] == 8
    assert np.abs(np.asarray(wide[..., 96:])).max() == 0
    assert relative(lowering.trim(wide, 96), expected) < 1e-6
