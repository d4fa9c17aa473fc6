"""The shipped stand-in for DINOv3: loads, tells pictures apart, and hardly minds noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pyratok_jax.checkpoints.pretrained import DEMO_VISION, load_vision, write_weights
from pyratok_jax.errors import UserError
from pyratok_jax.losses.features import retention


def _pictures():
    """Smooth random pictures, (3, 64, 64, 3)."""
    coarse = jax.random.uniform(jax.random.key(0), (3, 4, 4, 3), minval=-1.0, maxval=1.0)
    return jax.image.resize(coarse, (3, 64, 64, 3), "cubic")


def test_noise_moves_its_features_less_than_another_picture():
    network = load_vision(DEMO_VISION)
    pictures = _pictures()
    noisy = pictures + 0.05 * jax.random.normal(jax.random.key(1), pictures.shape)
    seen = network(pictures)
    assert seen.patches.shape == (3, 4, 4, 128) and np.isfinite(seen.patches).all()
    other = network(jnp.roll(pictures, 1, axis=0))
    assert float(retention(seen, network(noisy))) < 0.2 * float(retention(seen, other))


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="builtin:demo-vision"):
        load_vision("builtin:other")


def test_weights_survive_the_file(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    write_weights(tmp_path / "x" / "w.safetensors", {"width": 3}, arrays)
    from safetensors import safe_open

    with safe_open(tmp_path / "x" / "w.safetensors", "np") as file:
        assert file.metadata() == {"config": '{"width": 3}'}
        np.testing.assert_array_equal(file.get_tensor("a"), arrays["a"])
