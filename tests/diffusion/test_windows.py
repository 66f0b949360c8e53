"""Windows reach every step but the last, are never empty, and depend on the iteration alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.diffusion.flow import Flow
from vidlatent.diffusion.sde import cps, flow_sde
from vidlatent.diffusion.windows import ORDERS, find_last_random, make_windows
from vidlatent.errors import VidlatentError


def visit(windows, iterations, seed=0):
    """(start, length) at each iteration."""
    at = jax.vmap(lambda i: windows.at(i, jax.random.key(seed)))
    return list(zip(*(x.tolist() for x in at(jnp.arange(iterations))), strict=True))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_step_but_the_last_is_reached(order, stride):
    """J73: positions for 200 iterations; never the last step, never empty, always full."""
    windows = make_windows(8, 2, stay=5, stride=stride, order=order, threshold=2, decay=0.3)
    seen = visit(windows, 200)
    assert {length for _, length in seen} == {2}
    assert {start + k for start, length in seen for k in range(length)} == set(range(7))


def test_progressive_windows_roll_back():
    seen = visit(make_windows(8, 2, stay=25), 200)
    assert [start for start, _ in seen] == [i // 25 % 6 for i in range(200)]
    # A stride that does not end with the last position is cut to it.
    assert make_windows(8, 3, stride=3).starts == (0, 3, 4)


def test_decaying_windows_stay_shorter():
    windows = make_windows(12, 2, stay=10, order="decaying", decay=0.2, threshold=3)
    expected = [int(np.ceil(10 * np.exp(-0.2 * max(0, c - 3)))) for c in range(10)]
    assert list(windows.stays) == expected
    seen = visit(windows, 2 * sum(expected))
    assert [start for start, _ in seen[sum(expected) :]] == [
        start for start, _ in seen[: sum(expected)]
    ]


def test_random_windows_depend_on_iteration_and_key():
    windows = make_windows(8, 2, stay=4, order="random")
    seen = visit(windows, 400)
    assert seen == visit(windows, 400) and seen != visit(windows, 400, seed=1)
    # A position lasts its stay.
    assert all(len(set(seen[i : i + 4])) == 1 for i in range(0, 400, 4))
    counts = np.bincount([start for start, _ in seen[::4]], minlength=6)
    assert (counts > 5).all()


def test_windows_are_kept_off_small_deviations():
    grid = Flow(shift=1.0).grid(10)
    for steps in (flow_sde(grid, "velocity", 0.5), cps(grid, "velocity", 0.5)):
        least = float(steps.std[5])
        last = find_last_random(steps.std, least)
        windows = make_windows(10, 2, last=last)
        reached = {start + k for start in windows.starts for k in range(2)}
        assert reached == set(range(last + 1)) and (steps.std[sorted(reached)] >= least).all()
    assert find_last_random(np.asarray([0.5, 0.4, 0.3]), 0.0) == 1  # never the sampler's last
    assert find_last_random(np.asarray([0.5, 0.4, 0.3]), 0.6) == -1


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(VidlatentError, match="size=4: a window lies within steps 0 to 2"):
        make_windows(4, 4)
    with pytest.raises(VidlatentError, match="skips steps between windows"):
        make_windows(8, 2, stride=3)
    with pytest.raises(VidlatentError, match="at most 0"):
        make_windows(8, 1, last=-1)
