"""Whether a machine is fit for a run, in seconds: ``--mode=preflight``."""
