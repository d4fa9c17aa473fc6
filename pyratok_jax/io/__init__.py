"""Files, pages and progress bars: what every command needs and nothing of models."""
