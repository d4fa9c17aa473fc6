"""The Mochi VAE (genmo, mochi-1-preview): 6x8x8, 12 latent channels."""
