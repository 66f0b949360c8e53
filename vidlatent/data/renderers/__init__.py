"""Renderers of synthetic videos, for demos and tests."""
