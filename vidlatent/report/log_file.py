"""``log.txt`` in a workdir: what the terminal shows, with dates, tracebacks and third parties.

The terminal gets one line for each thing that happened. Tracebacks, and what Orbax and asyncio log
while they fail, are kept here.
"""

from __future__ import annotations

import logging as std_logging
import os
import sys
import tempfile
import threading
import traceback
from collections import deque
from logging.handlers import RotatingFileHandler
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import jax
from absl import logging
from tqdm import tqdm

from vidlatent.paths import Mirror, as_path

__all__ = [
    "NotNoisy",
    "capture_noise",
    "keep_traceback",
    "log_path",
    "write_above_bars",
    "write_log",
]

_LARGEST = 20 << 20  # bytes, after which the file begins anew; the one before is kept as log.txt.1
_EARLY = 10_000  # lines kept until there is a workdir to write them to
_NOISY = tuple(f"{os.sep}{name}{os.sep}" for name in ("orbax", "asyncio", "gcsfs", "fsspec"))


class _Full(std_logging.Formatter):
    """``2026-11-30 12:30:59,000 INFO file.py:12 message``, and the traceback."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(filename)s:%(lineno)d %(message)s")

    def format(self, record: std_logging.LogRecord) -> str:
        # What a filter has shortened for the terminal is kept in full.
        return super().format(getattr(record, "unabridged", record))


class _Early(std_logging.Handler):
    """Keeps formatted lines until they can be written."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=_EARLY)
        self.setFormatter(_Full())

    def emit(self, record: std_logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class NotNoisy(std_logging.Filter):
    """Keeps the failures of libraries off the terminal: what they mean is said in one sentence."""

    def filter(self, record: std_logging.LogRecord) -> bool:
        return not any(part in record.pathname for part in _NOISY)


def write_above_bars(handler: std_logging.Handler) -> None:
    """Let a handler of the terminal write its lines above progress bars, not into them."""
    emit = handler.emit

    def emit_above(record: std_logging.LogRecord) -> None:
        # It takes the bars away and draws them again below; without a bar it does nothing.
        with tqdm.external_write_mode(file=sys.stderr):
            emit(record)

    handler.emit = emit_above  # type: ignore[method-assign]


_early: _Early | None = None
_file: RotatingFileHandler | None = None


def capture_noise() -> None:
    """Keep everything that is logged from now on, and errors of threads and finalizers, for a file.

    For programs: the errors that no code can catch no longer go to the terminal.
    """
    global _early
    if _early is None:
        _early = _Early()
        std_logging.getLogger().addHandler(_early)
    _start_quiet_tracker()
    threading.excepthook = _keep_thread_error
    sys.unraisablehook = _keep_unraisable


def _start_quiet_tracker() -> None:
    """Start the process that removes shared memory when this one ends, without an error output.

    It would complain about what a killed decoding process left, after everything was said.
    """
    try:
        kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is no error output
        return
    try:
        os.dup2(nothing, 2)
        resource_tracker.ensure_running()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _keep_thread_error(args: Any) -> None:
    if args.exc_type is not SystemExit:
        name = args.thread.name if args.thread else "?"
        error = args.exc_value or args.exc_type()
        _write(f"error in the thread {name}\n" + _format(error))


def _keep_unraisable(args: Any) -> None:
    error = args.exc_value or args.exc_type()
    _write(f"{args.err_msg or 'error ignored'}: {args.object!r}\n" + _format(error))


def _format(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


def _write(text: str) -> None:
    """Write to the file alone, past all loggers."""
    handler = _file or _early
    if handler is not None:
        handler.handle(
            std_logging.LogRecord("vidlatent", std_logging.ERROR, __file__, 0, text, (), None)
        )


def write_log(workdir: Path) -> None:
    """From now on write ``log.txt`` in a workdir; what was captured before goes there first.

    Processes other than the first have ``log_process_1.txt`` and so on. A file that cannot be
    written is only warned of.
    """
    global _file, _early
    number = jax.process_index()
    mirror = Mirror(as_path(workdir, f"log_process_{number}.txt" if number else "log.txt"))
    path = mirror.local
    root = std_logging.getLogger()
    if _file is not None:
        root.removeHandler(_file)
        _file.close()
        _file = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = RotatingFileHandler(path, maxBytes=_LARGEST, backupCount=1, encoding="utf-8")
        file.stream.write(f"\n==== {' '.join(sys.argv)}\n")
        if _early is not None:
            file.stream.writelines(line + "\n" for line in _early.lines)
        file.stream.flush()
    except OSError as error:
        logging.warning("the log file %s cannot be written: %s", path, error)
        return
    file.setFormatter(_Full())
    # A full disk must not end a run by its log: Python would print a traceback for each line.
    file.handleError = lambda record: None  # type: ignore[method-assign]
    if _early is not None:
        root.removeHandler(_early)
        _early = None
    root.addHandler(file)
    _file = file


def log_path() -> Path | None:
    """The file that is written now."""
    return None if _file is None else Path(_file.baseFilename)


def keep_traceback(error: BaseException) -> Path | None:
    """Write an error's traceback to the log, or to a file of its own; returns which one.

    None if there is nothing to read there: no log is open, and the error is explained in full by
    its sentence; or no file can be written.
    """
    text = _format(error)
    if _file is not None:
        _write(text)
        return log_path()
    if error.__cause__ is None and type(error).__module__.startswith("vidlatent"):
        return None
    path = Path(tempfile.gettempdir()) / f"vidlatent-{os.getpid()}.log"
    lines = [] if _early is None else list(_early.lines)
    try:
        path.write_text("\n".join([*lines, text]) + "\n", encoding="utf-8")
    except OSError:
        return None
    return path
