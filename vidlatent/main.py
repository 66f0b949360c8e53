"""The command line: ``python -m vidlatent.main --config=... --mode=...``, or ``vidlatent``.

``MODES`` has a row for each mode: the function that does the work, the flags that it takes, and an
example of its use. ``--help``, the choice of the function and the check of the flags follow it.
``--help-config`` lists config keys.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging as std_logging
import os
import re
import sys
from pathlib import Path

from absl import app, flags, logging

from vidlatent import config as configs
from vidlatent.config.meanings import describe_keys
from vidlatent.errors import VidlatentError
from vidlatent.paths import as_path, local_copy
from vidlatent.registry import did_you_mean


@dataclasses.dataclass(frozen=True)
class Mode:
    """One row of the table of modes.

    Attributes:
      function: ``package.module:name`` in ``vidlatent``, called with config, workdir and flags.
      about: what it does, in a line.
      examples: command lines without ``python -m vidlatent.main``.
      flags: those that it takes beside --config, --workdir and --import, as arguments of the
        function.
      needs: those among them without which it cannot work, with an example.
      bare: whether it goes without a config, and before JAX is asked for devices.
      alone: whether it can go without a config and a workdir; then its config has no model.
    """

    function: str
    about: str
    examples: tuple[str, ...]
    flags: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    bare: bool = False
    alone: bool = False


MODES = {
    "train": Mode(
        "train.loop:train",
        "train on videos; run again, it resumes",
        (
            "--config=configs/fsae.py",
            "--config=configs/fsae.py --config.data.source=folder --config.data.path=my_videos",
        ),
    ),
    "eval": Mode(
        "evaluate.run:evaluate_workdir",
        "score a trained model: JSON and an HTML page with pictures",
        ("--mode=eval --workdir=runs/fsae-demo",),
        ("step", "output"),
    ),
    "reconstruct": Mode(
        "codec.reconstruct:reconstruct_video",
        "compress and restore one video of any length",
        (
            "--mode=reconstruct --workdir=runs/fsae-demo --input=my.mp4 --output=restored.mp4",
            "--mode=reconstruct --config=configs/wan_vae.py:wan21 --from=Wan2.1_VAE.safetensors "
            "--input=my.mp4 --output=restored.mp4",
        ),
        ("step", "input", "output", "from", "from_table"),
        ("input=my.mp4", "output=restored.mp4"),
    ),
    "compress": Mode(
        "codec.latent_files:compress_video",
        "turn one video into a latent file: rate, times and sound are kept",
        (
            "--mode=compress --workdir=runs/fsae-demo --input=my.mp4 --output=my.vlat",
            "--mode=compress --workdir=runs/fsae-demo --input=my.mp4 --output=my.vlat "
            "--config.compress.weights=true",
        ),
        ("step", "input", "output", "from", "from_table"),
        ("input=my.mp4", "output=my.vlat"),
    ),
    "decompress": Mode(
        "codec.latent_files:decompress_video",
        "turn a latent file into a video again",
        (
            "--mode=decompress --workdir=runs/fsae-demo --input=my.vlat --output=restored.mp4",
            "--mode=decompress --input=with_weights.vlat --output=restored.mp4",
        ),
        ("step", "input", "output", "from", "from_table"),
        ("input=my.vlat", "output=restored.mp4"),
        alone=True,
    ),
    "sample": Mode(
        "sample.run:generate_videos",
        "videos from a trained generator, by class, text or first picture",
        (
            "--mode=sample --workdir=runs/fsvideo_dit-demo --prompt='red square moving left'",
            "--mode=sample --workdir=runs/fsvideo_dit-demo --prompts=prompts.txt --output=videos",
            "--mode=sample --workdir=runs/fsvideo_dit-demo-first --input=picture.png "
            "--prompt='red square moving left'",
        ),
        ("step", "output", "prompt", "prompts", "input"),
    ),
    "preview": Mode(
        "codec.preview:fit_preview",
        "fit a linear map from latents to small pictures, for a quick look at latents",
        ("--mode=preview --workdir=runs/fsae-demo",),
        ("step",),
    ),
    "latents": Mode(
        "encode.statistics:measure_latents",
        "measure the mean and deviation of a tokenizer's latents once, for generators",
        ("--mode=latents --workdir=runs/fsae-demo",),
        ("step",),
    ),
    "encode": Mode(
        "encode.run:encode_set",
        "turn a folder, TFDS set or renderer into a latent data set; run again, it resumes",
        (
            "--mode=encode --workdir=runs/fsae-demo --output=latents "
            "--config.data.source=folder --config.data.path=my_videos",
            "--mode=encode --config=configs/fsvideo_dit.py:paper,stage=image "
            "--workdir=runs/fsae-standard --config.data.path=my_videos --output=latents",
        ),
        ("step", "output"),
        ("output=latents",),
    ),
    "convert": Mode(
        "convert.run:convert",
        "turn weights of other code into a workdir or a file, and back",
        (
            "--mode=convert --config=configs/dcae.py:paper "
            "--from=diffusion_pytorch_model.safetensors --to=runs/dcae-paper",
            "--mode=convert --workdir=runs/fsae-demo --to=fsae.safetensors",
        ),
        ("step", "from", "to", "from_table", "to_table", "start", "verify", "overwrite"),
    ),
    "plan": Mode(
        "plan.run:plan",
        "estimate memory, time and cost of a job on hardware you do not have",
        (
            "--mode=plan --config=configs/fsae.py:paper --topology=v5p:4x4x4 "
            "--config.plan.what=train",
        ),
        ("topology", "output"),
        ("topology=v5p:4x4x4",),
    ),
    "preflight": Mode(
        "preflight.run:inspect_machine",
        "look in seconds whether a machine is fit for a run: links, memory, storage",
        ("--mode=preflight --config=configs/fsae.py --workdir=runs/fsae-demo",),
        ("topology", "output"),
    ),
    "bench": Mode(
        "bench.run:bench",
        "measure how fast a config's programs run here, against this device's best",
        ("--mode=bench --config=configs/fsae.py",),
        ("output",),
    ),
    "doctor": Mode(
        "doctor.run:examine",
        "versions, devices, decoders, extras, cache and disk, for a report of a problem",
        ("--mode=doctor", "--mode=doctor --output=doctor.md"),
        ("output",),
        bare=True,
    ),
}
# Of all modes; the flags of one mode are in MODES.
_COMMON = {
    "mode": "what to do; default train",
    "config": "config file and argument, configs/fsae.py:paper; default that of --workdir",
    "workdir": "folder of the run; default runs/<config>-<preset>, -<data> if that is your own",
    "import": "module that registers models, losses, ... of your own; may be repeated",
    "config.KEY=VALUE": "any key of the config; --help-config lists them",
}


def describe_modes(only: str = "") -> str:
    """The table of modes as text, for ``--help``: each with its flags and examples.

    Args:
      only: name of a mode, to be told of that one alone.
    """
    lines = ["vidlatent: train, score and use highly compressed video latents.", ""]
    if not only:
        lines += ["Flags of every mode:", ""]
        lines += [f"  --{name:<18}{about}" for name, about in _COMMON.items()]
        lines += ["", "Modes, each with its own flags and examples:", ""]
    for name, mode in MODES.items():
        if only not in ("", name):
            continue
        lines.append(f"  {name:<13} {mode.about}")
        needed = {need.partition("=")[0] for need in mode.needs}
        for flag in mode.flags:
            end = "; needed" if flag in needed else ""
            lines.append(f"{'':16}--{flag:<12} {_ABOUT[flag]}{end}")
        for example in mode.examples:
            lines.append(" " * 16 + wrap_example(example, 20))
        lines.append("")
    lines += [
        "--mode=MODE --help tells of one mode; --help-config lists config keys with meanings and",
        "values, --config=configs/fsae.py --help-config=optim those of one config and section.",
        "",
    ]
    return "\n".join(lines)


def wrap_example(example: str, indent: int) -> str:
    """A mode's example as a command, in lines of at most 80 characters beside their indent."""
    # Split before flags only: a quoted prompt with spaces stays in one piece.
    words = re.split(r" (?=--)", f"python -m vidlatent.main {example}")
    rows = [words[0]]
    for word in words[1:]:
        if len(rows[-1]) + len(word) < 80:
            rows[-1] += f" {word}"
        else:
            rows.append(word)
    return (" \\\n" + " " * indent).join(rows)


