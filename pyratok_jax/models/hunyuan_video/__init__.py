"""The HunyuanVideo VAE (arXiv 2412.03603): 4x8x8, 16 latent channels."""
