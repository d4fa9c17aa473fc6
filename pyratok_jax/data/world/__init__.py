"""A procedural world of captioned videos with exact truth: the source `builtin:world`."""