def _readers(flag: str) -> str:
    return ", ".join(name for name, mode in MODES.items() if flag in mode.flags)


_ABOUT = {
    "input": "Video to read, or picture to start from",
    "output": "Video, report or folder to write",
    "prompt": "Text, or name or number of a class",
    "prompts": "File of prompts, one a line or objects in .jsonl, or a folder of them",
    "topology": "Machine: v5p:4x4x4, v6e:16x16, v5e:2x4, cpu:8, ...",
    "step": "Checkpoint to use; default the newest",
    "from": "Weights file or workdir to read",
    "to": "Weights file or workdir to write",
    "from_table": "Naming of the file read",
    "to_table": "Naming of the file written",
    "start": "Form that the weights are turned from, if another",
    "verify": "Folder of a reference case to run",
    "overwrite": "Replace the file of --to if there is one",
}
_DEFAULTS: dict[str, str | int | bool] = {
    "step": -1,
    "from_table": "auto",
    "to_table": "auto",
    "overwrite": False,
}


def _define_flags() -> None:
    flags.DEFINE_string("mode", "train", " | ".join(MODES))
    flags.DEFINE_string("config", "", _COMMON["config"])
    flags.DEFINE_string("workdir", "", _COMMON["workdir"])
    flags.DEFINE_multi_string("import", [], _COMMON["import"])
    kinds = {str: flags.DEFINE_string, int: flags.DEFINE_integer, bool: flags.DEFINE_bool}
    for name, about in _ABOUT.items():
        default = _DEFAULTS.get(name, "")
        kinds[type(default)](name, default, f"{about} ({_readers(name)})")


