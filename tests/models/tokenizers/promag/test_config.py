"""The shipped ProMAG configs make the models their names promise."""

import jax
import jax.numpy as jnp
import pytest

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.models.load import abstract_params, model_of
from vidlatent.models.tokenizers.promag.blocks import CausalConv
from vidlatent.parallel.paths import path_name
from vidlatent.parallel.sharding import find_rule


@pytest.mark.parametrize(
    ("arg", "name", "fps", "frames"),
    [
        ("", "promag-4x", 6, 17),
        ("grow=1", "promag-8x", 12, 17),
        ("paper,grow=2,z=8", "promag-16x", 24, 17),
        ("paper,image=true", "promag-image", 0, 1),
        ("paper,grow=1,mode=plain", "promag-8x", 12, 17),
        ("paper,model=magvit2", "magvit2-4x", 6, 17),
        ("model=magvit2,k=16", "magvit2-16x", 24, 17),
    ],
)
def test_variants(arg, name, fps, frames):
    config = configs.load(f"configs/promag.py:{arg}")
    spec = model_of(config).latent_spec
    assert spec.name == name and config.data.fps == fps
    assert spec.channels == (8 if "z=8" in arg else 16)
    for bucket in config.data.buckets:
        assert bucket[0] == frames
        spec.check_video(*bucket[:3])


def test_growing_keeps_the_earlier_parameters():
    shapes = [
        abstract_params(model_of(configs.load(f"configs/promag.py:join=feature,grow={grow}")))
        for grow in (0, 1)
    ]
    earlier = {name: shapes[1][name] for name in shapes[0]}
    assert earlier == shapes[0] and set(shapes[1]) - set(shapes[0]) == {"grow1"}


def test_stages_start_from_each_other():
    for arg, kind, frozen in (
        ("", "", ""),
        ("paper", "first_frame", "(image)/"),
        ("paper,image=true", "", ""),
        ("grow=1", "grown", "(encoder|decoder)/"),
        ("paper,grow=2", "grown", "(image|encoder|decoder|grow1)/"),
        ("paper,model=magvit2,k=8", "", ""),
    ):
        config = configs.load(f"configs/promag.py:{arg}")
        assert (config.train.init_kind, config.optim.freeze) == (kind, frozen)


def test_stages_by_their_numbers():
    for stage, same in (("0", "image=true"), ("I", ""), ("II", "grow=1"), ("III", "grow=2")):
        config = configs.load(f"configs/promag.py:paper,stage={stage}")
        assert config.to_dict() == configs.load(f"configs/promag.py:paper,{same}").to_dict()
        assert config.recipe == f"promag {stage}"


def test_discriminators():
    """Stages 0 and I have one; those that grow in the table's rows "w/ GAN" only."""
    for arg, name in (
        ("stage=0", "patch2d"),
        ("stage=I", "patch3d"),
        ("model=magvit2,k=8", "patch3d"),
        ("stage=II,gan=true", "patch3d"),
    ):
        discriminator = configs.load(f"configs/promag.py:paper,{arg}").discriminator
        assert (discriminator.model.name, discriminator.weight, discriminator.loss) == (
            name,
            0.1,
            "hinge",
        )
        assert (discriminator.optim.lr, discriminator.optim.b1, discriminator.optim.b2) == (
            1e-4,
            0.9,
            0.99,
        )
        assert (discriminator.optim.weight_decay, discriminator.r1_weight) == (1e-4, 0)
    for stage in ("II", "III"):
        assert not configs.load(f"configs/promag.py:paper,stage={stage}").discriminator.model
    grown = configs.load("configs/promag.py:paper,stage=III,gan=true")
    assert grown.preset.endswith("-gan") and grown.train.init_recipes == ("promag II",)


def test_demo_model_runs():
    model = model_of(configs.load("configs/promag.py"))
    video = jax.ShapeDtypeStruct((1, 17, 48, 48, 3), jnp.float32)
    (restored, posterior), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), video)
    assert restored.shape == video.shape and posterior.mean.shape == (1, 5, 12, 12, 16)


def test_every_kernel_is_placed_as_a_tokenizers():
    """Convolutions must not be sharded by output channels (``parallel.sharding``)."""
    shapes = abstract_params(model_of(configs.load("configs/promag.py:join=latent,grow=2")))
    leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)]
    placed = [find_rule(path, leaf.ndim) for path, leaf in leaves if path.endswith("kernel")]
    assert placed and set(placed) == {("fsdp", None)}


def test_bfloat16_inside_float32_outside():
    config = configs.load("configs/promag.py:join=feature,grow=1")
    config.precision.compute, config.model.remat = "bfloat16", True
    model, video = model_of(config), jax.ShapeDtypeStruct((1, 9, 8, 8, 3), jnp.float32)

    def run(key, video):
        params = model.init(key, video)
        return model.apply(params, video, capture_intermediates=_conv, mutable=["intermediates"])

    outputs, seen = jax.eval_shape(run, jax.random.key(0), video)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(outputs))
    inner = jax.tree_util.tree_leaves_with_path(seen)
    wide = {path_name(path) for path, x in inner if x.dtype == jnp.float32}
    assert len(inner) > 20 and all("conv_out" in path for path in wide)


def _conv(module, _):
    return isinstance(module, CausalConv)


def test_refusals():
    for arg in ("model=magvit3", "grow=3", "k=5"):
        with pytest.raises(VidlatentError, match="promag or magvit2"):
            configs.load(f"configs/promag.py:{arg}")
    for arg in ("stage=IV", "stage=II,grow=1", "stage=0,image=true"):
        with pytest.raises(VidlatentError, match="stages are 0, I, II and III"):
            configs.load(f"configs/promag.py:{arg}")
