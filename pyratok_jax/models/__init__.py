"""The networks: they know nothing of training, files or data sets."""
