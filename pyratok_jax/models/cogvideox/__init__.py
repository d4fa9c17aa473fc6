"""The CogVideoX video VAE (arXiv 2408.06072): 4x8x8, 16 latent channels."""
