"""Configs shipped with vidlatent; each file has ``get_config(arg)``."""
