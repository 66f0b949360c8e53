"""A page to try trained runs on, in a browser: ``python -m vidlatent.app``."""
