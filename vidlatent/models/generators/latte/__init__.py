"""Latte: spatial and temporal blocks in turn."""
