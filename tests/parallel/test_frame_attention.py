"""Attention within frames: its loop does not run over a sharded axis."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vidlatent.kernels import attention as kernels
from vidlatent.models.tokenizers.ivvae.frame_attention import frame_attention
from vidlatent.parallel.mesh import make_mesh
from vidlatent.parallel.sharding import ACTIVATION_AXES
from vidlatent.plan.hlo import parse

FRAMES, POSITIONS, WIDTH = 8, 256, 4
SIZES = {"data": 2, "fsdp": 2, "context": 2, "tensor": 1}


def with_gradients(attend):
    def run(q, k, v):
        out, back = jax.vjp(attend, q, k, v)
        return out, *back(out)

    return run


def framewise(q, k, v):
    return frame_attention(q, k, v, block=64)


def headed(q, k, v):
    return kernels.attention(*(x[:, :, None] for x in (q, k, v)), implementation="xla")[:, :, 0]


@pytest.mark.parametrize("attend", [framewise, headed])
def test_devices_attend_in_their_own_frames(attend, monkeypatch):
    monkeypatch.setattr("vidlatent.models.tokenizers.ivvae.frame_attention._FEWEST", 16)
    monkeypatch.setattr(kernels, "_SCORES", FRAMES * 64 * POSITIONS)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((FRAMES, POSITIONS, WIDTH)).astype(np.float32) for _ in range(3)]
    want = jax.jit(with_gradients(attend))(*inputs)
    mesh = make_mesh(SIZES)
    where = NamedSharding(mesh, P(ACTIVATION_AXES["batch"], "context"))
    with jax.set_mesh(mesh):
        run = jax.jit(with_gradients(attend), out_shardings=where)
        placed = [jax.device_put(x, where) for x in inputs]
        compiled = run.lower(*placed).compile()
        for ours, theirs in zip(compiled(*placed), want, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
    # Only the two devices that share a frame communicate, and exchange at most that frame.
    found = parse(compiled.as_text()).collectives()
    assert {each.group for each in found} == {2}
    own = 4 * FRAMES // 4 * POSITIONS * WIDTH
    assert sum(each.bytes for each in found) <= 8 * own
