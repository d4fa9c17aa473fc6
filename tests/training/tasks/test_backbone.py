"""The small VAE's training from its config to the weights file."""

import json
import runpy

import jax
import numpy as np
from flax import nnx

from pyratok_jax.checkpoints.partition import module_shapes
from pyratok_jax.checkpoints.pretrained import read_weights
from pyratok_jax.demo.backbone_training import run
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.model import WanVAE


def test_a_short_training_writes_averaged_weights_that_fit(tmp_path):
    config = runpy.run_path("configs/demo_backbone.py")["get_config"]("smoke")
    config.model.update({"base_dim": 4, "decoder_base_dim": 4})
    outputs = run(config, tmp_path / "vae")
    rows = [json.loads(x) for x in (tmp_path / "vae" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == config.steps and np.isfinite(rows[-1]["loss"])
    description, found = read_weights(outputs["weights"])
    sizes = WanVAEConfig.from_dict(description)
    shapes = module_shapes(lambda: WanVAE(sizes, rngs=nnx.Rngs(0)))
    assert {name: x.shape for name, x in found.items()} == dict(shapes)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    # Measured on the training's latents, which are not normalised already.
    assert len(sizes.latents_std) == sizes.z_dim and min(sizes.latents_std) > 0
    assert set(sizes.latents_std) != {1.0}
