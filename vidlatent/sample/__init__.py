"""The mode ``sample``: videos from a trained generator."""