_define_flags()


def split_imports(given: list[str]) -> tuple[str, ...]:
    """Module names of ``--import=a,b --import=c``."""
    return tuple(name.strip() for part in given for name in part.split(",") if name.strip())


def check_mode(name: str, given: dict[str, str | int]) -> Mode:
    """The row of a mode.

    Args:
      name: of the mode.
      given: the flags that were given, with their values.

    Raises:
      VidlatentError: no such mode, a flag that it does not read, or one that it needs is missing.
    """
    if name not in MODES:
        raise VidlatentError(f"unknown mode {name!r}: {did_you_mean(name, MODES)}")
    mode = MODES[name]
    for flag in given:
        if flag not in mode.flags:
            raise VidlatentError(
                f"--{flag} is not read by --mode={name}, only by {_readers(flag)}: leave it out."
            )
    missing = [f"--{need}" for need in mode.needs if not given.get(need.partition("=")[0])]
    if missing:
        raise VidlatentError(f"--mode={name} needs {' and '.join(missing)}.")
    return mode


def resolve(
    config: str,
    workdir: str,
    overrides: dict[str, str],
    imports: tuple[str, ...] = (),
    *,
    new: bool = False,
    alone: bool = False,
) -> tuple[configs.ConfigDict, Path]:
    """``(config, workdir)``: from the config file, or from what the workdir was trained with.

    A ``new`` run, one that is to be trained, is by default named after its data, too, if that is
    not the config's own. Only a mode that can work ``alone`` may be given neither.
    """
    if config:
        loaded = configs.load(config, overrides, imports)
        name = f"runs/{loaded.name}-{loaded.preset}"
        if new and not workdir and {"data.source", "data.path"} & {*overrides}:
            own = configs.load_base(config).data
            # Many presets leave the path to be given: giving it names no other data.
            if own.source != loaded.data.source or own.path not in ("", loaded.data.path):
                name += f"-{configs.name_data(loaded.data)}"
        return loaded, as_path(workdir or name)
    if workdir:
        return configs.read(as_path(workdir), overrides, imports), as_path(workdir)
    if alone:
        return configs.load_defaults(overrides, imports), as_path(".")
    raise VidlatentError("give --config=configs/fsae.py (or the --workdir of an earlier run).")


def _prepare_process(timeouts: configs.ConfigDict) -> None:
    # Imported late, so that --help and mistakes in flags are answered at once.
    import jax

    from vidlatent.parallel.compilation import announce_compilations, keep_compiled
    from vidlatent.parallel.joining import check_joined, join
    from vidlatent.parallel.together import watch
    from vidlatent.report.log_file import NotNoisy, capture_noise, write_above_bars

    # Processes must be joined before anything asks JAX for a device.
    logging.get_absl_handler().addFilter(NotNoisy())
    write_above_bars(logging.get_absl_handler())
    capture_noise()
    keep_compiled()
    announced = join(timeouts.join_timeout, timeouts.silence_timeout)
    watch(timeouts.silence_timeout, timeouts.compare_timeout)
    try:
        # A missing platform shows here, with a remedy, and not in the middle of a mode.
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise VidlatentError(
            f"JAX finds no device of the platforms asked for (JAX_PLATFORMS="
            f"{os.environ.get('JAX_PLATFORMS', '')!r}): install the extra 'gpu' or 'tpu', or unset "
            "the variable."
        ) from error
    check_joined(announced)
    announce_compilations()


