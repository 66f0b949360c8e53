"""Files in and out: namings, folders, torch files, stored cases, starts from other forms."""

import json
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from vidlatent import config as configs
from vidlatent.codec.codec import Codec
from vidlatent.convert.run import convert
from vidlatent.errors import VidlatentError
from vidlatent.models.load import abstract_params, model_of
from vidlatent.models.tokenizers.fsvideo.names import fields_from_diffusers
from vidlatent.train.init_from import load_initial_params
from vidlatent.weights.files import choose_table, load_params, read_tensors
from vidlatent.weights.importer import export_names, export_params, import_params
from vidlatent.weights.safetensors import load_safetensors, save_safetensors
from vidlatent.weights.tables import TABLES

OPTIONS = {
    "from": "",
    "to": "",
    "from_table": "auto",
    "to_table": "auto",
    "start": "",
    "verify": "",
    "step": -1,
}


def config_for(name, case):
    """A config whose model is the case's."""
    config = configs.load(f"configs/{name}.py")
    with config.unlocked():
        config.model.update(fields_from_diffusers(case.case["config"]))
        if name == "fsae":
            config.model.temporal_down = tuple(case.case["temporal_down_after_stages"])
    return config


def run(config, workdir="nowhere", **options):
    return convert(config, workdir, **{**OPTIONS, **options})


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_generator_is_refused_in_one_sentence():
    with pytest.raises(VidlatentError, match="fsvideo_dit is a generator: .*train.init_from=FILE"):
        run(configs.load("configs/fsvideo_dit.py"))


@pytest.mark.parametrize("name", ["dcae", "fsae"])
def test_file_to_workdir_to_file_is_bitwise(name, request, tmp_path):
    case = request.getfixturevalue(f"{name}_case")
    config = config_for(name, case)
    first, run_dir, last = tmp_path / "a.safetensors", tmp_path / "run", tmp_path / "b.safetensors"
    save_safetensors(case.tensors, first)
    assert run(config, **{"from": str(first), "to": str(run_dir)}) == 0
    same(Codec.from_workdir(run_dir).params, case.params)
    assert run(configs.read(run_dir), run_dir, to=str(last)) == 0
    written = load_safetensors(last)
    assert set(written) == set(case.tensors)
    assert all(written[k].tobytes() == v.tobytes() for k, v in case.tensors.items())
    with pytest.raises(VidlatentError, match="holds a run already"):
        run(config, **{"from": str(first), "to": str(run_dir)})


def test_original_names_and_back(dcae_case, tmp_path):
    tensors = export_params(dcae_case.params, TABLES.get("dcae_original"))
    qkv = tensors["encoder.stages.2.op_list.0.context_module.main.qkv.conv.weight"]
    assert qkv.shape == (96, 32, 1, 1)
    name = "encoder.down_blocks.2.0.attn.to_k.weight"
    np.testing.assert_array_equal(qkv[32:64, :, 0, 0], dcae_case.tensors[name])
    assert "decoder.stages.0.op_list.0.main.conv.conv.weight" in tensors
    assert "encoder.stages.0.op_list.1.main.conv.weight" in tensors
    path = tmp_path / "original.safetensors"
    save_safetensors(tensors, path)
    # The naming is recognised, and a conversion to Diffusers' names is bitwise.
    out = tmp_path / "diffusers.safetensors"
    run(config_for("dcae", dcae_case), **{"from": str(path), "to": str(out)})
    written = load_safetensors(out)
    assert all(written[k].tobytes() == v.tobytes() for k, v in dcae_case.tensors.items())


