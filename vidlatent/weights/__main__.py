"""Lists released weights: ``python -m vidlatent.weights``; with a file, says what it holds."""

import sys

from vidlatent.weights.listing import main

if __name__ == "__main__":
    sys.exit(main())
