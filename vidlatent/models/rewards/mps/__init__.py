"""MPS (Zhang et al. 2024): preference for a picture, given its prompt."""
