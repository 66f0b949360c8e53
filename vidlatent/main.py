"""vidlatent: train, score and use highly compressed video latents.

Modes, each with an example:

  train         learn from videos; run again, it resumes
                python -m vidlatent.main --config=configs/fsae.py
                python -m vidlatent.main --config=configs/fsae.py \\
                    --config.data.source=folder --config.data.path=my_videos
  eval          score a trained tokenizer: JSON and an HTML page with pictures
                python -m vidlatent.main --mode=eval --workdir=runs/fsae-demo
  reconstruct   compress and restore one video of any length
                python -m vidlatent.main --mode=reconstruct --workdir=runs/fsae-demo \\
                    --input=my.mp4 --output=restored.mp4
  sample        videos from a trained generator: of classes, texts, or a first picture
                python -m vidlatent.main --mode=sample --workdir=runs/fsvideo_dit-demo \\
                    --prompt='red square moving left' --config.sample.count=4
                python -m vidlatent.main --mode=sample --workdir=runs/fsvideo_dit-demo \\
                    --prompts=prompts.txt --output=videos --config.sample.vbench=true
  preview       fit a linear map from latents to small pictures, for a quick look at latents
                python -m vidlatent.main --mode=preview --workdir=runs/fsae-demo
  encode        a folder, TFDS set or renderer into a latent data set; run again, it goes on
                python -m vidlatent.main --mode=encode --workdir=runs/fsae-demo \\
                    --config.data.source=folder --config.data.path=my_videos --output=latents
  convert       weights of other code to a workdir or a file, and back
                python -m vidlatent.main --mode=convert --config=configs/dcae.py:paper \\
                    --from=dc-ae.safetensors --to=runs/dcae-paper
                python -m vidlatent.main --mode=convert --workdir=runs/fsae-demo \\
                    --to=fsae.safetensors
  plan          what a job needs on a machine that is not there: memory, operations, time at best
                python -m vidlatent.main --mode=plan --config=configs/fsae.py:paper \\
                    --topology=v5p:4x4x4 --config.plan.what=train
  bench         how fast a config's programs are here, and how near this device's best
                python -m vidlatent.main --mode=bench --config=configs/fsae.py

Any key of a config is set by --config.a.b=value.
"""

from __future__ import annotations

import logging as std_logging
import os
import sys
from pathlib import Path

from absl import app, flags, logging

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.registry import Registry

_MODES = Registry("mode")
_MODES.register("train", "vidlatent.train.loop:train")
_MODES.register("eval", "vidlatent.evaluate.run:evaluate_workdir")
_MODES.register("reconstruct", "vidlatent.codec.reconstruct:reconstruct_video")
_MODES.register("sample", "vidlatent.sample.run:generate_videos")
_MODES.register("preview", "vidlatent.codec.preview:fit_preview")
_MODES.register("encode", "vidlatent.encode.run:encode_set")
_MODES.register("convert", "vidlatent.convert.run:convert")
_MODES.register("plan", "vidlatent.plan.run:plan")
_MODES.register("bench", "vidlatent.bench.run:bench")
# Flags that a mode takes besides the config and the workdir.
_TAKES = {
    "train": (),
    "eval": ("step", "output"),
    "reconstruct": ("step", "input", "output"),
    "sample": ("step", "output", "prompt", "prompts", "input"),
    "preview": ("step",),
    "encode": ("step", "output"),
    "plan": ("topology", "output"),
    "bench": ("output",),
    "convert": ("step", "from", "to", "from_table", "to_table", "start", "verify"),
}

