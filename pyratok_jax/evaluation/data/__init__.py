"""Annotated sets in their published layouts."""
