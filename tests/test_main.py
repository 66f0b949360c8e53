"""The command line: help, mistakes, where things go."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from vidlatent.config import split_overrides
from vidlatent.errors import VidlatentError
from vidlatent.main import (
    MODES,
    check_mode,
    describe_modes,
    resolve,
    split_imports,
)

ROOT = Path(__file__).parent.parent


def run(*args):
    return subprocess.run(
        [sys.executable, "-m", "vidlatent.main", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_split_overrides():
    argv = ["prog", "--config=c.py", "--config.a.b=1=2", "--mode=eval", "--config.c", "x"]
    assert split_overrides(argv) == (
        ["prog", "--config=c.py", "--mode=eval"],
        {"a.b": "1=2", "c": "x"},
    )
    with pytest.raises(VidlatentError, match="needs a value"):
        split_overrides(["prog", "--config.a"])


def test_workdir_defaults_to_config_and_preset(tmp_path):
    assert resolve("fsae", "", {})[1] == Path("runs/fsae-demo")
    assert resolve("fsae:paper", "", {})[1] == Path("runs/fsae-paper")
    assert resolve("fsae", str(tmp_path), {})[1] == tmp_path
    own = {"data.source": "folder", "data.path": "some/my videos/"}
    assert resolve("fsae", "", own, new=True)[1] == Path("runs/fsae-demo-my_videos")
    assert resolve("fsae", "", own)[1] == Path("runs/fsae-demo")
    assert resolve("fsae", str(tmp_path), own, new=True)[1] == tmp_path
    shapes = {"data.source": "synthetic"}
    assert resolve("fsae", "", shapes, new=True)[1] == Path("runs/fsae-demo-synthetic")
    # A preset whose path is left open names no data of its own.
    latents = {"data.path": "runs/latents"}
    assert resolve("fsvideo_dit", "", latents, new=True)[1] == Path("runs/fsvideo_dit-demo")
    with pytest.raises(VidlatentError, match="give --config"):
        resolve("", "", {})


def test_missing_accelerator_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    done = run("--config=configs/fsae.py", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "JAX finds no device" in done.stderr and "Traceback" not in done.stderr


def test_help_groups_flags_by_mode():
    done = run("--help")
    assert done.returncode == 0
    for name, mode in MODES.items():
        part = describe_modes(name)
        assert f"  {name:<13} {mode.about}" in part and mode.examples
        assert all(f"--{flag} " in part for flag in mode.flags)
        assert all(line in done.stdout for line in part.splitlines()[2:-4])
    assert done.stdout.count("python -m vidlatent.main") >= len(MODES)
    assert max(map(len, describe_modes().splitlines())) <= 100


def test_help_of_one_mode():
    only = run("--mode=plan", "--help")
    assert only.returncode == 0 and "--topology" in only.stdout and "  bench " not in only.stdout
    wrong = run("--mode=plna", "--help")
    assert wrong.returncode == 2 and "did you mean 'plan'?" in wrong.stderr


def test_help_config_lists_keys_with_values_and_meanings():
    done = run("--config=configs/fsae.py", "--config.optim.lr=0.5", "--help-config=optim")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and "--config.optim.lr=0.5" in lines
    assert lines[lines.index("--config.optim.lr=0.5") + 1].strip().startswith("peak learning rate")
    assert not [line for line in lines if line.startswith("--config.data.")]
    wrong = run("--help-config=optim.learning")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr


@pytest.mark.parametrize("name", MODES)
def test_a_mode_names_a_function_that_takes_its_flags(name):
    mode = MODES[name]
    module, _, function = mode.function.partition(":")
    found = getattr(importlib.import_module(f"vidlatent.{module}"), function)
    parameters = inspect.signature(found).parameters
    assert list(parameters)[:2] == ["config", "workdir"]
    if not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
        assert set(list(parameters)[2:]) == set(mode.flags)
    assert {need.partition("=")[0] for need in mode.needs} <= set(mode.flags)
    # Whoever reads --mode=plan opens plan/; modes with little of their own stand in another.
    homes = {"reconstruct": "codec", "compress": "codec", "decompress": "codec"}
    homes |= {"preview": "codec", "latents": "encode"}
    home = {"eval": "evaluate", **homes}.get(name, name)
    assert module.split(".")[0] == home


def test_flags_that_a_mode_does_not_read():
    for name, mode in MODES.items():
        needed = dict(need.split("=") for need in mode.needs)
        assert check_mode(name, needed) is mode
        for flag in {flag for other in MODES.values() for flag in other.flags} - {*mode.flags}:
            with pytest.raises(VidlatentError) as raised:
                check_mode(name, {**needed, flag: "x"})
            readers = [other for other in MODES if flag in MODES[other].flags]
            assert str(raised.value) == (
                f"--{flag} is not read by --mode={name}, only by {', '.join(readers)}: leave it "
                "out."
            )


def test_imports_are_separated_by_commas_or_given_twice():
    assert split_imports(["a, b.c", "", "d,"]) == ("a", "b.c", "d")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--config=configs/fsae.py", "--mode=trian"], "did you mean 'train'?"),
        (["--config=configs/fsae.py", "--config.optim.lrr=1"], "did you mean 'lr'?"),
        (["--config=configs/fsea.py"], "did you mean 'fsae'?"),
        (["--config=configs/fsae.py", "--config.kernels.attention=splahs"], "'splash'?"),
        (["--config=configs/fsae.py", "extra"], "unexpected argument 'extra'"),
        (["--mode=eval", "--workdir=nowhere"], "train first"),
        (["--mode=plan", "--config=fsae"], "--mode=plan needs --topology=v5p:4x4x4"),
        (["--mode=reconstruct", "--config=fsae", "--input=a.mp4"], "needs --output=restored.mp4"),
        (["--mode=encode", "--config=fsae"], "needs --output=latents"),
        (["--config=fsae", "--prompt=hello"], "--prompt is not read by --mode=train, only by s"),
        (["--config=fsae", "--import=not_there"], "--import=not_there: the module cannot be"),
        (["--config=configs/fsae.py", "--workdir=/proc/none"], "/proc/none"),
        (["--config=configs/fsae.py", "--config.data.buckets=((8, 64, 64, 4),)"], "5 or 9"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_failing_exit(args, says, tmp_path):
    if not any(arg.startswith("--workdir") for arg in args):
        args = [*args, f"--workdir={tmp_path / 'run'}"]
    done = run(*args)
    assert done.returncode == 2
    error = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and says in error[0]
    assert "Traceback" not in done.stderr
