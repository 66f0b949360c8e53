"""DINOv2, image features."""