def _use_kernels(config: configs.ConfigDict) -> None:
    from vidlatent.kernels.dispatch import use_forms  # imports JAX, which takes its time

    use_forms(config.kernels)


class _Plain(logging.PythonFormatter):
    """``12:30:59 message``; the level only when it is not INFO."""

    def format(self, record: std_logging.LogRecord) -> str:
        level = "" if record.levelname == "INFO" else f"{record.levelname.lower()}: "
        return f"{self.formatTime(record, '%H:%M:%S')} {level}{record.getMessage()}"


def _prepare_logging() -> None:
    logging.get_absl_handler().setFormatter(_Plain())
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold("info")
    std_logging.getLogger("jax").setLevel(std_logging.WARNING)  # e.g. which backends are absent


def _answer_help(argv: list[str], overrides: dict[str, str]) -> str | None:
    """What ``--help`` or ``--help-config`` among the arguments asks for; None without them.

    Raises:
      VidlatentError: there is no such mode, config or key.
    """
    given = dict(word.lstrip("-").partition("=")[::2] for word in argv if word.startswith("-"))
    if "help-config" in given:
        config = configs.get_defaults("", "")
        if given.get("config") or given.get("workdir"):
            imports = split_imports([given.get("import", "")])
            config, _ = resolve(
                given.get("config", ""), given.get("workdir", ""), overrides, imports
            )
        return describe_keys(config, given["help-config"].removeprefix("config."))
    if {"help", "h", "helpshort"} & {*given}:
        only = given.get("help") or given.get("mode", "")
        if only and only not in MODES:
            raise VidlatentError(f"unknown mode {only!r}: {did_you_mean(only, MODES)}")
        return describe_modes(only)
    return None


def _run_mode(rest: list[str], overrides: dict[str, str]) -> int:
    values = flags.FLAGS
    if rest[1:]:
        raise VidlatentError(f"unexpected argument {rest[1]!r}: flags start with --.")
    # Only flags that were typed are checked: a mode may ignore the defaults of the others.
    known = {flag for mode in MODES.values() for flag in mode.flags}
    given = {flag: values[flag].value for flag in sorted(known) if values[flag].present}
    mode = check_mode(values.mode, given)
    imports = split_imports(values["import"].value)
    module, _, name = mode.function.partition(":")
    arguments = {flag: values[flag].value for flag in mode.flags}
    if mode.bare:
        function = getattr(importlib.import_module(f"vidlatent.{module}"), name)
        return function(configs.get_defaults("", ""), as_path(values.workdir or "."), **arguments)
    config, workdir = resolve(
        *(values.config, values.workdir, overrides, imports),
        new=values.mode == "train",
        alone=mode.alone,
    )
    _prepare_process(config.processes)
    _use_kernels(config)
    function = getattr(importlib.import_module(f"vidlatent.{module}"), name)
    if arguments.get("input"):
        arguments["input"] = local_copy(arguments["input"])
    if values.mode == "train" and config.processes.preflight:
        from vidlatent.preflight.run import refuse_unfit_machine

        refuse_unfit_machine(config, workdir, config.processes.topology)
    return function(config, workdir, **arguments)


def run() -> None:
    """Entry point of ``vidlatent`` and ``python -m vidlatent.main``."""
    try:
        argv, overrides = configs.split_overrides(sys.argv)
        answer = _answer_help(argv[1:], overrides)
    except VidlatentError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if answer is not None:
        print(answer)
        return

    def main(rest: list[str]) -> int:
        try:
            _prepare_logging()
            return _run_mode(rest, overrides)
        except (Exception, KeyboardInterrupt) as error:
            # The one place that catches everything: whatever it is, it ends as one sentence.
            from vidlatent.report.ending import end_by  # imports JAX, which takes its time

            return end_by(error)

    app.run(main, argv=argv)


if __name__ == "__main__":
    run()
