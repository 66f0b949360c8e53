"""Plans of fine-tuning by rewards: all networks of the step, and no run read."""

import json
from pathlib import Path

import jax
import pytest

from tests.plan.test_distill import DIT, TINY
from vidlatent.config import load
from vidlatent.parallel.mesh import make_mesh
from vidlatent.plan.build import build_program, choose_bucket
from vidlatent.plan.costs import trace_program
from vidlatent.plan.search import propose_changes
from vidlatent.plan.state import plan_state

CONFIGS = Path(__file__).parent.parent.parent / "configs"
REWARDS = {
    "rewards__use": "('mps', 'videoalign')",
    "rewards__weights": "()",
    "rewards__mps__network": "mps_tiny",
    "rewards__videoalign__network": "videoalign_tiny",
    "rewards__videoalign__least_pixels": 784,
    "rewards__videoalign__most_pixels": 3136,
    "sample__fps": 8.0,
}
JUDGES = {"tokenizer", "reward_mps", "reward_videoalign"}


def built(name, **keys):
    keys = {**{f"generator__{field}": value for field, value in DIT.items()}, **REWARDS, **keys}
    keys |= {"data__buckets": "((5,16,16,2),)", "plan__tokenizer": TINY}
    keys |= {"plan__upsampler": "fsvideo_upsampler:demo", "plan__base": "fsvideo_dit:demo"}
    flags = {key.replace("__", "."): str(value) for key, value in keys.items()}
    loaded = load(str(CONFIGS / name), flags)
    axes = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
    mesh = make_mesh(axes, jax.devices()[:1])
    program = build_program(loaded, "train", mesh, choose_bucket(loaded, ()))
    trace_program(program, mesh)
    return program


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "keys", "frozen", "about"),
    [
        ("fsvideo_dit.py:demo,stage=refl", {}, JUDGES, "step of 2 prompts, 5x16x16"),
        ("fsvideo_dit.py:demo,stage=refl", {"refl__stream": False}, JUDGES, "2 prompts"),
        (
            "fsvideo_dit.py:demo,stage=grpo",
            {"rl__kl_weight": 0.1},
            {*JUDGES, "reference"},
            "2 prompts with 8 samples each",
        ),
        (
            "fsvideo_refiner.py:demo,stage=grpo",
            {},
            {*JUDGES, "base", "upsampler"},
            "2 prompts with 8 samples each",
        ),
    ],
)
def test_a_step_by_rewards_has_all_of_its_networks(config, keys, frozen, about):
    program = built(config, **keys)
    state, batch, held, _ = program.arguments
    assert set(held) == frozen
    assert {"latent", "mask", "reward_tokens/mps/tokens"} <= set(batch)
    assert set(state) == {"step", "params", "opt", "ema", "extra"}
    assert about in program.about


def changes(name, **keys):
    flags = {key.replace("__", "."): str(value) for key, value in keys.items()}
    config = load(str(CONFIGS / name), flags)
    mesh = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
    return list(propose_changes(config, "train", mesh, (9, 32, 32, 2)))


def test_what_saves_memory_in_steps_by_rewards():
    """Adding up gradients is no key of grpo; its groups have parts."""
    found = changes("fsvideo_dit.py:demo,stage=grpo", generator__remat=True)
    remat = {"generator.stack": "recomputed"}
    assert {**remat, "rl.parts": 8} in found
    assert {**remat, "rl.parts": 8, "rl.decode_groups": 1} in found
    assert not any("optim.accumulate" in keys for keys in found)
    found = changes("fsvideo_dit.py:demo,stage=refl", refl__stream=False)
    assert any(keys.get("refl.stream") for keys in found)
    assert found[-1]["optim.accumulate"] == 2


@pytest.mark.slow
def test_streaming_saves_what_the_state_of_a_step_shows(capsys, tmp_path):
    keys = {"data.buckets": "((17,32,32,2),)", "plan.tokenizer": TINY, "plan.what": "state"}
    keys |= {"refl.latents": "0"}
    config = load(str(CONFIGS / "fsvideo_dit.py:demo,stage=refl"), keys)
    assert plan_state(config, tmp_path, "h100:2", "") == 0
    streamed, whole = json.loads((tmp_path / "plan" / "state.json").read_text())["rows"]
    assert whole["changes"] == {"refl.stream": False}
    sizes = [row["parts"]["decoder and rewards"] for row in (streamed, whole)]
    assert 0 < 1.5 * sizes[0] < sizes[1]  # of five latents, two are in the first piece
    assert "of activations only those of decoder and rewards" in capsys.readouterr().out
