"""Quantisers of the final latent alone, for comparison with the pyramid (LaPQ)."""

from pyratok_jax.models.pyratok.quantizers.build import QUANTIZERS, LatentQuantizer, build_quantizer

__all__ = ["QUANTIZERS", "LatentQuantizer", "build_quantizer"]
