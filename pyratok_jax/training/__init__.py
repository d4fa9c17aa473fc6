"""Optimisation: state, step, checkpoints, sharding and the loop."""
