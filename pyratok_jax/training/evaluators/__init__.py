"""Measurements of a model during its training (`config.evaluators`)."""
