"""Samplers step by step, without a compiler."""

import numpy as np
import pytest

from vidlatent.diffusion.samplers import StepWeights, apply_step


def run_loop(plan, denoise, x, noise=None):
    """All states of a plan, ``[N + 1, ...]``, as NumPy in the dtype of ``x``."""
    states, last, past = [x], x, (np.zeros_like(x),) * plan.history
    for i in range(plan.nfe):
        row = StepWeights(*(None if w is None else w[i] for w in plan.rows))
        drawn = noise[i] if plan.random else None

        def evaluate(x, t, state, index=i):
            return denoise(x, t, index), state

        x, last, past, _ = apply_step(row, evaluate, x, last, past, None, drawn)
        x = np.asarray(x)
        states.append(x)
    return np.stack(states)


@pytest.fixture(scope="session")
def loop():
    return run_loop
