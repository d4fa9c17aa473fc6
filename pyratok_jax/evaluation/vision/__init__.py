"""Masks, proposals, random fields and their scores."""
