"""Runs, latent sets and weights files that an older version wrote are read by every mode.

The fixtures and what they hold: ``tests/fixtures/*/README.md``. Expected numbers come from the
version that wrote them.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests import old_runs

FIXTURE = Path(__file__).parent / "fixtures" / "cb6335a"
# Another optimisation level of the compiler or another instruction set moved no number by more than
# 3e-7 of its size (README.md of the fixture); the tolerance leaves thirty times that.
CLOSE = {"rtol": 1e-5, "atol": 1e-7}
SLOW = pytest.mark.slow  # a process or two that compile
# Checkpoints are read here for their values; on which devices the arrays lay does not matter.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.fixture(scope="module")
def expected():
    return json.loads((FIXTURE / "expected.json").read_text())


@pytest.fixture(scope="module")
def arrays():
    return dict(np.load(FIXTURE / "expected.npz"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The runs unpacked, for tests that do not change them."""
    return old_runs.unpack(FIXTURE, tmp_path_factory.mktemp("old"))


@pytest.fixture
def runs(tmp_path):
    """The runs unpacked, to be changed."""
    return old_runs.unpack(FIXTURE, tmp_path)


def check_numbers(found, wanted):
    """Equal names and close values, of nested dicts and lists."""
    found, wanted = (dict(_numbers("", tree)) for tree in (found, wanted))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, **CLOSE, err_msg=name)


def _numbers(name, tree):
    if isinstance(tree, (dict, list)):
        children = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, child in children:
            yield from _numbers(f"{name}/{key}", child)
    else:
        yield name, tree


@pytest.mark.parametrize("name", ["tokenizer", pytest.param("generator", marks=SLOW)])
def test_a_run_is_resumed(runs, expected, name):
    """State, data position and schedules go on: losses and every array two steps later."""
    wanted = expected[name]
    assert "resuming at step 40 of 42" in old_runs.resume(runs, name)
    check_numbers(old_runs.training_curves(runs / name), wanted["curves"])
    check_numbers(old_runs.validation_scores(runs / name), wanted["validation"])
    state = old_runs.state_figures(runs / name, old_runs.FINISHED)
    check_numbers(state, wanted["state"])
    assert any(key.startswith("critic/params/") for key in state) == (name == "tokenizer")


def test_a_run_beyond_its_steps_is_not_trained(kept):
    with pytest.raises(AssertionError) as raised:  # a failing exit
        old_runs.run(kept, "--workdir=tokenizer", "--config.train.steps=30")
    (line,) = [line for line in str(raised.value).splitlines() if "error: " in line]
    assert "is at step 40 already, beyond config.train.steps=30" in line


@SLOW
def test_a_tokenizer_is_scored(kept, expected, tmp_path):
    found = old_runs.scores_of(kept, str(tmp_path / "scores"))
    check_numbers(found, expected["eval"])


def test_a_codec_is_loaded(kept, arrays):
    latent, frames = old_runs.coded(kept / "tokenizer")
    np.testing.assert_allclose(latent, arrays["codec_latent"], rtol=1e-5, atol=1e-5)
    assert np.abs(frames.astype(int) - arrays["codec_frames"]).max() <= 1


@SLOW
def test_weights_go_in_and_out(runs, arrays):
    flags = ("--mode=convert", "--workdir=tokenizer")
    old_runs.run(runs, *flags, "--to=again.safetensors")
    again, before = (
        safetensors.numpy.load_file(runs / f"{name}.safetensors") for name in ("again", "tokenizer")
    )
    assert again.keys() == before.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(again[name], tensor)
    old_runs.run(runs, *flags, "--from=tokenizer.safetensors", "--to=imported")
    latent, frames = old_runs.coded(runs / "imported")
    np.testing.assert_allclose(latent, arrays["codec_latent"], rtol=1e-5, atol=1e-5)
    assert np.abs(frames.astype(int) - arrays["codec_frames"]).max() <= 1


def test_a_latent_set_is_complete_and_made_alike(runs):
    header = (runs / "latents" / "header.json").read_bytes()
    assert "is complete" in old_runs.encode_again(runs, "latents")
    assert (runs / "latents" / "header.json").read_bytes() == header
    old_runs.encode_again(runs, "latents_again")
    (latents, rows), (again, same_rows) = (
        old_runs.records(runs / name) for name in ("latents", "latents_again")
    )
    assert rows == same_rows and {row["label"] for row in rows} <= {
        *json.loads(header)["label_names"]
    }
    assert latents.shape == (24, 3, 8, 8, 4) and latents.dtype == np.float16
    # Where rounding to float16 falls the other way, one unit in the last place.
    np.testing.assert_array_max_ulp(again, latents, maxulp=1)


@pytest.mark.usefixtures("one_device")
def test_a_generator_samples(runs, arrays, monkeypatch):
    monkeypatch.chdir(runs)  # its config names the tokenizer relative to this folder
    latent, frames = old_runs.sample("generator")
    np.testing.assert_allclose(latent, arrays["sample_latent"], rtol=1e-5, atol=1e-5)
    assert np.abs(frames.astype(int) - arrays["sample_frames"]).max() <= 1
    # The stored key under its old name. Most fp8 products round as they did, some may not.
    old_runs.set_key(runs / "generator", "sampler.eight_bits", True)
    low, _ = old_runs.sample("generator")
    wanted = arrays["sample_latent_fp8"]
    assert np.abs(low - wanted).mean() < 0.1 * np.abs(wanted - latent).mean()


@SLOW
def test_videos_are_sampled_from_the_command_line(kept, tmp_path):
    prompt = f"--prompt={old_runs.PROMPT}"
    flags = ("--mode=sample", "--workdir=generator", prompt, f"--output={tmp_path}")
    old_runs.run(kept, *flags, "--config.sample.seed=3")
    about = json.loads((tmp_path / "samples.json").read_text())
    (row,) = about["videos"]
    assert (row["prompt"], row["label"], row["seed"]) == (old_runs.PROMPT, 4, 3)
    assert about["step"] == 40 and about["nfe"] == 8 and about["size"] == [5, 16, 16]
    assert (tmp_path / row["file"]).stat().st_size > 500


@SLOW
def test_a_run_starts_from_an_old_one_with_its_discriminator(runs):
    """The averaged weights, and the discriminator where the config says that it continues."""
    old_runs.set_key(runs / "tokenizer", "critic.continues", True)
    config = json.loads((runs / "tokenizer" / "config.json").read_text())
    config["train"]["init_from"], config["train"]["steps"] = "tokenizer", 1
    (runs / "next").mkdir()
    (runs / "next" / "config.json").write_text(json.dumps(config))
    out = old_runs.run(runs, "--workdir=next")
    assert "starting from tokenizer" in out and "goes on from tokenizer" in out


@SLOW
@pytest.mark.parametrize("mode", ["preview", "plan", "bench"])
def test_other_modes_read_a_tokenizer(runs, mode):
    flags = {
        "preview": (),
        "plan": ("--topology=cpu:1", "--config.plan.what=encode"),
        "bench": ("--config.bench.what=('encode',)", "--config.bench.repeats=1"),
    }
    old_runs.run(runs, f"--mode={mode}", "--workdir=tokenizer", *flags[mode])
