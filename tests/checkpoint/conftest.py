"""Eight fake CPU devices for the tests that restore onto other meshes."""

import contextlib

import jax

with contextlib.suppress(RuntimeError):  # The backend may be up already, with the same number.
    jax.config.update("jax_num_cpu_devices", 8)
