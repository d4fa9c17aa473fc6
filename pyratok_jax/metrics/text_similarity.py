"""CLIPSIM (arXiv 2104.14806): how like its prompt a video is, frame by frame, in CLIP's space."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8
from PIL import Image

from pyratok_jax.checkpoints.scorers import ClipWithWords

FRAMES = 16
PROTOCOL = (
    f"mean cosine of CLIP's vectors of the prompt and of {FRAMES} frames spread evenly over the "
    "video (all of a shorter one): shorter side resized to the network's (bicubic, antialiased), "
    "centre square; published figures use ViT-B/32"
)


class TextSimilarity:
    """CLIP on uint8 clips and prompts."""

    def __init__(self, clip: ClipWithWords) -> None:
        self._words, self._config = clip.words, clip.model.config
        self._model = clip.model
        self._images = nnx.jit(lambda model, images: model.images(images))
        self._texts = nnx.jit(lambda model, ids: model.texts(ids))

    def __call__(self, clip: UInt8[np.ndarray, "t h w 3"], prompt: str) -> float:
        """Mean cosine, -1 to 1."""
        numbers = np.unique(np.linspace(0, len(clip) - 1, FRAMES).round().astype(int))
        frames = np.stack([square(frame, self._config.side) for frame in clip[numbers]])
        images = self._images(self._model, jnp.asarray(frames))
        text = self._texts(self._model, jnp.asarray(self._ids(prompt)))
        return float(jnp.mean(_unit(images) @ _unit(text)[0]))

    def _ids(self, prompt: str) -> np.ndarray:
        """(1, length) ids, cut to the network's length and filled up with the end."""
        length, end = self._config.length, self._words.eos_token_id
        ids = self._words(prompt)["input_ids"]
        if len(ids) > length:
            ids = [*ids[: length - 1], end]
        return np.array([[*ids, *[end] * (length - len(ids))]], np.int32)


def square(frame: UInt8[np.ndarray, "h w 3"], side: int) -> Float[np.ndarray, "side side 3"]:
    """The central square in [0, 1], as CLIP's own preprocessing makes it."""
    height, width = frame.shape[:2]
    scale = side / min(height, width)
    size = max(side, int(scale * width)), max(side, int(scale * height))
    picture = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    return picture[top : top + side, left : left + side].astype(np.float32) / 255.0


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
