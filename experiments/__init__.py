"""Experiments: each trains its arms with the usual loop and compares them, by one command."""
