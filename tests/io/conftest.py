"""Eight fake CPU devices for the tests that restore onto other meshes; helpers importable."""

import contextlib
import pathlib
import sys

import jax

with contextlib.suppress(RuntimeError):  # The backend may be up already, with the same number.
    jax.config.update("jax_num_cpu_devices", 8)

sys.path.append(str(pathlib.Path(__file__).parent))  # For checkpoint_cases and kill_saver.
