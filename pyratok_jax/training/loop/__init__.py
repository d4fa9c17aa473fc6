"""The loop around a step."""
