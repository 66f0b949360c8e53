"""How a program ends by an error: one sentence, last, and the same on all processes of a run."""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path

import vidlatent
from vidlatent.errors import VidlatentError
from vidlatent.report.log_file import keep_traceback

__all__ = ["end_by"]

# What shells report for a program that Ctrl-C ended: 128 + the signal's number.
_INTERRUPTED = 130
_LOST = 75  # parallel.together.LOST, which imports JAX
_WRONG, _BROKEN = 2, 1  # exit status: a mistake that the user can mend, or one of the program
# What collective operations raise is not always of JAX's own type.
_CONNECTION = re.compile(
    "gloo|nccl|connection|socket|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED", re.IGNORECASE
)
_WAIT_SECONDS = 1.5  # for the reason of another process
_WAIT_LONG_SECONDS = 6.0  # if the error looks like the loss of a connection


def end_by(error: BaseException) -> int:
    """Say why the program ends, and return its exit status.

    With several processes it does not return: the others are told the reason, and if one of them
    was the first to fail, its reason is said here.
    """
    sentence, status = _explain(error)
    log = None if isinstance(error, KeyboardInterrupt) else keep_traceback(error)
    if "jax" in sys.modules:  # else there is no other process
        from vidlatent.parallel import together

        if not isinstance(error, together.SharedError):
            long = _is_of_jax(error) or _CONNECTION.search(str(error))
            seconds = _WAIT_LONG_SECONDS if long else _WAIT_SECONDS
            if failure := together.peer_failure(seconds):
                sentence, status = str(failure), failure.status
            else:
                together.report_failure(sentence, status)
        _say(sentence, log)
        together.leave(status)
    else:
        _say(sentence, log)
    return status


def _say(sentence: str, log: Path | None) -> None:
    if sentence != "interrupted":
        sentence = f"error: {sentence}"
    # Output that is buffered would come after it.
    sys.stdout.flush()
    print(sentence + (f" (Details: {log})" if log else ""), file=sys.stderr, flush=True)


def _explain(error: BaseException) -> tuple[str, int]:
    """``(sentence, exit status)``."""
    if isinstance(error, VidlatentError):
        return str(error), _WRONG
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", _INTERRUPTED
    if isinstance(error, OSError):
        return (
            f"{error}: check the path, its permissions and the free space; checkpoints already "
            "saved are untouched.",
            _WRONG,
        )
    text = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return (
            f"there is not enough memory ({text or 'of the host'}): make config.data.buckets "
            "smaller, or estimate what fits with --mode=plan.",
            _WRONG,
        )
    if (_is_of_jax(error) or _CONNECTION.search(text)) and _has_others():
        return (
            f"the connection to another process of this run is lost ({text}): it was killed, or "
            "its machine does not answer; look at its log.",
            _LOST,
        )
    return (
        f"{type(error).__name__}: {text} ({_find_place(error)}); a fault of the program.",
        _BROKEN,
    )


def _is_of_jax(error: BaseException | None) -> bool:
    seen: list[BaseException] = []  # an error that is raised from itself would be without end
    while error is not None and error not in seen:
        if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def _has_others() -> bool:
    import jax

    return jax.process_count() > 1


def _find_place(error: BaseException) -> str:
    """The innermost line of this package that the error came through."""
    root = os.path.dirname(vidlatent.__file__)
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if frame.filename.startswith(root):
            return f"{os.path.relpath(frame.filename, os.path.dirname(root))}:{frame.lineno}"
    return "outside the package"
