"""Runs the checks; the exit status is 0 if all of them pass."""

import sys

from vidlatent.selftest.run import main

if __name__ == "__main__":
    sys.exit(main())
