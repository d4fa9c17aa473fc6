"""Meshes, hosts, and what passes between them."""
