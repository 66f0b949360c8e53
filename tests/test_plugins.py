"""A package that vidlatent does not know adds one of everything, in every mode.

``tests/example_plugin`` is that package. Each command runs in a process of its own; only those that
make a run name the package, the others find its name in the run's config.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vidlatent.config.imports import import_packages
from vidlatent.errors import VidlatentError

TESTS = Path(__file__).parent
PLUGIN = TESTS / "example_plugin"
SLOW = pytest.mark.slow  # processes that compile


def run(folder, *command, path=(TESTS.parent, TESTS)):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={"JAX_PLATFORMS": "cpu", **os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def vidlatent(folder, *flags):
    code, output = run(folder, "-m", "vidlatent.main", *flags)
    assert code == 0, output[-3000:]
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds ``tokenizer``, trained for two steps."""
    folder = tmp_path_factory.mktemp("plugin")
    config = f"--config={PLUGIN / 'tokenizer_config.py'}"
    output = vidlatent(folder, "--import=example_plugin", config, "--workdir=tokenizer")
    assert "step 2/2" in output and "the example source: 12 clips" in output
    stored = json.loads((folder / "tokenizer" / "config.json").read_text())
    assert stored["imports"] == ["example_plugin"]
    return folder


@pytest.fixture(scope="module")
def generator(folder):
    """The name of a run beside ``tokenizer``, of a generator on its latents."""
    config = f"--config={PLUGIN / 'generator_config.py'}"
    vidlatent(folder, "--import=example_plugin", config, "--workdir=generator")
    return "generator"


def test_training_used_task_loss_and_discriminator(folder):
    rows = (folder / "tokenizer" / "metrics.jsonl").read_text()
    for name in ("example_task", "example_loss", "discriminator"):
        assert f"train/{name}" in rows


def test_scores_from_the_workdir_alone(folder):
    vidlatent(folder, "--mode=eval", "--workdir=tokenizer")
    report = json.loads((folder / "tokenizer" / "eval" / "step_2" / "scores.json").read_text())
    assert report["scores"]["example_metric"] > 0


def test_a_codec_in_a_fresh_process(folder):
    program = (
        "import numpy as np, vidlatent; codec = vidlatent.load_codec('tokenizer'); "
        "coded = codec.encode(np.zeros((5, 16, 16, 3), np.uint8)); "
        "assert coded.latent.shape[-1] == 4 and codec.decode(coded).shape == (5, 16, 16, 3)"
    )
    code, output = run(folder, "-c", program)
    assert code == 0, output[-3000:]


def test_a_run_whose_package_is_missing_is_one_sentence(folder):
    code, output = run(
        folder, "-m", "vidlatent.main", "--mode=eval", "--workdir=tokenizer", path=(TESTS.parent,)
    )
    assert code == 2 and "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "config.imports names 'example_plugin': the module cannot be imported (Module" in line
    assert "PYTHONPATH" in line


@SLOW
def test_a_generator_samples_from_the_workdir_alone(folder, generator):
    vidlatent(folder, "--mode=sample", f"--workdir={generator}", "--output=made")
    settings = json.loads((folder / "made" / "samples.json").read_text())
    assert settings["sampler"]["name"] == "example_sampler"
    assert settings["schedule"]["name"] == "example_schedule"
    assert len(list((folder / "made").glob("*.mp4"))) == 1
    program = (
        f"import vidlatent; generator = vidlatent.load_generator({generator!r}, steps=3); "
        "assert generator.config.sampler.steps == 3 and generator.size == (3, 16, 16)"
    )
    code, output = run(folder, "-c", program)
    assert code == 0, output[-3000:]


@SLOW
def test_latents_and_preview_from_the_workdir_alone(folder):
    assert "12 windows" in vidlatent(
        folder, "--mode=encode", "--workdir=tokenizer", "--output=latents"
    )
    assert (folder / "latents" / "contact_sheet.png").exists()
    vidlatent(folder, "--mode=preview", "--workdir=tokenizer")
    program = (
        "import numpy as np; from vidlatent.media.write import write_video; "
        "write_video('clip.mp4', np.zeros((5, 16, 16, 3), np.uint8), 8.0)"
    )
    code, output = run(folder, "-c", program)
    assert code == 0, output
    flags = ("--mode=reconstruct", "--workdir=tokenizer", "--input=clip.mp4", "--output=out.mp4")
    assert "5 frames" in vidlatent(folder, *flags)


def test_importing_packages(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plugin_that_fails.py").write_text("raise RuntimeError('two\\nlines')\n")
    (tmp_path / "plugin_that_works.py").write_text("")
    assert import_packages(["plugin_that_works"] * 2) == ("plugin_that_works",)
    for name, says in (
        ("plugin_that_fails", "RuntimeError: two lines"),
        ("no_such_plugin", "ModuleNotFoundError"),
        ("..odd", "--import=..odd: the module cannot be imported"),
    ):
        with pytest.raises(VidlatentError) as raised:
            import_packages([name])
        assert says in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(VidlatentError, match="^config.imports names 'no_such_plugin': the module"):
        import_packages(["plugin_that_works", "no_such_plugin"], ["no_such_plugin"])
