"""Captions of clips, how each system cleans them, and their token numbers."""
