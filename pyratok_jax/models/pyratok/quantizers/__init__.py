"""Quantisers: the paper's pyramid (LaPQ), and others of the final latent, for comparison."""
