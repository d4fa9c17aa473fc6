"""The Wan video VAEs (4x8x8 z=16 and 4x16x16 z=48) as one family of modules."""