def test_released_image_models_in_both_namings():
    """Names of a batch-norm decoder, an empty outer stage and shuffling operations."""
    config = configs.load("configs/dcae.py:paper,model=f64c128-in-1.0")
    shapes = abstract_params(model_of(config))
    names = export_names(shapes, TABLES.get("dcae"))
    assert names["encoder.conv_in.conv.weight"] == (64, 3, 3, 3)
    assert names["decoder.conv_out.conv.weight"] == (12, 256, 3, 3)
    assert names["decoder.up_blocks.1.1.norm.running_var"] == (256,)
    assert "decoder.up_blocks.3.1.attn.to_qkv_multiscale.0.proj_in.weight" not in names
    original = export_names(shapes, TABLES.get("dcae_original_shuffle"))
    assert original["encoder.project_in.conv.conv.bias"] == (64,)
    assert original["encoder.stages.1.op_list.4.main.conv.conv.weight"] == (128, 256, 3, 3)
    assert original["decoder.stages.2.op_list.3.main.conv2.norm.running_mean"] == (512,)
    assert sum(np.prod(shape) for shape in original.values()) == sum(map(np.prod, names.values()))


def test_counters_of_batch_norms_are_passed_over():
    table = TABLES.get("dcae")
    tensors = {
        "decoder.up_blocks.0.1.norm.running_mean": np.zeros(3),
        "decoder.up_blocks.0.1.norm.num_batches_tracked": np.int64(7),
    }
    params = import_params(tensors, table, None)
    assert list(params["decoder"]["up_blocks_0_1"]["norm"]) == ["mean"]
    assert list(export_params(params, table)) == ["decoder.up_blocks.0.1.norm.running_mean"]


def test_a_concatenated_tensor_needs_all_its_parts(dcae_case):
    table = TABLES.get("dcae_original")
    tensors = export_params(dcae_case.params, table)
    name = "decoder.stages.3.op_list.0.context_module.main.qkv.conv.weight"
    tensors[name] = tensors[name][1:]
    with pytest.raises(VidlatentError, match="misshaped.*qkv"):
        import_params(tensors, table, dcae_case.params)
    params = jax.tree.map(lambda x: x, dcae_case.params)
    del params["decoder"]["up_blocks_3_0"]["attn"]["to_v"]
    with pytest.raises(VidlatentError, match="2 uncovered"):
        export_params(params, table)


@pytest.mark.parametrize(
    ("name", "folder"), [("dcae", "dcae"), ("dcae", "dcae_in"), ("fsae", "fsae3d")]
)
def test_verify_runs_a_stored_case(name, folder, reference, tmp_path):
    config = configs.load(f"configs/{name}.py")
    case = reference(folder)
    assert run(config, verify=str(case)) == 0
    wrong = tmp_path / "wrong.safetensors"
    tensors = load_safetensors(case / "weights.safetensors")
    save_safetensors({k: v + np.float32(0.01) for k, v in tensors.items()}, wrong)
    with pytest.raises(VidlatentError, match="does not reproduce the case"):
        run(config, verify=str(case), **{"from": str(wrong)})
    with pytest.raises(VidlatentError, match="no reference case"):
        run(config, verify=str(tmp_path))


def test_verify_knows_the_other_families(reference, tmp_path):
    config = configs.load("configs/ivvae.py")
    case = reference("ivvae")
    assert run(config, verify=str(case)) == 0
    with pytest.raises(VidlatentError, match="lacks ivvae.npz"):
        run(config, verify=str(tmp_path))
    with pytest.raises(VidlatentError, match="unknown kind of reference case 'promag'"):
        run(configs.load("configs/promag.py"), verify=str(case))


@pytest.mark.slow
def test_verify_reads_a_reducio_file(reference, tmp_path):
    config = configs.load("configs/reducio_vae.py")
    folder = reference("reducio")
    assert run(config, verify=str(reference("reducio", "vae_ft2.npz"))) == 0
    with pytest.raises(VidlatentError, match="no case of a whole network"):
        run(config, verify=str(folder / "tiling.npz"))
    with pytest.raises(VidlatentError, match="name one file"):
        run(config, verify=str(tmp_path))


