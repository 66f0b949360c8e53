"""FP8 weights of other code: the values that torch and the formats' definitions give."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.weights.files import read_tensors
from vidlatent.weights.safetensors import load_safetensors

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
KINDS = {np.dtype(E4M3): "F8_E4M3", np.dtype(E5M2): "F8_E5M2", np.dtype(np.float32): "F32"}
KINDS |= {np.dtype(np.uint8): "U8", np.dtype(np.int8): "I8", np.dtype(np.float16): "F16"}


def write(path, tensors, kinds=None):
    """A safetensors file, laid out by hand: the library's NumPy side has no FP8."""
    table, blobs, at = {}, [], 0
    for name, array in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        kind = (kinds or {}).get(name) or KINDS[array.dtype]
        offsets = [at, at + len(blob)]
        table[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        blobs.append(blob)
        at += len(blob)
    head = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(blobs))
    return path


def draw(shape, dtype=E4M3, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def test_every_code_of_both_formats_has_its_value(tmp_path):
    codes = np.arange(256, dtype=np.uint8)
    path = write(tmp_path / "a.safetensors", {"a": codes.view(E4M3), "b": codes.view(E5M2)})
    found = load_safetensors(path)
    assert found["a"].dtype == found["b"].dtype == np.float32
    # E4M3 without infinities: 448 the largest, 2^-9 the smallest, 0x7f and 0xff not a number.
    a, b = found["a"], found["b"]
    assert (a[0x7E], a[0xFE], a[0x01], a[0x38]) == (448.0, -448.0, 2.0**-9, 1.0)
    assert np.flatnonzero(np.isnan(a)).tolist() == [0x7F, 0xFF]
    assert (b[0x7B], b[0x01], b[0x3C], b[0x7C]) == (57344.0, 2.0**-16, 1.0, np.inf)


def test_files_agree_with_torch(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    values = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    tensors = {
        "a.weight": values.to(torch.float8_e4m3fn),
        "b.weight": values.to(torch.float8_e5m2),
        "a.weight_scale": torch.tensor(0.25),
        "c.weight": values.to(torch.bfloat16),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        found = read_tensors(tmp_path / name)
        assert sorted(found) == ["a.weight", "b.weight", "c.weight"]
        np.testing.assert_array_equal(found["a.weight"], 0.25 * tensors["a.weight"].float().numpy())
        np.testing.assert_array_equal(found["b.weight"], tensors["b.weight"].float().numpy())


@pytest.mark.parametrize("scale", ["a.scale_weight", "a.weight_scale", "a.weight_scale_inv"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_scale_for_a_tensor_under_each_name(tmp_path, scale, shape):
    weight = draw((6, 4))
    tensors = {"a.weight": weight, scale: np.full(shape, 0.125, np.float32)}
    tensors |= {"a.scale_input": np.float32([3]), "scaled_fp8": np.zeros(0, E4M3)}
    tensors |= {"a.bias": np.ones(6, np.float32), "a.comfy_quant": np.zeros(9, np.uint8)}
    found = load_safetensors(write(tmp_path / "a.safetensors", tensors))
    assert sorted(found) == ["a.bias", "a.weight"]
    np.testing.assert_array_equal(found["a.weight"], weight.astype(np.float32) * 0.125)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_a_scale_for_each_output_channel(tmp_path, shape):
    weight, scale = draw((6, 4, 3)), np.linspace(0.5, 2, 6, dtype=np.float32)
    tensors = {"a.weight": weight, "a.weight_scale": scale.reshape(shape)}
    found = load_safetensors(write(tmp_path / "a.safetensors", tensors))
    np.testing.assert_array_equal(
        found["a.weight"], weight.astype(np.float32) * scale[:, None, None]
    )


def test_a_scale_for_each_block(tmp_path):
    weight, scale = draw((200, 300)), np.float32([[1, 2, 3], [4, 5, 6]])
    tensors = {"a.weight": weight, "a.weight_scale_inv": scale}
    found = load_safetensors(write(tmp_path / "a.safetensors", tensors))["a.weight"]
    for row, column in ((0, 0), (127, 127), (128, 127), (127, 128), (199, 299)):
        factor = scale[row // 128, column // 128]
        assert found[row, column] == np.float32(weight[row, column]) * factor


def test_what_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    eight = np.ones((4, 4), np.int8)
    with pytest.raises(VidlatentError, match=r"a.weight is int8 with the scale a.weight_scale"):
        load_safetensors(write(path, {"a.weight": eight, "a.weight_scale": np.float32([1])}))
    with pytest.raises(VidlatentError, match="a.weight is of type F8_E8M0, which is not read"):
        load_safetensors(write(path, {"a.weight": eight}, {"a.weight": "F8_E8M0"}))
    with pytest.raises(VidlatentError, match=r"a.weight_scale of shape \[3\] does not fit"):
        load_safetensors(write(path, {"a.weight": draw((4, 4)), "a.weight_scale": np.ones(3, "f")}))
    with pytest.raises(VidlatentError, match="a.weight_scale is not finite"):
        scale = np.float32(np.nan)
        load_safetensors(write(path, {"a.weight": draw((4, 4)), "a.weight_scale": scale}))
