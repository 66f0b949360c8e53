"""Several processes of one run on this machine, for trying out what clusters do.

    python -m launch.local --processes=2 -- --config=configs/fsae.py --config.train.steps=20

What follows ``--`` are the flags of ``vidlatent.main``. Lines of output begin with the number of
their process. SIGINT and SIGTERM are passed on to all, and the exit status is the first that is not
0. With ``--gpus`` each process takes as many GPUs.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from absl import app, flags

__all__ = ["describe_processes", "run"]

_PROCESSES = flags.DEFINE_integer("processes", 2, "how many to start", lower_bound=1)
_GPUS = flags.DEFINE_integer("gpus", 0, "GPUs of each process; 0: all see all", lower_bound=0)


def describe_processes(processes: int, gpus: int, port: int) -> list[dict[str, str]]:
    """The variables of each process, by which ``vidlatent.parallel.joining`` joins them."""
    told = []
    for k in range(processes):
        variables = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(k),
        }
        if gpus:
            variables["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(k * gpus, (k + 1) * gpus)))
        told.append(variables)
    return told


def run(command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> int:
    """Run the command once for each environment, side by side; returns the exit status."""
    started: list[subprocess.Popen] = []
    asked: list[int] = []

    def pass_on(number: int, _) -> None:
        asked.append(number)
        for process in started:
            process.send_signal(number)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    readers = []
    try:
        for k, variables in enumerate(environments):
            process = subprocess.Popen(
                command,
                env={**os.environ, **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # A session of its own, so that Ctrl-C does not reach it twice.
                start_new_session=True,
            )
            started.append(process)
            assert process.stdout is not None
            readers.append(threading.Thread(target=_copy, args=(k, process.stdout), daemon=True))
            readers[-1].start()
            if asked:  # between two starts
                process.send_signal(asked[0])
        statuses = [process.wait() for process in started]
        for reader in readers:
            reader.join(5.0)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    # As shells have it, a process that a signal ended counts as 128 + the signal.
    return next((s if s > 0 else 128 - s for s in statuses if s), 0)


def _copy(process: int, lines: IO[str]) -> None:
    for line in lines:
        print(f"{process}: {line}", end="", flush=True)


def _find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 2:
        raise app.UsageError("give the flags of vidlatent.main after --")
    command = [sys.executable, "-m", "vidlatent.main", *arguments[1:]]
    return run(command, describe_processes(_PROCESSES.value, _GPUS.value, _find_port()))


if __name__ == "__main__":
    app.run(main)
