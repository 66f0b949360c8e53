"""Serves the page until it is interrupted."""

import sys

from vidlatent.app.run import main

if __name__ == "__main__":
    sys.exit(main())
