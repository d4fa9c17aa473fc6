"""Weights that ship with the package, and files fetched from package archives."""
