"""The terms of the training objective, as pure functions."""
