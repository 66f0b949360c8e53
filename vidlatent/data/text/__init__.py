"""Captions of clips, how each system cleans its texts, and their token numbers."""
