"""Which of several draws says its prompt best, by the tokens themselves.

DALL-E draws many samples and keeps those that a contrastive network finds nearest to the prompt
(Ramesh et al. 2021, section 2.6). Here the tokenizer is that network: its codes lie in the space of
its captions, so nothing has to be decoded.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pyratok_jax.errors import UserError
from pyratok_jax.losses.text import peak_cosines, unit
from pyratok_jax.tokenizer import Tokenizer


def check_ranking(tokenizer: Tokenizer, prompts: Sequence[str]) -> None:
    """Refuse candidates that nothing tells apart.

    Raises:
        UserError: a tokenizer without a text space, or an empty prompt.
    """
    if tokenizer.alignment is None or tokenizer.text is None:
        raise UserError(
            "--candidates needs a tokenizer that was trained with a text term, by whose tokens "
            "draws are compared with their prompt; this one has none: leave it at 1"
        )
    if not all(prompt.strip() for prompt in prompts):
        raise UserError("--candidates compares draws with their prompt, and one is empty")


def says_prompt(
    tokenizer: Tokenizer, ids: Sequence[np.ndarray], prompts: Sequence[str]
) -> Float[np.ndarray, " b"]:
    """How near the tokens of each clip are to its prompt: the mean over levels of cosines.

    Args:
        tokenizer: with a text space.
        ids: (b, t, h, w) of every level.
        prompts: one for each clip.
    """
    different = list(dict.fromkeys(prompts))
    vectors = unit(jnp.asarray(tokenizer.text_features(different)))
    own = np.array([different.index(prompt) for prompt in prompts])
    found = [
        np.asarray(peak_cosines(jnp.asarray(level).reshape(len(own), -1, level.shape[-1]), vectors))
        for level in tokenizer.code_embeddings(ids)
    ]
    return np.mean(found, axis=0)[np.arange(len(own)), own]
