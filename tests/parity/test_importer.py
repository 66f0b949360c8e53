"""The importer engine on made-up tables: everything wrong is named at once."""

import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.weights.importer import export_names, export_params, import_params
from vidlatent.weights.safetensors import load_safetensors, save_safetensors

TABLE = (
    (r"net[.](?P<i>\d+)[.]lin[.]weight", "layer_{i}/kernel", "dense"),
    (r"net[.](?P<i>\d+)[.]mix[.]weight", "layer_{i}/mix", "grouped2d"),
    (r"head[.]weight", "head/kernel", "pointwise3d"),
)


def _params():
    rng = np.random.default_rng(0)
    return {
        "layer_0": {"kernel": rng.normal(size=(3, 5)), "mix": rng.normal(size=(4, 2, 3))},
        "layer_11": {"kernel": rng.normal(size=(2, 2))},
        "head": {"kernel": rng.normal(size=(5, 2))},
    }


def test_round_trip_and_names():
    params = _params()
    tensors = export_params(params, TABLE)
    assert set(tensors) == {
        "net.0.lin.weight",
        "net.0.mix.weight",
        "net.11.lin.weight",
        "head.weight",
    }
    assert tensors["net.0.mix.weight"].shape == (12, 2, 1, 1)
    # Output channel o of group g reads the group's inputs by row g * O + o.
    np.testing.assert_array_equal(
        tensors["net.0.mix.weight"][1 * 3 + 2, :, 0, 0], params["layer_0"]["mix"][1, :, 2]
    )
    again = import_params(tensors, TABLE, params)
    np.testing.assert_array_equal(again["layer_0"]["mix"], params["layer_0"]["mix"])
    assert export_names(params, TABLE) == {name: x.shape for name, x in tensors.items()}


def test_all_problems_in_one_message():
    tensors = export_params(_params(), TABLE)
    tensors["net.0.lin.weight"] = np.zeros((5, 4))
    tensors["head.weight"] = np.zeros((2, 5))
    tensors["stranger"] = tensors.pop("net.11.lin.weight")
    with pytest.raises(VidlatentError) as caught:
        import_params(tensors, TABLE, _params())
    message = str(caught.value)
    for part in (
        "2 misshaped",
        "net.0.lin.weight (5, 4) for layer_0/kernel (3, 5)",
        "1 missing: layer_11/kernel",
        "1 unused: stranger",
    ):
        assert part in message
    del tensors["net.0.lin.weight"], tensors["head.weight"]
    loaded = import_params(tensors, TABLE, _params(), partial=True)
    assert set(loaded) == {"layer_0"} and set(loaded["layer_0"]) == {"mix"}


def test_export_names_parameters_without_a_row():
    with pytest.raises(VidlatentError, match="1 uncovered: head/bias"):
        export_params({"head": {"bias": np.zeros(2)}}, TABLE)


def test_files_keep_bfloat16_and_refuse_damage(tmp_path):
    import ml_dtypes

    path = tmp_path / "w.safetensors"
    saved = {"a": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3).T}
    save_safetensors(saved, path, {"from": "test"})
    loaded = load_safetensors(path)["a"]
    assert loaded.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(loaded, saved["a"])
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(VidlatentError, match="not a sound safetensors file"):
        load_safetensors(path)
    with pytest.raises(VidlatentError, match="no weights file"):
        load_safetensors(tmp_path / "absent")
