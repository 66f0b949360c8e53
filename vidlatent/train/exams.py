"""What an evaluation while training is, for each kind of model.

An exam is called with the run and returns a result that has ``scores``, numbers by name with
``clips`` among them; ``pictures`` of the result go into the curves' writers, ``write`` leaves a
report in a folder.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from vidlatent.evaluate.generator_loss import GeneratorScores, compile_loss_step, evaluate_loss
from vidlatent.evaluate.generator_report import write_generator_report
from vidlatent.evaluate.tokenizer import Evaluation, compile_eval_step, evaluate
from vidlatent.evaluate.tokenizer_report import pictures_sheet, write_evaluation
from vidlatent.metrics import make_metrics
from vidlatent.parallel.multihost import is_main
from vidlatent.sample.grid import SampleGrid
from vidlatent.train.tasks.base import Step

__all__ = ["Exam", "GeneratorExam", "TokenizerExam"]


class Exam(Protocol):
    """One kind of evaluation, compiled for one run."""

    def __call__(self, run: Any) -> Any: ...

    def pictures(self, result: Any) -> dict[str, np.ndarray]: ...

    def write(self, run: Any, result: Any, folder: Path) -> list[str]: ...


class TokenizerExam:
    """Scores the EMA parameters on the validation clips."""

    def __init__(self, run: Any, step_fns: Step, mesh: Mesh, make_validation: Callable[[], Any]):
        self._make_validation = make_validation
        self._metrics = make_metrics(
            run.config.eval.training_metrics,
            run.config.networks,
            random_networks=run.config.eval.random_networks,
            is_splits=run.config.eval.is_splits,
        )
        self._eval_step = compile_eval_step(
            step_fns.eval_step, mesh, run.state["ema"], self._metrics
        )

    def __call__(self, run: Any) -> Evaluation:
        with contextlib.closing(self._make_validation()) as loader:
            return evaluate(
                self._eval_step,
                run.state["ema"],
                loader,
                run.config.eval.pictures,
                spec=run.spec,
                metrics=self._metrics,
            )

    def pictures(self, result: Evaluation) -> dict[str, np.ndarray]:
        if not result.pictures:
            return {}
        return {"val/original_above_reconstruction": _pixels(pictures_sheet(result.pictures))}

    def write(self, run: Any, result: Evaluation, folder: Path) -> list[str]:
        write_evaluation(result, folder, config=run.config, step=run.step, workdir=run.workdir)
        return ["report.html", "contact_sheet.png", "side_by_side_0.mp4"]


class GeneratorExam:
    """The EMA parameters' loss on validation clips, and a few samples to look at."""

    def __init__(self, run: Any, step_fns: Step, mesh: Mesh, make_validation: Callable[[], Any]):
        self._make_validation = make_validation
        networks = step_fns.load_networks()
        self._step = compile_loss_step(
            step_fns.eval_step, step_fns.arrays, networks, mesh, run.state["ema"]
        )
        self._grid = SampleGrid(run.config, networks, mesh)
        self._sheet = b""

    def __call__(self, run: Any) -> GeneratorScores:
        with contextlib.closing(self._make_validation()) as loader:
            result = evaluate_loss(self._step, run.state["ema"], loader)
            self._sheet = self._grid(run.state["ema"], loader)
        if self._sheet and is_main():
            file = run.workdir / "samples" / f"step_{run.step}.png"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(self._sheet)
        return result

    def pictures(self, result: GeneratorScores) -> dict[str, np.ndarray]:
        del result
        return {"val/samples": _pixels(self._sheet)} if self._sheet else {}

    def write(self, run: Any, result: GeneratorScores, folder: Path) -> list[str]:
        return write_generator_report(
            result,
            folder,
            config=run.config,
            step=run.step,
            workdir=run.workdir,
            sheet=self._sheet,
        )


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))[None]
