"""The tokenizer around every family: tokens, reconstruction, adapters' gradients, streaming.

Programs are traced, not compiled; values are those of the parity tests.
"""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from pyratok_jax.models import cogvideox, hunyuan_video, mochi, svd
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.nn.grids import grid_shape
from pyratok_jax.nn.lora import LoRAParam
from pyratok_jax.nn.stream_cache import StreamCache


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [cogvideox, mochi, hunyuan_video, svd],
    ids=("cogvideox", "mochi", "hunyuan_video", "svd"),
)
def test_tokens_reconstruction_and_gradients(family):
    vae = family.tiny()
    config = PyraTokConfig(
        vae=vae, bits=4, width=8, heads=2, text_width=8, synthesis_width=8, lora_rank=2
    )
    assert config.grids == vae.default_grids
    size = (1 + 2 * vae.frame_step, config.spatial_multiple, 2 * config.spatial_multiple)
    video = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)

    def run(video):
        model = PyraTok(config, rngs=nnx.Rngs(0), remat="stages")
        assert not model.streams
        with pytest.raises(ValueError, match="cannot be streamed exactly"):
            model.vae.posterior(video, StreamCache(model.vae, None))
        ids = model.tokenize(video)

        def loss(model):
            return jnp.mean((model.decode(model.encode(video).latent) - video) ** 2)

        adapters = nnx.DiffState(0, LoRAParam)
        grads = nnx.grad(loss, argnums=adapters)(model)
        return ids, model.detokenize(ids), grads

    ids, decoded, grads = jax.eval_shape(run, video)
    assert [level.shape[1:] for level in ids] == [grid_shape(g, *size) for g in config.grids]
    assert decoded.shape == video.shape
    adapted = {path[:-2] for path, _ in nnx.to_flat_state(grads)}
    assert len(adapted) > 10 and all(path[:2] == ("vae", "encoder") for path in adapted)
    with pytest.raises(ValueError, match="frames must be"):
        vae.check_clip(0 if vae.frame_step == 1 else 3 + vae.frame_step, *size[1:])
