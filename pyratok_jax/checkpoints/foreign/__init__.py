"""Other projects' checkpoint files, read safely."""
