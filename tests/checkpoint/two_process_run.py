"""Helper process, one of two: save sharded over both, restore resharded, notice damage together."""

import pathlib
import sys

import jax

if __name__ == "__main__":
    address, index, path = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(address, 2, index)

    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import multihost_utils
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from tests.helpers.checkpoint_cases import SPEC, open_run

    mesh = Mesh(np.array(jax.devices()).reshape(4), ("x",))
    rows, columns = (NamedSharding(mesh, PartitionSpec(*s)) for s in (("x",), (None, "x")))
    whole = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    weights = jax.make_array_from_callback((8, 16), rows, lambda index: whole[index])
    run = open_run(path, every=2, verify="full")
    state = {
        "params": {"w": weights},
        "step": jax.device_put(jnp.int32(2), NamedSharding(mesh, PartitionSpec())),
    }
    for step in (2, 4):
        saved = run.save(step, state, iterator={"step": step}, spec=SPEC, config_hash="")
        assert saved
    run.wait()

    def restore():
        wanted = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=columns)
        scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=state["step"].sharding)
        restored = run.restore({"params": {"w": wanted}, "step": scalar})
        for shard in restored.state["params"]["w"].addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), whole[shard.index])
        return restored.step

    print("restored", restore(), flush=True)
    multihost_utils.sync_global_devices("before the damage")
    if index == 0:
        (path / "4" / "digests" / "process_1-of-2.json").write_text("{}")
    multihost_utils.sync_global_devices("after the damage")
    print("restored", restore(), flush=True)
    assert run.save(4, state, iterator={}, spec=None, config_hash="")
    run.wait()
    print("restored", restore(), flush=True)
    run.close()
    jax.distributed.shutdown()
