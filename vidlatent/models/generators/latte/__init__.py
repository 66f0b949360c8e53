"""Latte: alternating spatial and temporal blocks."""
