"""Wan2.1's transformer, with FSVideo's layer memory."""
