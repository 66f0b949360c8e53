"""Lines of progress where there is no terminal: now and then, and at the end."""

import logging as std_logging

from vidlatent.sample import progress
from vidlatent.sample.progress import VideoProgress


def test_lines_come_every_so_often(monkeypatch, caplog):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    with caplog.at_level(std_logging.INFO, logger="absl"):
        counted = VideoProgress(3, every=10.0)
        for _ in range(3):
            for step in range(1, 5):
                clock[0] += 4.0
                counted.step(step, 4)
            counted.advance()
        counted.close()
    told = [record.getMessage() for record in caplog.records]
    # At 12, 24, 36 and 48 s.
    assert told == [
        "step 3 of 4 after 0 of 3 videos",
        "step 2 of 4 after 1 of 3 videos",
        "step 1 of 4 after 2 of 3 videos",
        "3 of 3 videos, 0 s left",
    ]
