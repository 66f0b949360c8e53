"""Scores as the papers computed them, beside the papers' own figures."""
