"""The starts that the papers made: a preset knows their kind, and needs only the published file."""

import jax
import numpy as np
import pytest

from tests.helpers.generator_nets import build, inputs, parameters
from tests.helpers.reducio_nets import LEVELS, image_vae
from tests.helpers.reducio_nets import net as reducio
from tests.helpers.tiny_tokenizers import tokenizer
from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.train.init_from import check_init_from, load_initial_params
from vidlatent.weights.files import save_params
from vidlatent.weights.tables import INIT_KINDS, STARTS

IMAGE = {"variant": "image_plain", "temporal_down": ()}
# Preset -> the naming that its start is published in, and a leaf that it takes as it is.
PRESETS = {
    "fsae:paper": ("dcae", "encoder/conv_in/bias"),
    "reducio_vae:paper": ("sd_vae", "encoder/frame/conv_in/bias"),
    "ivvae:paper,variant=causal,stage=2": ("ivvae_plain", "encoder/conv1/bias"),
    "fsvideo_dit:paper,stage=image,start=wan": ("wan", "time_projection/kernel"),
    "reducio_dit:paper": ("pixart", "time_projection/kernel"),
}


def leaf_of(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return np.asarray(tree)


def flat(tree):
    return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def networks(preset):
    """``(parameters of the source, newly initialised ones of the target)``, both tiny."""
    source, fresh = drawn_networks(preset)
    return source, jax.tree.map(lambda x: np.asarray(x) + np.float32(1), fresh)


def drawn_networks(preset):
    if preset.startswith("fsae"):
        return tokenizer("dcae")[1], tokenizer("fsae")[1]
    if preset.startswith("reducio_vae"):
        fresh = reducio(**LEVELS)[1]
        return image_vae(fresh), fresh
    if preset.startswith("ivvae"):
        return tokenizer("ivvae", **IMAGE)[1], tokenizer("ivvae", variant="causal")[1]
    if preset.startswith("fsvideo"):
        plain, target = build("wan", memory=False), build("wan", depth=3)
        plain = plain.clone(depth=3)
    else:
        target = build("reducio_dit")
        fields = {"latent_channels": 4, "patch": (1, 2, 2), "image_dim": 0, "content_channels": 0}
        plain = target.clone(**fields)
    return parameters(plain, *inputs(plain)), parameters(target, *inputs(target))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Preset -> its start as a file in the published naming."""
    folder, found = tmp_path_factory.mktemp("starts"), {}
    for preset, (table, _) in PRESETS.items():
        found[preset] = folder / f"{table}.safetensors"
        save_params(found[preset], networks(preset)[0], family=table, table=table)
    return found


def started(preset, file, **changes):
    """The parameters that a run of the preset would start with."""
    config = configs.load(preset, {"train.init_from": str(file), **changes})
    check_init_from(config)
    model = config.generator if configs.is_generator(config) else config.model
    fresh = networks(preset)[1]
    # With a place for each leaf, as a run has.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=here), fresh
    )
    return load_initial_params(
        str(file), abstract, lambda: fresh, family=model.name, kind=config.train.init_kind
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_the_published_file_is_all_that_is_needed(files, preset):
    _, path = PRESETS[preset]
    source, fresh = networks(preset)
    params = started(preset, files[preset])
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)
    taken = {np.asarray(x).tobytes() for x in jax.tree.leaves(source)}
    assert leaf_of(params, path).tobytes() in taken
    # Most weights are the source's, as they are or put into a larger kernel.
    new = {name for name, x in flat(params).items() if np.array_equal(x, flat(fresh)[name])}
    assert len(new) < 0.5 * len(flat(params)), sorted(new)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_file_of_another_kind_is_refused_in_one_sentence(files, preset):
    kind = configs.load(preset).train.init_kind
    for other, file in files.items():
        if other == preset:
            continue
        with pytest.raises(VidlatentError) as caught:
            started(preset, file)
        said = str(caught.value)
        assert repr(PRESETS[other][0]) in said and STARTS[kind].about in said, said
        assert repr(kind) in said and "\n" not in said and said.count(". ") == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_without_the_kind_the_file_is_named_for_what_it_is(files, preset):
    table, _ = PRESETS[preset]
    kind = configs.load(preset).train.init_kind
    with pytest.raises(VidlatentError) as caught:
        started(preset, files[preset], **{"train.init_kind": ""})
    said = str(caught.value)
    assert "config.train.init_kind to" in said and repr(kind) in said, said
    # Weights of the same family are told by what does not fit.
    same = preset.startswith(("ivvae", "fsvideo"))
    assert ("the weights do not fit" if same else repr(table)) in said, said


def test_a_run_of_another_family_is_refused(tmp_path):
    for name in ("ivvae", "latte"):
        config = configs.load(name)
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        configs.write(config, tmp_path / name)
    with pytest.raises(VidlatentError, match="is a run of 'ivvae'.*'image' starts from DC-AE"):
        started("fsae:paper", tmp_path / "ivvae")
    with pytest.raises(VidlatentError, match="is a run of 'latte'.*takes the weights of 'wan'"):
        started("fsvideo_dit:paper,stage=image", tmp_path / "latte")


def test_a_preset_says_what_it_starts_from():
    for preset, start in (("fsae:paper", "dc-ae-f32c32-sana-1.0"), ("reducio_dit:paper", "PixArt")):
        with pytest.raises(VidlatentError, match=f"{start}.*--config.train.init_from="):
            check_init_from(configs.load(preset))
    for preset in ("fsae:paper,start=random", "reducio_vae:paper,start=random"):
        config = configs.load(preset)
        assert not config.train.init_kind and config.preset == "paper-start_random"
        check_init_from(config)
    wan = configs.load("fsvideo_dit:paper,stage=image,start=wan")
    assert wan.generator.memory_share == 0.98 and wan.train.init_kind == "wan_memory"
    assert configs.load("fsvideo_dit:paper,stage=image").generator.memory_share == 0.5
    with pytest.raises(VidlatentError, match="start=random does nothing"):
        configs.load("fsae:paper,stage=2,start=random")
    with pytest.raises(VidlatentError, match="start=sd is unknown"):
        configs.load("reducio_vae:paper,start=sd")


def test_every_kind_of_start_is_described():
    assert set(STARTS) <= set(INIT_KINDS.names())
    for config in ("fsae:standard", "fsae:lite", "promag:paper", "promag:paper,stage=II"):
        assert configs.load(config).train.init_kind in STARTS
