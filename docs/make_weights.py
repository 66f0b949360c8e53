"""Writes docs/weights.md, the list of released weights, from the table of the package.

python -m docs.make_weights
"""

from pathlib import Path

from vidlatent.weights.listing import make_page

PAGE = Path(__file__).with_name("weights.md")

if __name__ == "__main__":
    PAGE.write_text(make_page())
