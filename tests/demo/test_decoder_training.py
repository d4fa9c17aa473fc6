"""The decoder's own training: what it changes, what it must not, and the term for colours."""

import runpy

import jax.numpy as jnp
import numpy as np
import pytest

from pyratok_jax.checkpoints.pretrained import DEMO_BACKBONE, load_backbone, read_weights
from pyratok_jax.data.world.films import world_film
from pyratok_jax.demo.clips import phased_clips
from pyratok_jax.demo.decoder_training import TRAINED, run, slope_error
from pyratok_jax.errors import UserError
from pyratok_jax.models.wan_vae.config import WanVAEConfig


def test_paled_colours_cost_and_grey_clips_do_not():
    rng = np.random.default_rng(0)
    wanted = jnp.asarray(rng.normal(size=(2, 3, 8, 8, 2)) * 0.3, jnp.float32)
    assert slope_error(wanted, wanted) < 1e-6
    np.testing.assert_allclose(slope_error(0.9 * wanted, wanted), 0.01, rtol=0.02)
    # An offset is not a slope, and noise that has nothing to do with the clip is neither.
    np.testing.assert_allclose(slope_error(wanted + 0.4, wanted), 0.0, atol=1e-6)
    noise = jnp.asarray(rng.normal(size=wanted.shape) * 0.1, jnp.float32)
    assert slope_error(wanted + noise, wanted) < 0.01 < slope_error(0.8 * wanted, wanted)
    grey = wanted * 1e-4
    assert slope_error(0 * grey, grey) < 1e-3


def test_things_are_films_of_one_thing():
    config = runpy.run_path("configs/demo_backbone.py")["get_config"]("decoder")
    config.data.clips, config.data.shares, config.data.augment = {"things": 16}, {}, {}
    config.data.phases = ("1*2x5x32",)
    films = [world_film("world", number, seed=1) for number in range(40)]
    alone = [film.draw(5, 32, 32) for film in films if len(film.scene.things) == 1][:2]
    assert any(len(film.scene.things) > 1 for film in films[:4])  # So that some are left out.
    for clip in next(phased_clips(config))["video"]:
        mirrored = clip[:, :, ::-1]
        assert any(np.array_equal(x, y) for x in (clip, mirrored) for y in alone)


def test_only_the_decoder_changes(tmp_path):
    config = runpy.run_path("configs/demo_backbone.py")["get_config"]("decoder-smoke")
    sizes, found = read_weights(run(config, tmp_path / "decoder")["weights"])
    before = load_backbone(DEMO_BACKBONE)
    assert WanVAEConfig.from_dict(sizes) == before.config and set(found) == set(before.arrays)
    changed = {k for k, x in found.items() if not np.array_equal(x, np.asarray(before.arrays[k]))}
    assert all(f"vae.{name}".startswith(TRAINED) for name in changed)
    assert {name.split(".")[0] for name in changed} == {"decoder", "linear", "post_quant_conv"}


def test_a_tokenizer_that_is_not_there_is_one_line(tmp_path):
    config = runpy.run_path("configs/demo_backbone.py")["get_config"]("decoder-smoke")
    config.tokenizer = str(tmp_path / "none")
    with pytest.raises(UserError, match="none"):
        run(config, tmp_path / "decoder")
