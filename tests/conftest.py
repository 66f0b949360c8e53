"""Eight CPU devices, so that meshes are real in every test."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Subprocesses of the tests share compiled programs.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax")
)

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
