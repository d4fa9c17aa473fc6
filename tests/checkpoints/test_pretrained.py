"""Shipped weights as files: float16, or kernels in eight bits."""

import numpy as np

from pyratok_jax.checkpoints.pretrained import read_weights, write_weights


def test_eight_bits_are_near_and_half_as_large(tmp_path):
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.uniform(-3, 2, 32)
    arrays = {
        "kernel": (rng.normal(size=(3, 3, 16, 32)) * scales).astype(np.float32),
        "empty": np.zeros((64, 64), np.float32),
        "bias": rng.normal(size=32).astype(np.float32),
    }
    sizes = {}
    for bits in (8, 16):
        path = tmp_path / f"{bits}.safetensors"
        write_weights(path, {"width": 3}, arrays, bits=bits)
        config, found = read_weights(path)
        sizes[bits] = path.stat().st_size
        assert config == {"width": 3} and found.keys() == arrays.keys()
        for name, wanted in arrays.items():
            # Half a step of an output channel at most; half-precision rounds to 2**-11.
            most = np.abs(wanted).max(axis=tuple(range(wanted.ndim - 1))) * (1 / 254 + 2**-11)
            assert (np.abs(found[name] - wanted) <= most + 1e-6).all()
            assert found[name].dtype == np.float32
    assert sizes[8] < 0.6 * sizes[16]


def test_kernels_of_few_large_values_keep_sixteen_bits(tmp_path):
    """One step for a channel would be as large as most of its values."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 64, 32)).astype(np.float32)
    kernel[1, 1, 0] *= 300
    write_weights(tmp_path / "w.safetensors", {}, {"kernel": kernel}, bits=8)
    found = read_weights(tmp_path / "w.safetensors")[1]["kernel"]
    np.testing.assert_allclose(found, kernel, rtol=2**-10, atol=1e-6)
