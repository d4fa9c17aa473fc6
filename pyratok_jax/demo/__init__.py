"""The demo's own small networks and their training."""
