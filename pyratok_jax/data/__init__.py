"""Where videos and captions come from, and how they reach the model."""
