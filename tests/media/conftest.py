"""Fixtures of this folder."""

from tests.helpers.clips import tools  # noqa: F401
