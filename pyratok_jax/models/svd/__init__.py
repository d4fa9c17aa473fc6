"""The VAE of Stable Video Diffusion (arXiv 2311.15127): 1x8x8, 4 latent channels."""
