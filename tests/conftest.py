"""Eight CPU devices, so that meshes are real in every test, and TPUs to compile for.

Three quarters of the tests' time went into XLA. Their programs are small and run once or twice, so
they are compiled with as little optimisation as XLA:CPU offers, and all are kept on disk, where the
other worker, subprocesses and the next run find them.
"""

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Subprocesses of the tests inherit all of these.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax")
)
# By default JAX keeps only what took a second to compile.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Without fusion emitters, and in one piece, XLA:CPU generates code in a third of the time; it runs
# more slowly. What a caller sets comes last and prevails.
_QUICK_XLA = (
    "--xla_backend_optimization_level=0",
    # Newer versions always use them, and end the process at a flag that they do not know.
    *(["--xla_cpu_use_fusion_emitters=false"] if version("jax") < "0.11" else []),
    "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ["XLA_FLAGS"] = " ".join((*_QUICK_XLA, os.environ.get("XLA_FLAGS", ""))).strip()

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


@pytest.hookimpl(tryfirst=True)  # before ``-m`` chooses by the marks
def pytest_collection_modifyitems(items):
    """Tests that ask for TPUs to compile for need libtpu, and are skipped where it is missing."""
    missing = pytest.mark.skip(
        reason="compiling for a TPU needs the package libtpu (make install-plan)"
    )
    for item in items:
        if "topology_devices" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.libtpu)
        if item.get_closest_marker("libtpu") and not find_spec("libtpu"):
            item.add_marker(missing)


@pytest.fixture(scope="module")
def one_device():
    """Training, evaluation and sampling use one of the devices: the programs compile faster."""
    from vidlatent.evaluate import generator as generate_eval
    from vidlatent.parallel.mesh import make_mesh
    from vidlatent.sample import generator as generate
    from vidlatent.train import loop

    one = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "make_mesh", lambda sizes: make_mesh(sizes, one))
        for module in (loop, generate_eval):
            patch.setattr(module, "mesh_for_batches", lambda sizes, _: make_mesh(sizes, one))
        yield


@pytest.fixture(scope="module")
def topology_devices():
    """``devices('v5e:1x1')``, which are not here; caches are off: such programs are not read back.

    The process environment is as before in the end.
    """
    from vidlatent.plan.hardware import parse_topology
    from vidlatent.plan.topology import get_devices

    environment = dict(os.environ)
    cached = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield lambda topology: get_devices(parse_topology(topology))
    jax.config.update("jax_enable_compilation_cache", cached)
    compilation_cache.reset_cache()
    os.environ.clear()
    os.environ.update(environment)
