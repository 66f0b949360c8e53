"""LPIPS, the perceptual distance."""
