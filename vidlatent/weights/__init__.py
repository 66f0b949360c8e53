"""Weights files, and the tables that map other code's names to ours."""
