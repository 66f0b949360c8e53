"""Codecs whose programs compile in a fraction of the time; they run for milliseconds."""

import functools
import sys
from pathlib import Path

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_tokenizers import QUICK  # noqa: E402

from vidlatent.infer import steps  # noqa: E402


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(steps, "_compiled", functools.partial(jax.jit, compiler_options=QUICK))
