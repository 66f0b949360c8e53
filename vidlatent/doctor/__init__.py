"""``--mode=doctor``: what this installation is, for a report of a problem."""