_MODE = flags.DEFINE_string("mode", "train", " | ".join(_TAKES))
_CONFIG = flags.DEFINE_string("config", "", "Config file and argument: configs/fsae.py:paper")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; default runs/<config>-<preset>")
flags.DEFINE_string("input", "", "Video to read (reconstruct), or picture to start from (sample)")
flags.DEFINE_string(
    "output",
    "",
    "Video to write (reconstruct), or folder of the report (eval), videos (sample) or set (encode)",
)
flags.DEFINE_string("prompt", "", "Text, or name or number of a class (sample)")
flags.DEFINE_string(
    "prompts", "", "File of prompts, one a line or objects in .jsonl, or folder of them (sample)"
)
flags.DEFINE_string("topology", "", "Machine: v5p:4x4x4, v6e:16x16, v5e:2x4, cpu:8, ... (plan)")
flags.DEFINE_integer("step", -1, "Checkpoint to use; default the newest (all but train)")
flags.DEFINE_string("from", "", "Weights file or workdir to read (convert)")
flags.DEFINE_string("to", "", "Weights file or workdir to write (convert)")
flags.DEFINE_string("from_table", "auto", "Naming of the file read (convert)")
flags.DEFINE_string("to_table", "auto", "Naming of the file written (convert)")
flags.DEFINE_string("start", "", "Form that the weights are turned from, if another (convert)")
flags.DEFINE_string("verify", "", "Folder of a reference case to run (convert)")


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take ``--config.a.b=value`` (or ``--config.a.b value``) out of a command line."""
    rest, overrides = [], {}
    words = iter(argv)
    for word in words:
        if not word.lstrip("-").startswith("config.") or not word.startswith("-"):
            rest.append(word)
            continue
        key, equals, value = word.lstrip("-").removeprefix("config.").partition("=")
        if not equals:
            value = next(words, None)
            if value is None:
                raise VidlatentError(f"{word} needs a value: {word}=...")
        overrides[key] = value
    return rest, overrides


def resolve(config: str, workdir: str, overrides: dict[str, str]):
    """``(config, workdir)``: from the config file, or from what the workdir was trained with."""
    if config:
        loaded = configs.load(config, overrides)
        return loaded, Path(workdir or f"runs/{loaded.name}-{loaded.preset}")
    if workdir:
        return configs.read(Path(workdir), overrides), Path(workdir)
    raise VidlatentError("give --config=configs/fsae.py (or the --workdir of an earlier run).")


def _prepare_process() -> None:
    logging.get_absl_handler().setFormatter(_Plain())
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold("info")
    std_logging.getLogger("jax").setLevel(std_logging.WARNING)  # e.g. which backends are absent
    import jax

    from vidlatent.parallel.compilation import keep_compiled
    from vidlatent.parallel.multihost import initialize

    keep_compiled()
    initialize()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise VidlatentError(
            f"JAX finds no device of the platforms asked for (JAX_PLATFORMS="
            f"{os.environ.get('JAX_PLATFORMS', '')!r}): install the extra 'gpu' or 'tpu', or unset "
            "the variable."
        ) from error


def _use_kernels(config) -> None:
    from vidlatent.kernels.dispatch import use_forms  # imports JAX, which takes its time

    use_forms(config.kernels)


class _Plain(logging.PythonFormatter):
    """``12:30:59 message``; the level only when it is not INFO."""

    def format(self, record):
        level = "" if record.levelname == "INFO" else f"{record.levelname.lower()}: "
        return f"{self.formatTime(record, '%H:%M:%S')} {level}{record.getMessage()}"


def run() -> None:
    """Entry point of ``vidlatent`` and ``python -m vidlatent.main``."""
    try:
        argv, overrides = split_overrides(sys.argv)
    except VidlatentError as error:
        sys.exit(f"error: {error}")

    def main(rest: list[str]) -> int:
        try:
            if rest[1:]:
                raise VidlatentError(f"unexpected argument {rest[1]!r}: flags start with --.")
            mode = _MODE.value
            job = _MODES.get(mode)
            config, workdir = resolve(_CONFIG.value, _WORKDIR.value, overrides)
            _prepare_process()
            _use_kernels(config)
            options = {name: flags.FLAGS[name].value for name in _TAKES[mode]}
            return job(config, workdir, **options)
        except VidlatentError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except OSError as error:
            print(
                f"error: {error}: check the path, its permissions and the free space; "
                "checkpoints already saved are untouched.",
                file=sys.stderr,
            )
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    app.run(main, argv=argv)


if __name__ == "__main__":
    run()
