"""Where compiled programs are kept."""

import jax
import pytest

from vidlatent.parallel.compilation import keep_compiled


@pytest.mark.parametrize("named", ["gs://bucket/jax-cache", "/somewhere/else"])
def test_the_folder_is_taken_as_it_was_given(monkeypatch, named):
    told = {}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", named)
    monkeypatch.setattr(jax.config, "update", lambda key, value: told.update({key: value}))
    keep_compiled()
    assert told == {"jax_compilation_cache_dir": named}
