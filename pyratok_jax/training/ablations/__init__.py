"""The published ablations."""
