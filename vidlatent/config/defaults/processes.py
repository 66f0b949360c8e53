"""``config.processes``: how long the processes of one run wait for each other."""

from ml_collections import ConfigDict


def get_processes() -> ConfigDict:
    processes = ConfigDict()
    processes.join_timeout = 300  # seconds that all have to start and to find process 0
    # seconds without a sign of life, after which a process counts as dead
    processes.silence_timeout = 45
    # seconds that they have at the start to look at their data, before code and data are compared
    processes.compare_timeout = 300
    # look at the machine before training, as --mode=preflight does, and refuse one that is not fit
    processes.preflight = False
    processes.topology = ""  # that the run was planned for, which preflight compares: v5p:8x8x4
    return processes
