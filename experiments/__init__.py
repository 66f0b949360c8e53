"""Experiments: arms that are trained by the one loop and compared, each by one command."""
