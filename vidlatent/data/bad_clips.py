"""The clips that were left out: counts by reason, a list, and how many are tolerated."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from vidlatent.data.buckets import Bucket
from vidlatent.data.index import BadClip, Clip
from vidlatent.errors import VidlatentError
from vidlatent.media.errors import REASONS, ClipError, Limits
from vidlatent.media.transforms import place

__all__ = ["BadClips", "find_thin"]

_LISTED = 20  # clips named in a message


def find_thin(clip: Clip, buckets: Sequence[Bucket], limits: Limits) -> str:
    """Why a clip is too thin to be scaled until it covers a bucket; '' if it is not.

    Said before anything is drawn, since each draw of such a clip would fail.
    """
    for bucket in buckets:
        size = (bucket.height, bucket.width)
        spot = place(*clip.size, size)
        try:
            limits.check_scaled(spot.height, spot.width, size)
        except ClipError as error:
            return error.detail
    return ""


class BadClips:
    """Clips found unusable before the run (``indexed``) and draws that failed during it.

    The budget limits the share of failed draws among the last ``window`` ones. Clips that the index
    set aside are never drawn, so they are listed but do not count against it.
    """

    def __init__(
        self, where: str, indexed: Sequence[BadClip] = (), budget: float = 1.0, window: int = 1000
    ):
        self.where, self.budget, self.window = where, budget, window
        self._clips = {bad.path: bad for bad in indexed}
        self._times: Counter[str] = Counter()
        self._recent: deque[tuple[int, int]] = deque()
        self._recent_draws = self._recent_bad = 0
        self.draws = 0
        self.failed = 0

    def record(self, draws: int, skipped: Iterable[tuple[str, str, str]]) -> list[BadClip]:
        """Count a batch of ``draws`` windows and the (path, reason, detail) met in reading it.

        Returns the clips that are bad for the first time.
        """
        skipped, fresh = list(skipped), []
        for path, reason, detail in skipped:
            if path not in self._clips:
                self._clips[path] = BadClip(path, reason, detail)
                fresh.append(self._clips[path])
            self._times[path] += 1
        self.draws += draws
        self.failed += len(skipped)
        self._recent.append((draws, len(skipped)))
        self._recent_draws += draws
        self._recent_bad += len(skipped)
        # Old batches leave only if those after them still make up a whole window.
        while self._recent and self._recent_draws - self._recent[0][0] >= self.window:
            old_draws, old_bad = self._recent.popleft()
            self._recent_draws -= old_draws
            self._recent_bad -= old_bad
        return fresh

    @property
    def clips(self) -> list[BadClip]:
        """Every unusable clip once, by name."""
        return [self._clips[path] for path in sorted(self._clips)]

    @property
    def counts(self) -> dict[str, int]:
        """Number of unusable clips for each reason met."""
        counted = Counter(bad.reason for bad in self._clips.values())
        return {reason: counted[reason] for reason in REASONS if counted[reason]}

    def table(self) -> str:
        """Reasons with counts and the clips, as plain text; '' when every clip was sound."""
        if not self._clips:
            return ""
        lines = [f"{len(self._clips)} clips of {self.where} were left out:"]
        for reason, count in self.counts.items():
            lines.append(f"  {reason:<11}{count:>6}  {REASONS[reason]}")
        listed = self.clips
        for bad in listed[:_LISTED]:
            times = self._times[bad.path]
            again = f" ({times} draws)" if times else ""
            lines.append(f"    {bad.path}: {bad.reason}: {bad.detail}{again}")
        if len(listed) > _LISTED:
            lines.append(f"    ... and {len(listed) - _LISTED} more")
        return "\n".join(lines)

    def check(self) -> None:
        """Raise once more than ``budget * window`` of the last ``window`` draws have failed."""
        # A share of the whole window, even if fewer draws were made so far: else one bad clip at
        # the start of a run would be a large share and stop it.
        if self._recent_bad > self.budget * self.window:
            raise VidlatentError(
                f"{self._recent_bad} of the last {self._recent_draws} draws from {self.where} "
                f"could not be decoded, more than data.bad_clip_budget = {self.budget:g} of "
                f"{self.window} allows: remove or repair these clips, or raise the budget.\n"
                + self.table()
            )

    def none_left(self, what: str) -> VidlatentError:
        """The error for a data set in which nothing is usable."""
        found = self.table() or "it holds no file that could be a video or picture."
        return VidlatentError(f"{self.where} has no usable clip{what}: {found}")
