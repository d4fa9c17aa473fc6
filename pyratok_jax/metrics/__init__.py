"""Measures of quality, rate and use of codes."""
