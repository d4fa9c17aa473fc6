"""DINOv2 and DINOv3 vision transformers, the frozen reference networks of two losses."""
