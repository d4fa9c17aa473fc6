"""PyraTok in JAX: a language-aligned, pyramidal video tokenizer."""

__version__ = "0.1.0"
