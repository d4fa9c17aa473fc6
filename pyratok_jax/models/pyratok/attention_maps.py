"""Which words of the caption each token attended to, for pictures."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.nn.text_attention import TextCondition


def attention_maps(
    model: PyraTok, video: Float[Array, "b t h w 3"], text: TextCondition
) -> tuple[Float[Array, "b _t _h _w l"], ...]:
    """Attention of every token of every level over the words, mean over heads; sums to 1.

    Args:
        model: a tokenizer of LaPQ levels with text guidance.
        video: in [-1, 1], as `PyraTok.encode` takes it.
        text: captions; a row without words gives its weight to the first place, where the learned
            null caption stands.

    Raises:
        ValueError: when the tokenizer has no levels that attend to text.
    """
    condition = model.condition(text, video.shape[0])
    if condition is None or not len(model.blocks):
        raise ValueError("this tokenizer's levels do not attend to text")
    output = model.encode(video, text)
    latent = jnp.zeros_like(output.target)
    previous, maps = None, []
    for stage, block, synthesis, level in zip(
        model.config.stages or (), model.blocks, model.synthesis, output.levels, strict=True
    ):
        x, _ = block.visual(output.stages[stage - 1], output.target - latent, previous)
        maps.append(block.attention.weights(x, condition))
        latent = latent + synthesis(level.q).astype(latent.dtype)
        previous = level.q
    return tuple(maps)
