"""Files in and out: namings, folders, torch files, stored cases, starts from other forms."""

import json
import math
import re
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent import config as configs
from vidlatent.codec.codec import Codec
from vidlatent.convert.run import convert
from vidlatent.errors import VidlatentError
from vidlatent.models.load import abstract_params, model_of
from vidlatent.models.tokenizers.fsvideo.names import fields_from_diffusers
from vidlatent.nested import flatten
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
    "overwrite": False,
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


def test_what_only_tokenizers_have_is_refused_in_one_sentence(tmp_path):
    config = configs.load("configs/latte.py")
    with pytest.raises(VidlatentError, match="latte is of the task 'generator'.*train.init_kind"):
        run(config, start="image")
    with pytest.raises(VidlatentError, match="also knows its latents: give --from the workdir"):
        run(config, **{"from": "latte.safetensors", "to": str(tmp_path / "run")})


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


# The original naming of a block, and those of the two namings that a case's operations ask for.
PLACE = re.compile(r"(encoder|decoder)[.](?:down|up)_blocks[.](\d+)[.](\d+)[.](.*)")
ORIGINAL = {"conv": "dcae_original", "pixel_unshuffle": "dcae_original_shuffle"}


def original_of(case):
    kind = case.case["config"]["downsample_block_type"].lower()
    return TABLES.get(ORIGINAL[kind]), kind == "pixel_unshuffle"


def original_places(case, rest):
    """The case's tensors called ``rest`` in a block -> that block's original name."""
    found = {name: PLACE.fullmatch(name) for name in case.tensors}
    return {
        name: f"{m[1]}.stages.{m[2]}.op_list.{m[3]}."
        for name, m in found.items()
        if m and m[4] == rest
    }


def test_original_names_and_back(dcae_case, tmp_path):
    table, shuffled = original_of(dcae_case)
    tensors = export_params(dcae_case.params, table)
    keys = original_places(dcae_case, "attn.to_k.weight")
    assert keys
    for name, place in keys.items():
        k = dcae_case.tensors[name]
        qkv = tensors[place + "context_module.main.qkv.conv.weight"]
        assert qkv.shape == (3 * len(k), k.shape[1], 1, 1)
        np.testing.assert_array_equal(qkv[len(k) : 2 * len(k), :, 0, 0], k)
    operations = original_places(dcae_case, "conv.weight")
    assert operations
    for name, place in operations.items():
        wrapped = shuffled or place.startswith("decoder.")
        theirs = tensors[place + ("main.conv.conv.weight" if wrapped else "main.conv.weight")]
        np.testing.assert_array_equal(theirs, dcae_case.tensors[name])
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
    table, _ = original_of(dcae_case)
    tensors = export_params(dcae_case.params, table)
    theirs, place = next(iter(original_places(dcae_case, "attn.to_v.weight").items()))
    name = place + "context_module.main.qkv.conv.weight"
    tensors[name] = tensors[name][1:]
    with pytest.raises(VidlatentError, match="misshaped.*qkv"):
        import_params(tensors, table, dcae_case.params)
    params = jax.tree.map(lambda x: x, dcae_case.params)
    side, blocks, i, j, *_ = theirs.split(".")
    del params[side][f"{blocks}_{i}_{j}"]["attn"]["to_v"]
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
    tiled = reference("reducio", "tiling.npz")
    with pytest.raises(VidlatentError, match="no case of a whole network"):
        run(config, verify=str(tiled))
    with pytest.raises(VidlatentError, match="name one file"):
        run(config, verify=str(tmp_path))
    for path in sorted(folder.glob("vae_*.npz")):
        assert run(config, verify=str(path)) == 0


def test_start_of_another_form_from_file_and_from_workdir(fsae_case, tmp_path):
    config = config_for("fsae", fsae_case)
    path, run_dir = tmp_path / "base.safetensors", tmp_path / "base"
    save_safetensors(fsae_case.tensors, path)
    run(config, **{"from": str(path), "to": str(run_dir)})
    widths = config.model.decoder_widths
    stages = tuple(range(max(0, len(widths) - 2), len(widths)))
    head = math.gcd(*(widths[stage] for stage in stages))
    with config.unlocked():
        config.model.update(cross_stages=stages, cross_head_dim=head, decoder_time="centred")
    standard = tmp_path / "standard.safetensors"
    run(config, start="standard", **{"from": str(path), "to": str(standard)})
    names = set(load_safetensors(standard)) - set(fsae_case.tensors)
    prefixes = tuple(f"decoder.first_frame_attn.{stage}." for stage in stages)
    assert len(names) == 6 * len(stages) and all(n.startswith(prefixes) for n in names)
    again = tmp_path / "again.safetensors"
    run(config, start="standard", **{"from": str(run_dir), "to": str(again)})
    assert standard.read_bytes() == again.read_bytes()


def test_image_weights_start_the_video_model(dcae_case, tmp_path):
    config = config_for("dcae", dcae_case)
    path = tmp_path / "image.safetensors"
    save_safetensors(dcae_case.tensors, path)
    timed = tuple(range(min(2, len(config.model.encoder_widths) - 1)))
    with config.unlocked():
        config.model.update(name="fsae", temporal_down=timed)
    model = model_of(config)
    params = load_initial_params(
        str(path),
        abstract_params(model),
        lambda: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_params(model)),
        family="fsae",
        kind="image",
    )
    image, grown = flatten(dcae_case.params), 0
    for place, leaf in flatten(params).items():
        if leaf.shape == image[place].shape:
            np.testing.assert_array_equal(leaf, image[place])
        elif leaf.ndim == 5 and leaf.shape[1:] == image[place].shape[1:]:
            # The present frame's tap is the image model's, the others are empty.
            assert not np.any(leaf[:-1])
            np.testing.assert_array_equal(leaf[-1:], image[place])
            grown += 1
        else:
            # A shuffling operation, whose channels now hold two frames.
            assert re.search(r"/conv/(kernel|bias)$", place)
    assert grown
    # A still clip decodes to the image model's picture.
    latent = jax.random.normal(jax.random.key(0), (1, 1, 2, 2, config.model.latent_channels))
    want = dcae_case.run("decode", latent)[0]
    got = jax.jit(lambda p, z: model.apply({"params": p}, z, method="decode")[0])(
        params, jnp.repeat(latent, 2, axis=1)
    )
    np.testing.assert_allclose(got, jnp.repeat(want, got.shape[1], axis=1), atol=2e-4)


def test_parameters_are_placed_and_cast(dcae_case, tmp_path):
    path = tmp_path / "half.safetensors"
    save_safetensors({k: v.astype(np.float16) for k, v in dcae_case.tensors.items()}, path)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=place), dcae_case.params
    )
    params = load_params(path, shapes, family="dcae")
    for leaf in jax.tree.leaves(params):
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
