"""Decoding and cutting of video."""
