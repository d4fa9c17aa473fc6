"""How levels start."""
