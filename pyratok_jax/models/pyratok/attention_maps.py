"""Which words of the caption each token attended to, for pictures."""

from jaxtyping import Array, Float

from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.models.pyratok.quantizers.lapq import LaPQ
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
    if condition is None or not isinstance(model.quantizer, LaPQ):
        raise ValueError("this tokenizer's levels do not attend to text")
    output = model.encode(video, text)
    return model.quantizer.attention_maps(output.stages, output.target, output.levels, condition)
