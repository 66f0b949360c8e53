"""Reference cases: compare a model's outputs with those that another implementation gave."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.models.load import abstract_params
from vidlatent.models.tokenizers import build
from vidlatent.parallel.compilation import quick_options
from vidlatent.paths import as_path
from vidlatent.registry import Registry
from vidlatent.weights.files import choose_table, read_tensors
from vidlatent.weights.importer import import_params

__all__ = ["CASES", "TOLERANCE", "run_case"]

TOLERANCE = 2e-4  # float32 of the two implementations differs by at most 1e-5 in known cases

# Model name -> reader of a case's folder or file, which gives a ``case_files.StoredCase``.
CASES = Registry("kind of reference case")
CASES.register("dcae", "vidlatent.convert.case_files:read_dcae")
CASES.register("fsae", "vidlatent.convert.case_files:read_fsae")
CASES.register("ivvae", "vidlatent.convert.case_files:read_ivvae")
CASES.register("reducio", "vidlatent.convert.case_files:read_reducio")


def run_case(
    folder: str | Path, family: str, weights: str = "", table: str = "auto"
) -> dict[str, float]:
    """Run the model on a case; returns the largest absolute error of each stored output.

    Args:
      folder: the case's folder, or one file of it, as the family's reader in ``CASES`` expects.
      family: model name.
      weights: weights file to use instead of the case's own.
      table: naming of the weights file.

    Raises:
      VidlatentError: a file of the case is missing, or the weights do not fit it.
    """
    case = CASES.get(family)(as_path(folder))
    model = build({"name": family, **case.fields})
    abstract = abstract_params(model)
    tensors: Mapping[str, Any] = read_tensors(weights) if weights else case.tensors(abstract)
    params = import_params(tensors, choose_table(tensors, family, table), abstract)
    params = jax.tree.map(jnp.asarray, params)

    def run(method: Any, *args: Any, **changes: Any) -> Any:
        # Fields such as the decoder's kind do not change the parameters.
        module = model.clone(**changes)
        call = jax.jit(
            lambda p, *a: module.apply({"params": p}, *a, method=method),
            # A case is small and runs once: compiling takes longer than running.
            compiler_options=quick_options(level=0),
        )
        return call(params, *args)

    errors = {
        name: float(np.abs(np.asarray(got, np.float64) - want).max())
        for name, got, want in case.checks(run)
    }
    if not errors:
        raise VidlatentError(f"--verify={folder} holds no output that {family!r} gives.")
    return errors
