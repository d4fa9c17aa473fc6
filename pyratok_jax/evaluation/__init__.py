"""Metrics and the protocols of each task."""
