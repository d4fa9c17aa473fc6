"""C3D against a plain PyTorch form, its converter, and the Inception score."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional

from pyratok_jax.checkpoints.conversion import load_arrays
from pyratok_jax.checkpoints.foreign.sources import sources_from_arrays
from pyratok_jax.checkpoints.partition import build_module
from pyratok_jax.errors import UserError
from pyratok_jax.metrics.inception_score import inception_score, resized
from pyratok_jax.models.perceptual.c3d import C3D, LAYERS
from weights_conversion.c3d import main
from weights_conversion.networks import c3d

HIDDEN = 8


@pytest.fixture(scope="module")
def state():
    """Random weights by Chainer's names."""
    rng, found, channels = np.random.default_rng(0), {}, 3
    for layer in LAYERS:
        if isinstance(layer, tuple):
            name, outputs = layer
            kernel = rng.normal(0, 1 / np.sqrt(27 * channels), (outputs, channels, 3, 3, 3))
            found |= {f"{name}/W": kernel, f"{name}/b": rng.normal(0, 0.1, outputs)}
            channels = outputs
    for name, inputs, outputs in (("fc6", 8192, HIDDEN), ("fc7", HIDDEN, HIDDEN),
                                  ("fc8", HIDDEN, 101)):  # fmt: skip
        found[f"{name}/W"] = rng.normal(0, 1 / np.sqrt(inputs), (outputs, inputs))
        found[f"{name}/b"] = rng.normal(0, 0.1, outputs)
    return {name: value.astype(np.float32) for name, value in found.items()}


def expected(state, clip, mean):
    x = torch.tensor(np.moveaxis(clip[None, ..., ::-1] - mean, -1, 1))
    for layer in LAYERS:
        if isinstance(layer, tuple):
            kernel, bias = (torch.tensor(state[f"{layer[0]}/{k}"]) for k in "Wb")
            x = functional.relu(functional.conv3d(x, kernel, bias, padding=1))
        else:
            x = functional.max_pool3d(x, (layer, 2, 2), (layer, 2, 2), ceil_mode=True)
    x = x.flatten(1)
    for name in ("fc6", "fc7", "fc8"):
        x = functional.linear(x, *(torch.tensor(state[f"{name}/{k}"]) for k in "Wb"))
        x = x if name == "fc8" else functional.relu(x)
    return x.numpy()


def test_logits_equal_the_reference_by_both_namings(state):
    rng = np.random.default_rng(1)
    clip = rng.uniform(0, 255, (16, 112, 112, 3)).astype(np.float32)
    mean = rng.uniform(80, 120, clip.shape).astype(np.float32)
    short = {"conv1a": "conv1", "conv2a": "conv2"}
    torch_names = {
        short.get(key[:-2], key[:-2]) + (".weight" if key.endswith("W") else ".bias"): value
        for key, value in state.items()
    }
    plans = [c3d.make_plan(sources_from_arrays(x), mean, HIDDEN) for x in (state, torch_names)]
    first, second = (load_arrays(plan.check()) for plan in plans)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    model = build_module(lambda: C3D(rngs=nnx.Rngs(0), hidden=HIDDEN), first)
    wanted = expected(state, clip, mean)
    np.testing.assert_allclose(
        model(jnp.asarray(clip[None])), wanted, atol=1e-4 * np.abs(wanted).max()
    )


def test_corners_stay_in_the_corners_when_a_clip_is_resized():
    rng = np.random.default_rng(2)
    clip = rng.uniform(0, 255, (2, 30, 50, 3)).astype(np.float32)
    theirs = functional.interpolate(
        torch.tensor(np.moveaxis(clip, -1, 1)), (112, 112), mode="bilinear", align_corners=True
    )
    ours = np.asarray(resized(jnp.asarray(clip)))
    np.testing.assert_allclose(ours, np.moveaxis(theirs.numpy(), 1, -1), atol=1e-3)


def test_the_score_is_the_number_of_classes_that_are_told_apart():
    sure = 60 * np.eye(101)[np.arange(40) % 4]
    assert inception_score(sure, splits=1)[0] == pytest.approx(4)
    assert inception_score(sure, splits=10) == pytest.approx((4, 0))
    assert inception_score(np.zeros((20, 101))) == pytest.approx((1, 0))
    assert inception_score(np.tile(sure[:1], (20, 1))) == pytest.approx((1, 0))
    with pytest.raises(ValueError, match="fewer than"):
        inception_score(sure[:9])


def test_files_that_are_no_c3d_are_refused(state, tmp_path):
    weights, mean = tmp_path / "weights.npz", tmp_path / "mean.npz"
    np.savez(weights, **state)
    np.savez(mean, mean=np.zeros(3 * 16 * 128 * 171, np.float32))
    assert c3d.read_mean(mean).shape == (16, 112, 112, 3)

    def refused(message, weights=weights, mean=mean):
        arguments = ["--input", str(weights), "--mean", str(mean), "--output", str(tmp_path / "o")]
        with pytest.raises(UserError, match=message) as caught:
            main(arguments)
        assert "\n" not in str(caught.value) and not (tmp_path / "o").exists()

    refused("wrong shape")  # Hidden layers of 8.
    other = tmp_path / "other.npz"
    np.savez(other, conv9=np.zeros(3))
    refused("no known C3D", weights=other)
    refused("expected \\(3, 16, h, w\\)", mean=other)
    np.savez(other, a=np.zeros(1), b=np.zeros(1))
    refused("expected one array", mean=other)
    np.savez(other, mean=np.array([{}], dtype=object))
    refused("no readable npz", mean=other)
    other.write_bytes(b"nothing")
    refused("no readable npz", weights=other)
    refused("missing.npz", mean=tmp_path / "missing.npz")
