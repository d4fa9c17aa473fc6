"""What is read from disk to build a model: checkpoints, frozen weights, their hashes."""
