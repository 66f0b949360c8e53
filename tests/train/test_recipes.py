"""Every stage of every recipe: its step is traced at full size, and run at a tiny size."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.recipes import DEMOS, PAPER, drawn, small
from tests.helpers.tiny_tokenizers import QUICK
from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.models.frozen import load_frozen
from vidlatent.models.load import model_of
from vidlatent.models.pretrained import network_shapes
from vidlatent.models.pretrained.load import load_network
from vidlatent.parallel.mesh import local_mesh
from vidlatent.parallel.paths import path_name
from vidlatent.train.freeze import mark_frozen
from vidlatent.train.loss_terms import LossTerms
from vidlatent.train.tasks.tokenizer import TokenizerTask

COMPILER = {**QUICK, "xla_cpu_parallel_codegen_split_count": 1}
# Programs of the published size; those of other variants differ only in a layer or a number.
LOWERED = (
    *(stage for stage in PAPER if not re.search("variant|time|promag.*(mode|gan|k=8)", stage)),
    "reducio_vae:paper,time=2,space=16",
    "promag:paper,grow=1,gan=true",
    "ivvae:paper,variant=causal,stage=4",
)
# Of several buckets, take the longest clip and those that compile another program: the largest
# frames (decoded by patches in FSAE) and single frames.
BUCKETS = (
    *((stage, "longest") for stage in LOWERED),
    ("fsae:paper,stage=3", "largest"),
    ("fsae:paper,stage=3", "image"),
    ("fsae:standard", "largest"),
    ("ivvae:paper,stage=4", "largest"),
    ("ivvae:paper,stage=4", "image"),
)
# One of each family runs always; each of the others takes as long.
QUICK_STAGES = {
    "fsae:demo,stage=2",
    "ivvae:paper,variant=ktc,stage=1",
    "reducio_vae:demo,discriminator=true",
    "promag:demo,gan=true",
}
# Their programs equal those of others here, except for the number of blocks or levels.
ALIKE = {
    "ivvae:paper,variant=causal,stage=1",
    "ivvae:paper,variant=causal,stage=3",
    "reducio_vae:paper,time=2,space=16",
    "promag:paper,grow=2,mode=plain",
    "promag:paper,k=8",
    "fsae:demo",
    "fsae:demo,stage=standard",
    "fsae:demo,stage=lite",
    "ivvae:demo",
    "ivvae:demo,variant=causal,stage=4",
    "reducio_vae:demo",
    "promag:demo",
    "promag:demo,grow=1",
}
# The published content encoder ends in a block and a norm that no output depends on, and position
# tables are fixed. All of them exist only so that published weights fit.
IDLE = r"encoder/frame/(mid_block_2|norm_out)/.*|decoder/.*/pos_embed"
STEPPED = [
    pytest.param(stage, marks=() if stage in QUICK_STAGES else pytest.mark.slow)
    for stage in (*PAPER, *DEMOS)
    if stage not in ALIKE
]


@pytest.mark.parametrize("stage", PAPER)
def test_a_recipe_says_what_it_needs(stage):
    config = load(stage)
    assert config.recipe
    objective = LossTerms(config.loss.to_dict())
    assert set(objective.networks) >= {"lpips_vgg"}
    with pytest.raises(VidlatentError, match="config.networks.lpips_vgg is empty.*convert|from"):
        load_frozen(TokenizerTask(config, model_of(config)).frozen, local_mesh([1]))


@pytest.mark.parametrize("stage", PAPER)
def test_every_bucket_can_have_clips(stage):
    """No two buckets share length and aspect ratio, as clips would only join the larger one."""
    config = load(stage)
    buckets = config.data.buckets
    assert len({(t, round(h / w, 2)) for t, h, w, _ in buckets}) == len(buckets)
    assert not config.data.bucket_weights  # clips decide among the shapes of a length
    spec = model_of(config).latent_spec
    for frames, height, width, _ in buckets:
        spec.check_video(frames, height, width)


def test_decoder_finetunes_are_stages_too():
    for form in ("standard", "lite"):
        found, same = load(f"fsae:paper,stage={form}").to_dict(), load(f"fsae:{form}").to_dict()
        assert found.pop("preset") == f"paper-{form}" and same.pop("preset") == form
        assert found == same and found["train"]["init_recipes"]
        demo = load(f"fsae:demo,stage={form}").to_dict()
        assert demo == load(f"fsae:demo,form={form},finetune=true").to_dict()
        with pytest.raises(VidlatentError, match="does not go with this preset"):
            load(f"fsae:paper,form={form},stage=3")


def chosen(buckets, which):
    """Frames, height and width of the bucket."""
    if which == "longest":
        return max(buckets)[:3]
    if which == "largest":
        return max(buckets, key=lambda bucket: (bucket[1] * bucket[2], bucket[0]))[:3]
    return min(buckets)[:3]


def test_the_largest_bucket_is_decoded_by_patches():
    for stage in ("fsae:paper,stage=3", "fsae:standard", "fsae:lite"):
        config = load(stage)
        sizes = [chosen(config.data.buckets, which) for which in ("longest", "largest", "image")]
        patched = [h * w > config.train.patch_above for _, h, w in sizes]
        assert patched == [False, True, True] and [t for t, *_ in sizes] == [169, 121, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "bucket"), BUCKETS)
def test_the_step_of_every_stage_can_be_traced(stage, bucket):
    config = load(stage)
    step = TokenizerTask(config, model_of(config))
    state = jax.eval_shape(step.init, jax.random.key(0))
    names = LossTerms(config.loss.to_dict()).networks
    networks = {name: network_shapes(name) for name in names}
    frames, height, width = chosen(config.data.buckets, bucket)
    batch = {
        "video": jax.ShapeDtypeStruct((1, frames, height, width, 3), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((1,), jnp.float32),
    }
    lowered = jax.jit(step.train_step).lower(state, batch, networks)
    after, report = lowered.out_info
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert {"loss", "l1", "lpips_vgg"} <= set(report)
    if config.discriminator.model and (frames > 1 or config.discriminator.images):
        assert "discriminator/loss" in report


@functools.cache
def network(name):
    return load_network(name, "random").params


@pytest.mark.parametrize("stage", STEPPED)
def test_two_batches_of_every_stage(stage):
    """A step on videos, and one on images if there are any: all trained parameters change."""
    config, (frames, height, width) = small(stage)
    step = TokenizerTask(config, model_of(config))
    networks = {name: network(name) for name in LossTerms(config.loss.to_dict()).networks}
    lengths = {bucket[0] for bucket in config.data.buckets}
    first = (frames, height, width) if max(lengths) > 1 else (1, height, width)
    second = (1, height, 24) if min(lengths) == 1 < max(lengths) else first
    state, reports = drawn(step), []
    state["step"] = jnp.int32(config.discriminator.start_step)
    begin = jax.device_get(state)
    train_step = jax.jit(step.train_step, compiler_options=COMPILER)
    for seed, size in enumerate((first, second)):
        video = np.random.default_rng(seed).integers(0, 256, (2, *size, 3), np.uint8)
        batch = {"video": video, "mask": np.ones(2, np.float32)}
        state, report = train_step(state, batch, networks)
        reports.append(jax.device_get(report))
    for report in reports:
        assert report["bad_steps"] == 0 and all(np.isfinite(x) for x in report.values()), report
    terms = {name + "_random" * (name in ("lpips_tiny", "vf")) for name in config.loss}
    assert terms <= set(reports[0])

    def still(part):
        """Paths of the parameters that are unchanged."""
        pairs = (jax.tree_util.tree_leaves_with_path(x) for x in (part(begin), part(state)))
        both = zip(*pairs, strict=True)
        return {path_name(path) for (path, a), (_, b) in both if np.array_equal(a, b)}

    stays = jax.tree_util.tree_leaves_with_path(mark_frozen(begin["params"], config.optim.freeze))
    frozen = {path_name(path) for path, stay in stays if stay}
    assert bool(frozen) == bool(config.optim.freeze)
    names = {path_name(path) for path, _ in stays}
    idle = {name for name in names if re.fullmatch(IDLE, name)}
    assert bool(idle) == (config.model.name == "reducio")
    assert still(lambda state: state["params"]) == frozen | idle
    if config.discriminator.model:
        assert "adversarial" in reports[0]
        # The hinge loss pushes the last bias up and down equally, so it need not change.
        alike = {"conv_4/bias"} if config.discriminator.loss == "hinge" else set()
        assert still(lambda state: state["discriminator"]["params"]) <= alike
    if "vf" in config.loss:
        assert not still(lambda state: state["helpers"]["params"])
