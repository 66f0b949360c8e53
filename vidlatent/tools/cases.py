"""Stored numeric cases: does a model with these weights give the outputs on file?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.infer.load import abstract_params
from vidlatent.io.importer import import_params
from vidlatent.io.weights import choose_table, read_tensors
from vidlatent.models import build
from vidlatent.models.fsvideo.import_dcae import fields_from_diffusers
from vidlatent.registry import Registry
from vidlatent.typing import VidlatentError

__all__ = ["CASES", "TOLERANCE", "run_case"]

TOLERANCE = 2e-4  # float32 here and there differ by at most 1e-5 in the stored cases

Run = Callable[..., Any]
Checks = Iterator[tuple[str, Any, np.ndarray]]

# Model name -> (fields of the case, checks of the case).
CASES = Registry("kind of reference case")


def run_case(
    folder: str | Path, family: str, weights: str = "", table: str = "auto"
) -> dict[str, float]:
    """Largest absolute error of each stored output.

    Args:
      folder: holds ``config.json`` (constructor arguments), ``weights.safetensors``, ``io.npz``.
      family: model name; its entry in ``CASES`` knows the layout.
      weights: weights file to run instead of the case's own.
      table: naming of the weights file.

    Raises:
      VidlatentError: a file of the case is missing, or the weights do not fit it.
    """
    folder = Path(folder)
    for name in ("config.json", "io.npz"):
        if not (folder / name).is_file():
            raise VidlatentError(f"--verify={folder} is no reference case: it lacks {name}.")
    case = json.loads((folder / "config.json").read_text())
    fields, checks = CASES.get(family)
    model = build({"name": family, **fields(case)})
    tensors = read_tensors(weights or folder / "weights.safetensors")
    params = import_params(tensors, choose_table(tensors, family, table), abstract_params(model))
    with np.load(folder / "io.npz") as stored:
        arrays = {name: _channel_last(stored[name]) for name in stored.files}

    def run(method: str, *args: Any, **changes: Any) -> Any:
        module = model.clone(**changes)
        call = jax.jit(lambda p, *a: module.apply({"params": p}, *a, method=method))
        return call(params, *args)

    errors = {
        name: float(np.abs(np.asarray(got, np.float64) - want).max())
        for name, got, want in checks(run, arrays)
    }
    if not errors:
        raise VidlatentError(f"--verify={folder}: io.npz holds no array that {family!r} gives.")
    return errors


def _channel_last(x: np.ndarray) -> np.ndarray:
    """``(N, C, [T,] H, W)`` as ``[B, T, H, W, C]``."""
    x = x[:, :, None] if x.ndim == 4 else x
    return np.moveaxis(x, 1, -1)


def _image_fields(case: Mapping[str, Any]) -> dict[str, Any]:
    return fields_from_diffusers(case["config"])


def _image_checks(run: Run, arrays: Mapping[str, np.ndarray]) -> Checks:
    for name in arrays:
        kind, _, tag = name.partition("_")
        if kind == "input" and f"latent_{tag}" in arrays:
            latent = arrays[f"latent_{tag}"]
            yield f"latent_{tag}", run("encode", jnp.asarray(arrays[name]))[0].mean, latent
            if f"output_{tag}" in arrays:
                output = arrays[f"output_{tag}"]
                yield f"output_{tag}", run("decode", jnp.asarray(latent))[0], output


def _video_fields(case: Mapping[str, Any]) -> dict[str, Any]:
    return {**_image_fields(case), "temporal_down": tuple(case["temporal_down_after_stages"])}


_DECODERS = {"dec_causal": "causal", "dec_noncausal": "centred", "dec_group": "group"}


def _video_checks(run: Run, arrays: Mapping[str, np.ndarray]) -> Checks:
    yield "latent", run("encode", jnp.asarray(arrays["video"]))[0].mean, arrays["latent"]
    for name, time in _DECODERS.items():
        if name in arrays:
            latent = jnp.asarray(arrays["latent"])
            yield name, run("decode", latent, decoder_time=time)[0], arrays[name]


CASES.register("dcae", (_image_fields, _image_checks))
CASES.register("fsae", (_video_fields, _video_checks))
