"""What the tests of FSVideo's second half share: pairs, base model, upsampler and refiner.

All are tiny, and as if trained for one step (``generator_runs``).
"""

import jax
import numpy as np

from tests.helpers.generator_runs import generator_run, tokenizer_run
from vidlatent import config as configs
from vidlatent.encode.run import encode_set
from vidlatent.models.load import open_checkpoints
from vidlatent.train.tasks.base import make_task

# A run of four steps, for ``train``.
SHORT = {
    "data.validation_clips": 4,
    "train.steps": 4,
    "train.log_every": 2,
    "train.tensorboard": "false",
    "optim.warmup_steps": 0,
    "eval.every": 0,
    "checkpoint.every": 0,
    "latents.normalisation": "spec",
}
# Clips as pixels, of which the set of pairs is made.
VIDEOS = {
    "data.source": "synthetic",
    "data.synthetic.kind": "shapes",
    "data.synthetic.clips": 12,
    "data.synthetic.frames": 5,
}
DIT = {
    "generator.patch": "(1,1,1)",
    "generator.width": 16,
    "generator.depth": 2,
    "generator.heads": 2,
    "generator.hidden": 16,
    "generator.freq_dim": 8,
    "generator.label_tokens": 1,
    "diffusion.eval_levels": 2,
    "sample.grid": 1,
    "sample.batch": 1,
    "sampler.steps": 2,
}
UPSAMPLER = {"generator.width": 8, "generator.groups": 2, "generator.blocks": 1}
LARGE = {"data.buckets": "((5,16,16,4),)", "sample.size": "(5,16,16)"}
SMALL = {"data.buckets": "((5,8,8,4),)", "sample.size": "(5,8,8)"}


def load(config, places, **keys):
    """A config on the tokenizer and the pairs of ``places``."""
    known = {"tokenizer.path": places / "tokenizer", "data.path": places / "pairs"}
    merged = {**known, **SHORT, **keys}
    return configs.load(config, {key: str(value) for key, value in merged.items()})


def upsampler_config(places, arg="demo", **keys):
    size = {"data.buckets": LARGE["data.buckets"]}
    return load(f"configs/fsvideo_upsampler.py:{arg}", places, **{**UPSAMPLER, **size, **keys})


def refiner_config(places, **keys):
    parts = {"refiner.base": places / "base", "refiner.upsampler": places / "upsampler"}
    start = {"train.init_from": places / "base"}
    merged = {**DIT, **LARGE, **parts, **start, **keys}
    return load("configs/fsvideo_refiner.py", places, **merged)


def encode_shapes(places, name, keys, low):
    """Encode the rendered shapes by ``places / tokenizer`` into ``places / name``."""
    config = configs.read(places / "tokenizer")
    with config.unlocked():
        config.data = load("configs/fsvideo_dit.py", places, **VIDEOS, **keys).data
        config.encode.update({"pictures": 0, "low": low, "dtype": "float32"})
    assert encode_set(config, places / "tokenizer", -1, str(places / name)) == 0


def make_pairs(folder):
    """A tokenizer, ``pairs`` of its latents, and latents of the small clips alone."""
    tokenizer_run(folder / "tokenizer")
    encode_shapes(folder, "pairs", LARGE, 2)
    encode_shapes(folder, "small", SMALL, 0)


def make_parts(folder):
    """``make_pairs``, a base model and an upsampler."""
    make_pairs(folder)
    base = {**DIT, **SMALL, "data.path": folder / "small"}
    generator_run(load("configs/fsvideo_dit.py:demo,first=true", folder, **base), folder / "base")
    generator_run(upsampler_config(folder), folder / "upsampler")


def digest(workdir, step):
    """All arrays of a checkpoint's state, as bytes."""
    config = configs.read(workdir)
    state = jax.eval_shape(make_task(config).init, jax.random.key(0))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state
    )
    checkpoints = open_checkpoints(config, workdir)
    found = checkpoints.restore(target, step=step).state
    checkpoints.close()
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(found)]