def test_start_of_another_form_from_file_and_from_workdir(fsae_case, tmp_path):
    config = config_for("fsae", fsae_case)
    path, run_dir = tmp_path / "base.safetensors", tmp_path / "base"
    save_safetensors(fsae_case.tensors, path)
    run(config, **{"from": str(path), "to": str(run_dir)})
    with config.unlocked():
        config.model.update(cross_stages=(2, 3), cross_head_dim=8, decoder_time="centred")
    standard = tmp_path / "standard.safetensors"
    run(config, start="standard", **{"from": str(path), "to": str(standard)})
    names = set(load_safetensors(standard)) - set(fsae_case.tensors)
    assert len(names) == 12 and all(n.startswith("decoder.first_frame_attn.") for n in names)
    again = tmp_path / "again.safetensors"
    run(config, start="standard", **{"from": str(run_dir), "to": str(again)})
    assert standard.read_bytes() == again.read_bytes()


def test_image_weights_start_the_video_model(dcae_case, fsae_case, tmp_path):
    config = config_for("dcae", dcae_case)
    path = tmp_path / "image.safetensors"
    save_safetensors(dcae_case.tensors, path)
    with config.unlocked():
        config.model.update(name="fsae", temporal_down=(0, 1))
    model = model_of(config)
    params = load_initial_params(
        str(path),
        abstract_params(model),
        lambda: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_params(model)),
        family="fsae",
        kind="image",
    )
    kernel = params["encoder"]["conv_in"]["kernel"]
    assert not np.any(kernel[:2])
    same(kernel[2:], dcae_case.params["encoder"]["conv_in"]["kernel"])


def test_parameters_are_placed_and_cast(dcae_case, tmp_path):
    path = tmp_path / "half.safetensors"
    save_safetensors({k: v.astype(np.float16) for k, v in dcae_case.tensors.items()}, path)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=place), dcae_case.params
    )
    params = load_params(path, shapes, family="dcae")
    leaf = params["encoder"]["conv_in"]["kernel"]
    assert isinstance(leaf, jax.Array) and leaf.dtype == np.float32


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    for name in ("a.pt", "b.ckpt", "c.bin"):
        (tmp_path / name).write_bytes(b"x")
        if not shutil.which("torch"):
            monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(VidlatentError, match="torch"):
            read_tensors(tmp_path / name)
    with pytest.raises(VidlatentError, match="weights come as"):
        read_tensors(tmp_path / "d.h5")
    with pytest.raises(VidlatentError, match="neither a run"):
        read_tensors(tmp_path)
    with pytest.raises(VidlatentError, match="no known naming"):
        choose_table({"stranger": np.zeros(1)}, "dcae")
    with pytest.raises(VidlatentError, match="needs --from"):
        run(configs.load("configs/dcae.py"))


def test_torch_files_go_through_the_weights_only_loader(tmp_path, monkeypatch):
    seen = {}

    class Tensor:
        dtype = "float32"

        def contiguous(self):
            return self

        def numpy(self):
            return np.ones(3, np.float32)

    def load(path, **how):
        seen.update(how)
        return {"state_dict": {"a": Tensor(), "epoch": 3}, "optimizer": {}}

    fake = types.SimpleNamespace(load=load, Tensor=Tensor, bfloat16="bfloat16")
    fake.__spec__ = types.SimpleNamespace(name="torch")
    monkeypatch.setitem(sys.modules, "torch", fake)
    (tmp_path / "a.pt").write_bytes(b"x")
    tensors = read_tensors(tmp_path / "a.pt")
    assert list(tensors) == ["a"] and seen["weights_only"] is True


def test_arguments_that_are_not_supported_are_named(reference):
    arguments = json.loads((reference("dcae", "config.json")).read_text())["config"]
    changes = {
        "decoder_in_shortcut": False,
        "decoder_act_fns": "gelu",
        "encoder_block_types": "Other",
    }
    for key, value in changes.items():
        with pytest.raises(VidlatentError, match=f"{key}='?{value}'? is not supported"):
            fields_from_diffusers({**arguments, key: value})
