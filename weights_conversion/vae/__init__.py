"""Converters of published video VAEs: one module per family, one command for all."""
