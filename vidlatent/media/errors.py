"""Why a clip cannot be used: one exception with a fixed set of reasons."""

from __future__ import annotations

import contextlib
import dataclasses
import time

import av

from vidlatent.errors import VidlatentError

__all__ = ["REASONS", "ClipError", "Deadline", "Limits", "named_errors"]

REASONS = {
    "missing": "no such file, or a link to nothing",
    "permission": "the file may not be read",
    "empty": "0 bytes",
    "unreadable": "not a video or picture that FFmpeg or Pillow can open",
    "no_video": "no video track (sound only)",
    "too_short": "fewer frames than the window",
    "too_large": "more pixels a frame than data.max_pixels",
    "slow": "reading took longer than data.decode_timeout_s",
    "truncated": "ends before its header says",
    "corrupt": "damaged picture data",
}


class ClipError(VidlatentError):
    """This clip has to be left out.

    Attributes:
      reason: a key of ``REASONS``.
      detail: what was found, in words.
    """

    def __init__(self, reason: str, detail: str):
        if reason not in REASONS:
            raise ValueError(f"unknown reason {reason!r}")
        # Both as arguments: pickling makes an exception again from these alone.
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail} ({REASONS[self.reason]})"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one clip may cost: pixels of a frame, and seconds of one read."""

    max_pixels: int = 4096 * 4096
    timeout_s: float = 20.0

    def check_size(self, height: int, width: int) -> None:
        """Raise ``ClipError`` 'too_large' if ``height x width`` pixels are over the limit."""
        if height * width > self.max_pixels:
            raise ClipError("too_large", f"{width}x{height} pixels, limit {self.max_pixels}")


class Deadline:
    """Raises ``ClipError`` 'slow' when time is up.

    It is asked between packets, so it needs neither a thread nor a signal.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        self._end = time.monotonic() + self.seconds

    def check(self) -> None:
        if time.monotonic() > self._end:
            raise ClipError("slow", f"not done after {self.seconds:g} s")


@contextlib.contextmanager
def named_errors(invalid: str):
    """Turn errors of PyAV and the file system into ``ClipError``.

    Args:
      invalid: the reason to give for data that cannot be decoded.
    """
    try:
        yield
    # From the special to the general: PyAV's errors are Python's own at the same time.
    except ClipError:
        raise
    except av.error.ExitError as error:  # PyAV's time limit for opening and reading
        raise ClipError("slow", "reading was interrupted by the time limit") from error
    except FileNotFoundError as error:
        raise ClipError("missing", _short(error)) from error
    except PermissionError as error:
        raise ClipError("permission", _short(error)) from error
    except (av.error.FFmpegError, ValueError, EOFError) as error:
        # PyAV raises ValueError for pixel formats and sizes that it cannot convert.
        raise ClipError(invalid, _short(error)) from error
    except (OSError, MemoryError) as error:
        raise ClipError("unreadable", _short(error)) from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
