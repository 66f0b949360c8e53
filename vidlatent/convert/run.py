"""``--mode=convert``: weights from one file format, naming or model form into another.

What a run with adapters trained is written merged (``config.optim.lora``).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.checkpoint.storage import remove_unfinished
from vidlatent.convert.cases import TOLERANCE, run_case
from vidlatent.errors import VidlatentError
from vidlatent.latents.channels import follow_latents
from vidlatent.latents.space import Latents
from vidlatent.latents.statistics import copy_statistics
from vidlatent.models.load import model_of, open_checkpoints, smallest_video
from vidlatent.parallel.compilation import quick_options
from vidlatent.paths import as_path, same_place
from vidlatent.spec import LatentSpec
from vidlatent.train.init_from import load_initial_params
from vidlatent.train.state import random_key
from vidlatent.train.tasks.base import TASKS
from vidlatent.weights.files import is_workdir, save_params

__all__ = ["convert"]


def convert(config: ConfigDict, workdir: Path, **options: Any) -> int:
    """Read weights, check them against the model of ``config``, write them, run a reference case.

    Options (flags of the same names):
      from: weights file, folder of ``.safetensors`` files, or workdir; by default the workdir of
        ``--workdir`` if it holds a run.
      to: ``.safetensors`` file, or a folder that becomes a workdir, which ``eval`` and
        ``reconstruct`` read and training can start from (``config.train.init_from``). Empty: only
        check the weights.
      from_table, to_table: naming of the files (``weights.tables.TABLES``); by default it is
        recognised.
      start: '' when the weights are of this model, else the form that they are turned from
        (``weights.tables.INIT_KINDS``): image, standard, lite.
      verify: folder of a reference case: a model of its hyper-parameters, with the weights of
        ``from`` (or its own), must give its stored outputs.
      step: checkpoint of a workdir; below 0 the newest.
      overwrite: replace a file that exists (a workdir with a run is never replaced).

    Returns:
      Exit status.

    Raises:
      VidlatentError: files are missing, weights do not fit, or a generator is asked for what only
        tokenizers have.
    """
    source, target, case = options["from"], options["to"], options["verify"]
    config, family = _find_model(config, options)
    if case:
        _verify(case, family, "" if is_workdir(source) else source, options["from_table"])
        if not target:
            return 0
    source = source or (str(workdir) if is_workdir(workdir) else "")
    if not source:
        raise VidlatentError(
            "--mode=convert needs --from=weights.safetensors (or a workdir) and --to=...; "
            "--verify=folder alone runs a reference case."
        )
    params = _read(config, family, source, options)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    logging.info("%s: %d arrays, %d parameters", source, len(jax.tree.leaves(params)), count)
    if not target:
        logging.info("the weights fit the model; --to=... writes them")
    # A name with a suffix is a file, any other a workdir.
    elif as_path(target).suffix:
        if same_place(target, source):
            raise VidlatentError(f"--to={target} would overwrite the source: choose another name.")
        if as_path(target).exists() and not options.get("overwrite"):
            raise VidlatentError(
                f"--to={target} exists already: choose another name, or add --overwrite."
            )
        number = save_params(target, params, family=family, table=options["to_table"])
        logging.info("wrote %d tensors to %s", number, target)
    else:
        _write_workdir(config, as_path(target), params, source)
        logging.info("wrote the workdir %s", target)
    return 0


def _find_model(config: ConfigDict, options: dict[str, Any]) -> tuple[ConfigDict, str]:
    """The config that the model is made from, and the model's name; refuses a tokenizer's options.

    Raises:
      VidlatentError: a generator is asked for what only tokenizers have.
    """
    if not configs.is_generator(config):
        return config, config.model.name
    for name in ("start", "verify"):
        if options[name]:
            raise VidlatentError(
                f"--mode=convert has --{name} for tokenizers; {config.name} is of the task "
                f"{config.task!r}: training starts from other weights by config.train.init_kind."
            )
    target = options["to"]
    if target and not as_path(target).suffix and not is_workdir(options["from"] or ""):
        raise VidlatentError(
            f"--to={target} is to be the run of a {config.task}, which also knows its latents: "
            "give --from the workdir of a run, or --to a .safetensors file."
        )
    return follow_latents(config), config.generator.name


def _read(config: ConfigDict, family: str, source: str, options: dict[str, Any]) -> Any:
    def fresh():
        model = model_of(config)
        video = np.zeros(smallest_video(model.latent_spec), np.float32)
        init = jax.jit(model.init, compiler_options=quick_options())
        return init(random_key(config.seed, "params"), video)["params"]

    return load_initial_params(
        source,
        TASKS.get(config.task).abstract_params(config),
        fresh,
        family=family,
        kind=options["start"],
        table=options["from_table"],
        step=None if options["step"] < 0 else options["step"],
    )


def _verify(case: str, family: str, weights: str, table: str) -> None:
    errors = run_case(case, family, weights, table)
    for name, error in errors.items():
        logging.info("%s: largest error %.2g", name, error)
    # "not <=" also catches NaN.
    wrong = [name for name, error in errors.items() if not error <= TOLERANCE]
    if wrong:
        raise VidlatentError(
            f"{weights or case} does not reproduce the case {case}: {', '.join(wrong)} differ by "
            f"more than {TOLERANCE:g}."
        )


def _write_workdir(config: ConfigDict, workdir: Path, params: Any, source: str = "") -> None:
    """Write a run of these weights, and what ``source``, if it is a run, knows about latents."""
    if is_workdir(workdir):
        raise VidlatentError(f"--to={workdir} holds a run already: choose another folder.")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        # These weights are whole, whatever those of the source were made of.
        config.optim.lora.rank, config.train.init_from = 0, ""
    with _prepare_folder(workdir) as part:
        if configs.is_generator(config):
            latents = Latents.load(as_path(source))
            _save_into(config, part, params, latents.spec)
            latents.write_or_check(part, 0)
            return
        _save_into(config, part, params, model_of(config).latent_spec)
        if source and is_workdir(source):
            copy_statistics(source, part)


@contextlib.contextmanager
def _prepare_folder(workdir: Path) -> Iterator[Path]:
    """A folder that takes the name ``workdir`` when the block ends without an error."""
    if workdir.exists() and any(workdir.iterdir()):
        raise VidlatentError(f"--to={workdir} is not empty: choose another folder.")
    part = workdir.with_name(f"{workdir.name}.{os.getpid()}.partial")
    try:
        part.mkdir(parents=True)
        yield part
        if workdir.exists():
            workdir.rmdir()
        part.rename(workdir)
    except OSError as error:
        raise VidlatentError(
            f"--to={workdir} cannot be written ({error}): free some space, or name another folder."
        ) from error
    finally:
        # Writers of a save that failed may still be at work in there, and make it anew.
        for _ in range(3):
            if part.exists():
                remove_unfinished(epath.Path(part))
                time.sleep(0.3)


def _save_into(config: ConfigDict, workdir: Path, params: Any, spec: LatentSpec) -> None:
    configs.write(config, workdir)
    checkpointer = open_checkpoints(config, workdir)
    try:
        checkpointer.save(
            0,
            # What eval, reconstruct and init_from read: the averaged parameters.
            {"step": np.int32(0), "ema": jax.tree.map(jax.numpy.asarray, params)},
            iterator={},
            spec=spec,
            config_hash=configs.config_hash(config),
            force=True,
        )
        checkpointer.wait()
    finally:
        checkpointer.close()
