"""Runs of fine-tuning by rewards: their config, and the runs that they start from."""

from tests.helpers.generator_runs import generator_run, tiny, tokenizer_run
from vidlatent import config as configs
from vidlatent.encode.run import encode_set

KEYS = {
    "sampler.name": "euler",
    "sampler.steps": "4",
    "sampler.guidance.scales": "()",
    "sampler.guidance.drops": "()",
    "rewards.use": "('motion', 'colour')",
    "rewards.weights": "(('motion', 1.0), ('colour', 0.5))",
    "rl.watch": "('sharpness',)",
    "data.buckets": "((3, 8, 8, 2),)",
    "data.validation_clips": "3",
    "eval.every": "3",
    "train.steps": "7",
    "train.log_every": "1",
    "checkpoint.every": "0",
    "checkpoint.best_metric": "reward",
    "checkpoint.best_mode": "max",
    "optim.lr": "1e-3",
    "sample.grid": "1",
}
OF_TASK = {
    "grpo": {"rl.group": "4", "rl.window.stay": "3"},
    "refl": {"refl.steps": "(1, 2)", "refl.latents": "0"},
}


def make_places(folder):
    """A tokenizer, latents of rendered shapes, and a generator to start from."""
    tokenizer_run(folder / "tokenizer")
    config = configs.read(folder / "tokenizer")
    with config.unlocked():
        config.data = tiny(folder / "tokenizer", "videos").data
        config.encode.pictures = 0
    assert encode_set(config, folder / "tokenizer", -1, str(folder / "latents")) == 0
    generator_run(config_of(folder, "grpo", start=False), folder / "base")
    return folder


def config_of(places, task, start=True, **keys):
    own = {"task": task, **KEYS, **OF_TASK[task]}
    own |= {"train.init_from": str(places / "base")} if start else {}
    own |= {key.replace("__", "."): str(value) for key, value in keys.items()}
    known = {"tokenizer.path": str(places / "tokenizer"), "data.path": str(places / "latents")}
    return configs.load("tests/generator_tiny.py:latents", known | own)
