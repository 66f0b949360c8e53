"""A codec on eight devices: neighbours exchange rows, and nothing is gathered."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_tokenizers import FSAE, PROMAG
from tests.helpers.tiny_tokenizers import MODELS as TOKENIZERS
from vidlatent.codec import programs as compiled_steps
from vidlatent.codec.codec import Codec
from vidlatent.codec.options import CodecOptions
from vidlatent.codec.programs import CodecPrograms
from vidlatent.models.load import abstract_params
from vidlatent.models.tokenizers import build
from vidlatent.parallel.mesh import AXES, make_mesh, mesh_of_rows
from vidlatent.parallel.sharding import constrain, shardings, uneven_rows

QUICK = {"xla_backend_optimization_level": "0"}
MODELS = {"fsae": FSAE, "promag": PROMAG}
# Sizes of the sums over a frame: head_dim x (head_dim + 1) products per head, with twice the heads
# because of the mixed projections, and a mean square per frame and group of a norm.
SUMS = {"fsae": 2 * (8 // 4) * 4 * 5, "promag": 2 * 8}
FOUND = re.compile(
    r"= (\([^=]*?\)|\S+) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\("
)


def draw(model):
    rng = np.random.default_rng(0)
    shapes = abstract_params(model)

    def values(leaf):
        fan = max(1, np.prod(leaf.shape[:-1]))
        return (rng.normal(size=leaf.shape) / np.sqrt(fan)).astype(leaf.dtype)

    return jax.tree.map(values, shapes)


def collectives(text):
    """For each kind of collective in a compiled program, the size of its largest result."""
    largest = {}
    for result, kind in FOUND.findall(text):
        shapes = re.findall(r"\[([\d,]*)\]", result)
        values = max(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)
        largest[kind] = max(values, largest.get(kind, 0))
    return largest


def lowered(kind, model, mesh, rows, columns):
    """The program that codes the second piece of a stream, lowered for ``mesh``."""
    programs = CodecPrograms(model.make_frame_coder())
    spec = model.latent_spec
    params = abstract_params(model)
    with jax.set_mesh(mesh), uneven_rows():
        params = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            params,
            shardings(params, mesh),
        )
        if kind == "decode":
            shape = (1, 1, rows, columns, spec.channels)
            run, x, rest = programs._decode, jax.ShapeDtypeStruct(shape, jnp.float32), ()
            first = (params, x, None, None)
        else:
            sides = (rows * spec.h, columns * spec.w)
            run, rest = programs._encode, (None, 0)
            x = jax.ShapeDtypeStruct((1, spec.t, *sides, 3), jnp.uint8)
            first = (params, jax.ShapeDtypeStruct((1, 1, *sides, 3), jnp.uint8), None, *rest)
        _, cache = jax.eval_shape(run, *first)
        return run.lower(params, x, *((None, cache) if kind == "decode" else (cache, *rest)))


@pytest.fixture(scope="module")
def mesh():
    return mesh_of_rows(make_mesh(dict(zip(AXES, (1, 2, 2, 2), strict=True))))


def test_every_device_gets_rows(mesh):
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "context": 8, "tensor": 1}
    assert mesh_of_rows(mesh) is mesh


@pytest.mark.parametrize(
    ("kind", "name", "rows"),
    [("decode", "fsae", 11), ("decode", "promag", 8), ("encode", "fsae", 8)],
)
def test_rows_are_exchanged_and_not_gathered(kind, name, rows, mesh):
    """Also where they do not divide. Sums over the whole frame are all that everyone learns.

    FSAE's linear attention sums its products of keys and values over the frame, ProMAG's norms
    their squares; both are small however large the frame is.
    """
    model = build(MODELS[name])
    program = lowered(kind, model, mesh, rows, 3).compile(compiler_options=QUICK)
    found = collectives(program.as_text())
    assert found.keys() == {"collective-permute", "all-reduce"}
    assert found["all-reduce"] <= SUMS[name]
    # Each device receives only a few rows of the widest map.
    spec = model.latent_spec
    assert found["collective-permute"] < 8 * spec.t * 4 * 3 * spec.w * 8


OTHERS = ("dcae", "fsae_standard", "fsae_lite", "ivvae", "promag_grown", "reducio")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_eight_devices_equal_one(name, mesh, monkeypatch):
    """A stream in three pieces, with a height that is not a multiple of eight at any level."""
    quick = functools.partial(jax.jit, compiler_options=QUICK)
    monkeypatch.setattr(compiled_steps, "_compiled", quick)
    model = build(TOKENIZERS[name])
    params = draw(model)
    coding = CodecOptions.of(groups=1, space="whole")
    one, eight = Codec(model, params, coding), Codec(model, params, coding, mesh)
    video = np.random.default_rng(1).integers(0, 256, (9, 41, 10, 3)).astype(np.uint8)
    coded, other = one.encode(video), eight.encode(video)
    np.testing.assert_allclose(other.latent, coded.latent, atol=1e-5)
    apart = one.decode(coded).astype(int) - eight.decode(coded)
    assert np.abs(apart).max() <= 1 and (apart != 0).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsae", "promag", "ivvae"])
def test_a_latent_row_for_each_device(name):
    """Fewer rows than a window has, on a mesh that shards batch and kernels too."""
    model = build(TOKENIZERS[name])
    params = draw(model)
    latent = np.random.default_rng(1).normal(size=(2, 2, 2, 3, 4)).astype(np.float32)

    def decode(sizes):
        def run(params, latent):
            latent = constrain(latent, ("batch", "time", "height", "width", "channel"))
            return model.apply({"params": params}, latent, method="decode")[0]

        mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), jax.devices()[: np.prod(sizes)])
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, shardings(params, mesh))
            return np.asarray(jax.jit(run, compiler_options=QUICK)(placed, latent))

    np.testing.assert_allclose(decode((1, 2, 2, 1)), decode((1, 1, 1, 1)), atol=1e-5)


def tpu_mesh():
    """Eight v5e chips, two by four; only their compiler is needed."""
    from jax.experimental import topologies

    return mesh_of_rows(
        make_mesh(
            dict(zip(AXES, (1, 1, 8, 1), strict=True)),
            topologies.get_topology_desc("v5e:2x4", platform="tpu").devices,
        )
    )


@pytest.mark.slow
@pytest.mark.libtpu
@pytest.mark.parametrize(("name", "rows"), [("fsae", 16), ("fsae", 11), ("promag", 16)])
def test_a_tpu_exchanges_rows_and_gathers_nothing(name, rows, monkeypatch):
    """The program for a TPU, compiled ahead of time."""
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        monkeypatch.setenv(key, value)
    model = build(MODELS[name], jnp.bfloat16)
    program = lowered("decode", model, tpu_mesh(), rows, 16).compile()
    found = collectives(program.as_text())
    print(name, rows, found, program.memory_analysis().temp_size_in_bytes)
    assert "collective-permute" in found
    assert not found.keys() & {"all-gather", "all-to-all"}
    assert found.get("all-reduce", 0) <= SUMS[name]
