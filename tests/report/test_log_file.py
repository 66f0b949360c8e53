"""Log lines stand above progress bars, not in them."""

import io
import logging as std_logging
import sys

from tqdm import tqdm

from vidlatent.report.log_file import write_above_bars


def test_a_line_does_not_fall_into_a_bar(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    handler = std_logging.StreamHandler(shown)
    write_above_bars(handler)
    record = std_logging.LogRecord("a", std_logging.INFO, "a.py", 1, "a line", (), None)
    with tqdm(total=3, desc="frames", file=sys.stderr):
        shown.truncate(0)
        shown.seek(0)
        handler.handle(record)
        before, _, after = shown.getvalue().partition("a line\n")
    # The bar's line is wiped, and drawn anew below.
    assert before.endswith("\r") and "frames" not in before.rpartition("\r")[2]
    assert "frames:   0%" in after
