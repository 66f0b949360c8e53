"""Helper process: saves one step after another until it is killed."""

import sys

from tests.helpers.checkpoint_cases import make_state, open_run, save

SIZE = 1 << 17  # 16 MiB of random numbers an array, so that a save takes a while.

if __name__ == "__main__":
    run = open_run(sys.argv[1], keep_latest=2)
    step = run.latest() or 0
    while True:
        step += 1
        save(run, step, make_state(step, size=SIZE))
        print(step, flush=True)
