"""All recipes and stages that are shipped, and the same ones so small that a step compiles soon."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.config import load
from vidlatent.parallel.paths import path_name

# The published stages, what each may start from, and the baselines and ablations of the tables.
PAPER = (
    *(f"fsae:paper,stage={stage}" for stage in ("1", "2", "3", "vf")),
    "fsae:standard",
    "fsae:lite",
    *(f"ivvae:paper,stage={stage}" for stage in (1, 2, 3, 4)),
    *(f"ivvae:paper,variant=causal,stage={stage}" for stage in (1, 2, 3, 4)),
    *(f"ivvae:paper,variant={name}" for name in ("gcconv", "ktc", "ktc_causal", "volumes")),
    "ivvae:paper,variant=ktc,stage=1",
    "reducio_vae:paper",
    "reducio_vae:paper,time=2",
    "reducio_vae:paper,time=2,space=16",
    "promag:paper,image=true",
    "promag:paper",
    *(f"promag:paper,grow={grow}" for grow in (1, 2)),
    *(f"promag:paper,grow={grow},gan=true" for grow in (1, 2)),
    *(f"promag:paper,grow={grow},mode=plain" for grow in (1, 2)),
    *(f"promag:paper,k={k}" for k in (8, 16)),
    *(f"promag:paper,model=magvit2,k={k}" for k in (4, 8, 16)),
)
DEMOS = (
    "fsae:demo",
    "fsae:demo,stage=2",
    "fsae:demo,stage=vf",
    "fsae:demo,stage=standard",
    "fsae:demo,stage=lite",
    "ivvae:demo",
    "ivvae:demo,stage=4",
    "ivvae:demo,variant=causal,stage=4",
    "reducio_vae:demo",
    "reducio_vae:demo,discriminator=true",
    "promag:demo",
    "promag:demo,image=true,gan=true",
    "promag:demo,gan=true",
    "promag:demo,grow=1",
    "promag:demo,grow=1,gan=true",
    "dcae:demo",
)


def _fsae(config):
    model = config.model
    model.encoder_widths = (4, 8)
    model.decoder_widths = (2, 8) if model.decoder_time == "group" else (4, 8)
    model.encoder_depths = model.decoder_depths = (1, 1)
    model.block_types, model.multiscales = ("res", "evit"), ((), (5,))
    model.temporal_down, model.noise_stages = (0,), (0,)
    model.head_dim = model.cross_head_dim = model.latent_channels = 4
    model.cross_stages = (1,) if model.cross_stages else ()
    if config.train.patch_cells:  # the middle 16 pixels of 24
        config.train.patch_cells, config.train.patch_above = 12, 32 * 24
    if config.train.patch_latents:
        config.train.patch_latents = 2  # of 3
    return 5, 32, 32


def _dcae(config):
    model = config.model
    model.encoder_widths = model.decoder_widths = (4, 8)
    model.encoder_depths = model.decoder_depths = (1, 1)
    model.block_types, model.multiscales = ("res", "evit"), ((), (5,))
    model.head_dim = model.latent_channels = 4
    return 1, 16, 16


def _ivvae(config):
    model = config.model
    model.width, model.multipliers, model.blocks = 4, (1, 2, 2), 1
    model.temporal_down = (0, 1) if model.temporal_down else ()
    model.latent_channels, model.pac_dilations = 4, (0, 1)
    return 5, 24, 24


def _reducio(config):
    model = config.model
    model.width = model.content_width = model.latent_channels = model.frames = 4
    model.multipliers = model.content_multipliers = (1, 2)
    model.blocks = model.content_blocks = 1
    model.time_factor = {4: 2, 2: 1}[model.time_factor]
    model.space_factor = model.groups = model.heads = 2
    model.fuse = (-1, 1)
    return 4, 24, 24


def _promag(config):
    model = config.model
    model.width = model.latent_channels = 4
    model.multipliers, model.temporal_down = (1, 2), (0,)
    model.extra_multipliers = (2,) * len(model.extra_multipliers)
    model.blocks, model.grow_blocks, model.groups = 1, 1, 2
    return 9, 24, 24


_SMALL = {
    "fsae": _fsae,
    "dcae": _dcae,
    "ivvae": _ivvae,
    "reducio": _reducio,
    "promag": _promag,
    "magvit2": _promag,
}


def small(stage):
    """The recipe, shrunk; and its video's frames, height and width."""
    config = load(stage)
    return config, shrink(config)


def shrink(config):
    """Make a recipe's model so small that it compiles in seconds, with stand-ins for networks.

    All its terms, discriminator, rates and freezing stay. No weight decay and no warm-up: what
    moves got a gradient. Returns its video's frames, height and width.
    """
    with config.unlocked():
        size = _SMALL[config.model.name](config)
        config.model.remat = False  # tested by itself; it takes long to compile
        for optim in (config.optim, config.discriminator.optim):
            optim.weight_decay, optim.warmup_steps = 0.0, 0
        if "lpips_vgg" in config.loss:
            config.loss.lpips_tiny = config.loss.lpips_vgg
            del config.loss.lpips_vgg
        terms = (
            "lpips_tiny" if t == "lpips_vgg" else t for t in config.discriminator.adaptive_terms
        )
        config.discriminator.adaptive_terms = tuple(terms)
        if "vf" in config.loss:
            config.loss.vf.network = "dinov2_tiny"
        _small_discriminator(config.discriminator)
    return size


def drawn(step):
    """A state of ``step`` with random parameters everywhere, so that no branch is closed; drawn
    outside the compiler, which takes long for what runs once."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path_name(path)
        if not re.match("(params|ema|discriminator/params|helpers/params)/", name):
            return jnp.full(leaf.shape, name.endswith("/var"), leaf.dtype)
        x = rng.normal(size=leaf.shape)
        if name.endswith(("/scale", "/gamma")):
            return jnp.asarray(1 + 0.2 * x, leaf.dtype)
        fan = np.prod(leaf.shape[:-1]) if name.endswith("/kernel") else 100.0
        return jnp.asarray(x / np.sqrt(fan), leaf.dtype)

    abstract = jax.eval_shape(step.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, abstract)


def _small_discriminator(discriminator):
    discriminator.warmup_steps = 0
    if discriminator.model and discriminator.model.name == "multiscale3d":
        discriminator.model.widths, discriminator.model.scales = (4, 4), 1
    elif discriminator.model:
        discriminator.model.width = 4
