"""Which steps of a sampler are random and trained, and when: MixGRPO's window (Li et al. 2025).

Steps ``start .. start + length - 1`` are random, all others deterministic. The window stays for
some iterations and then moves on. The published class never trains the last two steps, shrinks
its window at the end and leaves it empty for one position; here by default a window keeps its
length, reaches every step but the last, and is never empty.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError

__all__ = ["ENDS", "ORDERS", "Windows", "find_last_random", "make_windows"]

ORDERS = ("progressive", "random", "decaying")
ENDS = ("every", "published")


@dataclasses.dataclass(frozen=True)
class Windows:
    """The positions of a window, in the order in which they are visited, round and round.

    Attributes:
      starts, lengths: of each position.
      stays: iterations that each position lasts.
      shuffled: each next position is drawn at random instead, for ``stays[0]`` iterations.
      size: steps of a full window.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    stays: tuple[int, ...]
    shuffled: bool
    size: int

    def at(self, iteration: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Start and length (int32 scalars) at an iteration, which may be traced.

        A function of its arguments alone, so that a resumed run has the same window.

        Args:
          key: of the draws, the same in all iterations.
        """
        if self.shuffled:
            visit = jax.random.fold_in(key, iteration // self.stays[0])
            place = jax.random.randint(visit, (), 0, len(self.starts))
        else:
            ends = np.cumsum(self.stays)
            place = jnp.searchsorted(jnp.asarray(ends), iteration % ends[-1], side="right")
        return jnp.asarray(self.starts)[place], jnp.asarray(self.lengths)[place]


def make_windows(
    steps: int,
    size: int,
    *,
    stay: int = 25,
    stride: int = 1,
    order: str = "progressive",
    end: str = "every",
    last: int | None = None,
    decay: float = 0.1,
    threshold: int = 13,
) -> Windows:
    """The positions of ``config.rl.window``.

    Args:
      steps: of the sampler, N.
      size: steps of a window.
      stay: iterations at a position.
      stride: steps from one position to the next.
      order: ``'progressive'`` from the noisiest steps on; ``'random'``; ``'decaying'``, which stays
        ``ceil(stay exp(-decay max(0, start - threshold)))`` iterations.
      end: ``'every'``: the last position ends with ``last``; ``'published'``: positions begin at
        0, stride, ... up to N - 2, and hold what lies before step N - 2, which for the last is
        nothing.
      last: the last step that may be random; None: the one before the sampler's last, which has no
        noise to explore with.
      decay, threshold: of ``'decaying'``.

    Raises:
      VidlatentError: the window does not fit.
    """
    last = steps - 2 if last is None else min(last, steps - 2)
    if end == "published":
        most = steps - 2
        starts = tuple(range(0, most + 1, stride))
        lengths = tuple(min(size, most - start) for start in starts)
    else:
        final = last + 1 - size
        if final < 0:
            raise VidlatentError(
                f"config.rl.window.size={size}: a window lies within steps 0 to {last}, so it has "
                f"at most {max(last + 1, 0)} (config.sampler.steps={steps}, config.rl.least_std)."
            )
        # With a stride the last position may lie nearer to the one before: every step is reached.
        starts = tuple(sorted({*range(0, final + 1, stride), final}))
        lengths = (size,) * len(starts)
        if stride > size:
            raise VidlatentError(
                f"config.rl.window.stride={stride} skips steps between windows of {size}: it is at "
                "most config.rl.window.size."
            )
    if order == "decaying":
        stays = [math.ceil(stay * math.exp(-decay * max(0, s - threshold))) for s in starts]
    else:
        stays = [stay] * len(starts)
    if size < 1 or not any(lengths):
        raise VidlatentError(f"config.rl.window.size={size} leaves nothing to train.")
    return Windows(starts, lengths, tuple(stays), order == "random", size)


def find_last_random(std: np.ndarray, least: float) -> int:
    """The last step ``<= N - 2`` up to which all deviations ``[N]`` are at least ``least``.

    Small deviations make a likelihood that is all rounding: the window can be kept off them.
    -1 if the first step's is smaller already.
    """
    enough = np.asarray(std)[:-1] >= least
    return int(np.argmin(enough)) - 1 if not enough.all() else len(enough) - 1
