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
    "unsupported": "a kind of file or picture that is not read faithfully",
    "no_video": "no video track (sound only)",
    "too_short": "fewer frames than the window",
    "too_large": "more pixels a frame than data.max_pixels",
    "slow": "reading took longer than data.decode_timeout_s",
    "truncated": "ends before its header says",
    "corrupt": "damaged picture data",
    "caption": "the text file beside the clip cannot be read",
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
    """What one clip may cost: pixels of a frame, and seconds of one read.

    ``max_pixels`` bounds the stored frame, and the frame once it is scaled to cover a size.
    """

    max_pixels: int = 4096 * 4096
    timeout_s: float = 20.0

    def check_size(self, height: int, width: int) -> None:
        """Raise ``ClipError`` 'too_large' if ``height x width`` pixels are over the limit."""
        if height * width > self.max_pixels:
            raise ClipError("too_large", f"{width}x{height} pixels, limit {self.max_pixels}")

    def check_scaled(self, height: int, width: int, size: tuple[int, int] | None) -> None:
        """Raise ``ClipError`` 'too_large' if a frame scaled to cover ``size`` is over the limit.

        A thin picture grows without bound when its short side has to cover the size. Four times the
        size itself is always allowed.
        """
        if size is not None and height * width > max(self.max_pixels, 4 * size[0] * size[1]):
            raise ClipError(
                "too_large",
                f"too thin: {width}x{height} pixels once it covers {size[1]}x{size[0]}",
            )


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
    """Turn whatever goes wrong in reading a file into ``ClipError``.

    Files come from anywhere, and the libraries that read them raise errors of many kinds for
    damaged ones. None of them may end a run, so every exception becomes a reason.

    Args:
      invalid: the reason to give for data that cannot be decoded.
    """
    try:
        yield
    # From the special to the general: PyAV's errors are Python's own at the same time.
    except VidlatentError:
        raise
    except av.error.ExitError as error:  # PyAV's time limit for opening and reading
        raise ClipError("slow", "reading was interrupted by the time limit") from error
    except FileNotFoundError as error:
        raise ClipError("missing", f"no file {error.filename or _short(error)}") from error
    except PermissionError as error:
        raise ClipError("permission", _short(error)) from error
    except MemoryError as error:
        raise ClipError("too_large", "memory ran out while it was read") from error
    except (av.error.DecoderNotFoundError, av.error.DemuxerNotFoundError) as error:
        raise ClipError("unsupported", _short(error)) from error
    except (av.error.FFmpegError, EOFError) as error:
        raise ClipError(invalid, _short(error)) from error
    except OSError as error:
        raise ClipError("unreadable", _short(error)) from error
    except Exception as error:
        raise ClipError(invalid, f"{type(error).__name__}: {_short(error)}"[:160]) from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
