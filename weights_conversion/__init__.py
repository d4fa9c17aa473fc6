"""From published PyTorch checkpoints to ours, and back."""
