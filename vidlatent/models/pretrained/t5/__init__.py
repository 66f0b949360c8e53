"""T5 and UMT5, text encoders."""
