"""Codecs whose programs compile in a fraction of the time; they run for milliseconds."""

import functools

import jax
import pytest

from tests.helpers.tiny_tokenizers import QUICK
from vidlatent.codec import programs as steps


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(steps, "_compiled", functools.partial(jax.jit, compiler_options=QUICK))
