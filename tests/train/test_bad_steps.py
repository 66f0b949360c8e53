"""Non-finite numbers in a run: skipped and counted, then a stop that names the batch."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from tests.helpers import micro_config
from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.losses import TERMS, Term, l1
from vidlatent.train.loop import train

TINY = Path(__file__).parent.parent / "tiny.py"


@pytest.fixture(autouse=True)
def poison(one_device, monkeypatch):
    """A loss term that is NaN on batches of single frames, and one that always is."""

    def on_images(inputs, *_):
        return l1(*inputs[:3]) * (jnp.nan if inputs.target.shape[1] == 1 else 1.0)

    def always(*_):
        return jnp.float32(jnp.nan)

    poisons = {"nan_on_images": lambda: Term(on_images), "nan": lambda: Term(always)}
    terms = {**TERMS._entries, **poisons}
    monkeypatch.setattr(TERMS, "_entries", terms)


def config(term, **overrides):
    loaded = load(str(TINY), {"train.steps": "12"})
    with loaded.unlocked():
        loaded.model = micro_config.get_config().model  # two convolutions, quick to compile
        loaded.loss[term] = 1.0
    loaded.train.log_every = 1
    loaded.eval.every = 0
    loaded.train.update(overrides)
    return loaded


def metrics(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "train/bad_steps" in row]


def test_some_bad_steps_are_skipped_and_counted(tmp_path):
    assert train(config("nan_on_images"), tmp_path) == 0
    rows = metrics(tmp_path)
    counts = [row["train/bad_steps"] for row in rows]
    assert 0 < counts[-1] < 12
    assert counts == sorted(counts)


def test_endless_bad_steps_stop_the_run_and_name_the_clips(tmp_path):
    with pytest.raises(VidlatentError, match="step 4: .* 4 steps in a row.*scene-"):
        train(config("nan", max_bad_steps=4), tmp_path)
    assert metrics(tmp_path)[-1]["train/bad_steps"] == 4
