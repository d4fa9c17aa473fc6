"""A trained prior as one object: prompts to tokens, videos and token datasets."""

from pyratok_jax.generator.generator import Clip, Generator, Request
from pyratok_jax.generator.loading import load_generator

__all__ = ["Clip", "Generator", "Request", "load_generator"]
