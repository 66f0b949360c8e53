"""Checkpoints that are checked: one Orbax step folder per save, read back only if it is sound.

A step folder holds the items ``params``, ``opt``, ``ema``, one for each part that is trained beside
the model (such as ``discriminator``) and ``extra`` (everything else in the state), the item
``meta`` (JSON: step, iterator, latent spec, config hash, metrics, versions) and the item
``digests`` (see ``checkpoint.digests``). Orbax writes it under a temporary name and renames it when
it is complete, so a killed process leaves no half step behind. On restore the arrays are compared
with their digests; a damaged step is passed over, with the reason in the log, for the newest sound
one before it. Reading never changes the folder: only the first save after such a fall-back moves
the damaged steps aside (``<step>.damaged``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import logging as std_logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

import vidlatent
from vidlatent.checkpoint import digests
from vidlatent.checkpoint import layout as trees
from vidlatent.errors import VidlatentError
from vidlatent.spec import LatentSpec

__all__ = ["Checkpointer", "Restored"]

_META = "meta"
_DAMAGED = ".damaged"
_DAMAGED_KEPT = 2
_UNFINISHED = "*.orbax-checkpoint-tmp*"
_FULL_CHECK_BYTES = 10 << 30
_SAMPLE_BYTES = 1 << 30
VERIFY_MODES = ("off", "sample", "full", "auto")


class _Damaged(Exception):
    """This step cannot be trusted; the message is the reason."""


class _StorageError(Exception):
    """The checkpoint library failed; the message names the cause."""


def _one_line(text: str) -> str:
    """An error of Orbax or TensorStore without the page of specification that follows it."""
    text = " ".join(text.split()).split(" See full TensorStore")[0]
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-100:]}"


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    """Turn whatever Orbax and TensorStore raise into ``_StorageError``.

    This is the one place that catches ``Exception``: TensorStore reports damaged or unwritable
    data as a bare ``Exception``, and by the kind of damage also as ValueError, OSError, KeyError,
    RuntimeError, decoding errors and others, with no common base class.
    """
    try:
        yield
    except VidlatentError:
        raise
    except Exception as error:
        raise _StorageError(f"{type(error).__name__}: {_one_line(str(error))}") from error


class _LessFromOrbax(std_logging.Filter):
    """Drops the dozens of progress lines that Orbax logs for each save and restore.

    Its warnings and errors stay, as one line each: what fails is raised, traceback and all, here.
    """

    def filter(self, record: std_logging.LogRecord) -> bool:
        if f"{os.sep}orbax{os.sep}" not in record.pathname:
            return True
        if record.levelno >= std_logging.WARNING:
            record.msg = _one_line(record.getMessage())
            record.args, record.exc_info, record.exc_text = (), None, None
        return record.levelno >= std_logging.WARNING


_QUIET = _LessFromOrbax()


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a step held.

    Attributes:
      step: its number.
      state: the pytree asked for (the whole state, or one item for ``restore_params``).
      iterator: the data iterator's JSON state.
      spec: the latent's identity card, or None if none was saved.
      config_hash: hash of the resolved config.
      metrics: metrics handed to ``save``.
      versions: versions, flags and device layout of the process that saved.
    """

    step: int
    state: Any
    iterator: dict[str, Any]
    spec: LatentSpec | None
    config_hash: str
    metrics: dict[str, float]
    versions: dict[str, Any]


@dataclasses.dataclass
class _Keep(checkpoint_managers.PreservationPolicy):
    """Keeps the steps that ``choose`` picks from those there are.

    Of Orbax's own rules, ``best_fn`` with a limit removes the newest step once older ones are
    better and reads its metrics file unguarded when the manager is made (ours are in ``meta``),
    and ``LatestN`` goes by the order of saving, which a restart forgets.
    """

    choose: Callable[[Sequence[int]], set[int]]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        kept = self.choose([info.step for info in checkpoints])
        return [info.step in kept for info in checkpoints]


def _versions() -> dict[str, Any]:
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    return {
        "vidlatent": vidlatent.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
    }


def _warn_of_changes(step: int, saved: Mapping[str, Any]) -> None:
    now = _versions()
    changed = [f"{k} {saved[k]!r} -> {now[k]!r}" for k in now if k in saved and saved[k] != now[k]]
    if changed:
        logging.warning(
            "Step %d was saved under other conditions (%s): the run continues, but it will not be "
            "bitwise equal to an uninterrupted one.",
            step,
            ", ".join(changed),
        )


def _clear_away(folder: epath.Path) -> None:
    """Remove what an unfinished save left; of a failed one, other writers may still be busy."""
    logging.info("Removing the unfinished save %s.", folder)
    for _ in range(20):
        try:
            folder.rmtree()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.25)
    logging.warning("The unfinished save %s cannot be removed; it takes space only.", folder)


def _everywhere(ok: bool) -> bool:
    """True when all processes say so: each must come to the same choice of step."""
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


class Checkpointer:
    """Saves, keeps, finds and restores the steps of one run.

    Every process of a run makes its own ``Checkpointer`` on the same directory and calls the same
    methods in the same order. Making one and reading with it changes nothing on disk.

    Args:
      directory: folder of the step folders; made by the first save. Any path that ``etils.epath``
        opens, including ``gs://``.
      every: save interval in steps (0: only forced and preemption saves).
      keep_latest: newest steps kept.
      keep_every: steps at multiples of this are kept for good (0: none).
      keep_best: number of best steps by ``best_metric`` kept besides.
      best_metric: key of ``metrics`` given to ``save``; '' turns the best rule off.
      best_mode: 'max' or 'min'.
      verify: how much of a step is compared with its digests on restore: 'off', 'sample' (about
        1 GiB), 'full', or 'auto' (full below 10 GiB, otherwise sample).
    """

    def __init__(
        self,
        directory: Any,
        *,
        every: int,
        keep_latest: int = 2,
        keep_every: int = 0,
        keep_best: int = 1,
        best_metric: str = "",
        best_mode: str = "max",
        verify: str = "auto",
    ):
        if verify not in VERIFY_MODES:
            raise VidlatentError(f"verify is {verify!r}: use one of {', '.join(VERIFY_MODES)}.")
        if best_mode not in ("max", "min"):
            raise VidlatentError(f"best_mode is {best_mode!r}: use 'max' or 'min'.")
        if keep_latest < 1 or min(every, keep_every, keep_best) < 0:
            raise VidlatentError("keep_latest must be at least 1; the other counts at least 0.")
        self.directory = epath.Path(os.fspath(directory))
        if "://" not in os.fspath(self.directory):
            self.directory = epath.Path(os.path.abspath(self.directory))  # Orbax wants it so.
        self._every = every
        self._best = (best_metric, best_mode, keep_best)
        self._verify = verify
        self._metrics: dict[int, dict[str, float]] = {}
        self._damaged: dict[int, str] = {}
        self._last_saved: int | None = None
        self._prepared = False
        logging.get_absl_logger().addFilter(_QUIET)
        policies = [
            _Keep(lambda steps: set(sorted(steps)[-keep_latest:])),
            # A run that was told to go on from an earlier step must keep what it saves.
            _Keep(lambda steps: {step for step in steps if step == self._last_saved}),
            _Keep(self._best_of),
        ]
        if keep_every:
            policies.append(checkpoint_managers.EveryNSteps(keep_every))
        with self._explained("opening the checkpoints"):
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    create=False,
                    preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                ),
            )

    # ------------------------------------------------------------------ what there is

    def all_steps(self) -> list[int]:
        """Saved steps in ascending order, without those found damaged."""
        return sorted(s for s in self._manager.all_steps() if s not in self._damaged)

    def latest(self) -> int | None:
        """The newest step."""
        return max(self.all_steps(), default=None)

    def best(self) -> int | None:
        """The best step by the best metric; None when no step has it."""
        name, mode, _ = self._best
        scored = self._scored(self.all_steps()) if name else []
        return max(scored)[1] if scored else None

    def _scored(self, steps: Sequence[int]) -> list[tuple[float, int]]:
        """(score, step) where a higher score is better; steps without the metric are left out."""
        name, mode, _ = self._best
        values = ((self._step_metrics(step).get(name, math.nan), step) for step in steps)
        sign = 1.0 if mode == "max" else -1.0
        return [(sign * value, step) for value, step in values if not math.isnan(value)]

    def _best_of(self, steps: Sequence[int]) -> set[int]:
        name, _, count = self._best
        return (
            {step for _, step in sorted(self._scored(steps))[-count:]} if name and count else set()
        )

    def _step_metrics(self, step: int) -> dict[str, float]:
        if step not in self._metrics:
            try:
                self._metrics[step] = self._read_meta(step)["metrics"]
            except _Damaged as reason:
                logging.warning("The metrics of step %d cannot be read: %s.", step, reason)
                self._metrics[step] = {}
        return self._metrics[step]

    # ------------------------------------------------------------------ saving

    def reached_preemption(self, step: int) -> bool:
        """True once all processes agreed to stop at ``step`` because one was told to.

        Call it on every process at every step. Needs ``jax.distributed``; without it: False.
        """
        return jax.distributed.is_initialized() and self._manager.reached_preemption(step)

    def should_save(self, step: int) -> bool:
        """True at multiples of ``every`` and on preemption, unless the step is saved already."""
        due = self.reached_preemption(step)
        due = due or (self._every > 0 and step > 0 and step % self._every == 0)
        return due and step not in self.all_steps()

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        *,
        iterator: Mapping[str, Any],
        spec: LatentSpec | None,
        config_hash: str,
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
    ) -> bool:
        """Start saving ``state``; the arrays may be donated as soon as the call returns.

        Args:
          step: its number.
          state: dict of pytrees of arrays.
          iterator: JSON state of the data iterator.
          spec: the tokenizer's identity card.
          config_hash: hash of the resolved config.
          metrics: numbers; ``best_metric`` is looked up in them.
          force: save even where ``should_save`` says no (a step that exists is left alone).

        Returns:
          Whether a save was started.

        Raises:
          VidlatentError: when this save, or the one before it in the background, failed.
        """
        if step in self.all_steps() or not (force or self.should_save(step)):
            return False
        self._prepare_saves()
        if step < (self.latest() or 0):
            logging.warning(
                "Saving step %d beside the newer step %d: a restart will resume from the newer one "
                "unless you remove it.",
                step,
                self.latest(),
            )
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        meta = {
            "step": int(step),
            "iterator": dict(iterator),
            "spec": None if spec is None else spec.to_json(),
            "config_hash": config_hash,
            "metrics": metrics,
            "versions": _versions(),
        }
        meta = json.loads(json.dumps(meta))  # What will be read back, and proof that it is JSON.
        items = trees.split(state)
        manifest = digests.make_manifest(step, items, meta)
        args = {name: ocp.args.StandardSave(trees.nested(tree)) for name, tree in items.items()}
        args[_META] = ocp.args.JsonSave(meta)
        args[digests.ITEM] = digests.DigestSave(manifest)
        self.wait()  # Its failure belongs to the step before, not to this one.
        self._metrics[step], self._last_saved = metrics, step
        with self._explained(f"saving step {step}"):
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)
        return True

    def wait(self) -> None:
        """Wait for the save in progress; raises ``VidlatentError`` if it failed."""
        with self._explained(f"saving step {self._last_saved}"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the save in progress and release the threads."""
        with self._explained(f"saving step {self._last_saved}"):
            self._manager.close()

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            with _storage_errors():
                yield
        except _StorageError as error:
            self._prepared = False  # Its unfinished files go before the next save.
            raise VidlatentError(
                f"Failed {doing} in {self.directory} ({error}); check free space and permissions. "
                "Steps that were saved before are untouched."
            ) from error

    def _prepare_saves(self) -> None:
        """Once per run: make the folder, move damaged steps aside, remove unfinished saves."""
        if self._damaged or not self._prepared:
            with self._explained("preparing to save"):
                if jax.process_index() == 0:
                    self.directory.mkdir(parents=True, exist_ok=True)
                    for folder in self.directory.glob(_UNFINISHED):
                        _clear_away(folder)
                    for step in sorted(self._damaged):
                        self._move_aside(step)
                if jax.process_count() > 1:
                    multihost_utils.sync_global_devices("vidlatent.checkpoint.manager.prepare")
                self._manager.reload()
            self._damaged, self._prepared = {}, True

    def _move_aside(self, step: int) -> None:
        target = self.directory / f"{step}{_DAMAGED}"
        if target.exists():
            target.rmtree()
        (self.directory / str(step)).rename(target)
        logging.warning("Moved the damaged step %d aside to %s.", step, target)
        aside = [p for p in self.directory.glob(f"*{_DAMAGED}") if p != target]
        aside.sort(key=lambda p: int(p.name.removesuffix(_DAMAGED)))
        for old in aside[: 1 - _DAMAGED_KEPT]:
            old.rmtree()

    # ------------------------------------------------------------------ restoring

    def restore(
        self, abstract_state: Mapping[str, Any], *, step: int | None = None
    ) -> Restored | None:
        """Read a whole state.

        Args:
          abstract_state: the state's structure with ShapeDtypeStructs (or arrays) as leaves; their
            shardings say where the arrays go, which need not be the mesh they were saved on.
          step: read this step and no other (None: the newest sound one).

        Returns:
          The step, or None when nothing has been saved yet.

        Raises:
          VidlatentError: another structure, shape or dtype; ``step`` missing or damaged; or steps
            exist and none of them is sound.
        """

        def read(number: int) -> Restored:
            manifest, meta = self._open(number)
            wanted = trees.split(abstract_state, manifest.arrays)
            where = os.fspath(self.directory / str(number))
            flat = digests.leaf_paths(wanted)
            trees.compare_structure(where, flat, manifest.arrays, dtypes=True)
            items = self._read_items(number, wanted, manifest)
            return self._restored(number, trees.merge(abstract_state, items), meta)

        restored = self._newest_sound(read, step)
        if restored is not None:
            _warn_of_changes(restored.step, restored.versions)
        return restored

    def restore_params(
        self, abstract_params: Any, *, step: int | None = None, which: str = "ema"
    ) -> Restored:
        """Read the parameters alone, for inference; leaves are cast to the dtypes asked for.

        Args:
          abstract_params: the parameters' structure, as for ``restore``.
          step: read this step and no other (None: the newest sound one).
          which: 'ema' (the trained parameters if the run kept no average), 'params', or the name of
            a part that was trained beside the model, such as 'discriminator' (all of that part).

        Raises:
          VidlatentError: as ``restore``, and when there is no step at all.
        """

        def read(number: int) -> Restored:
            manifest, meta = self._open(number)
            item = which
            if which not in ("ema", "params") and not manifest.item(item):
                raise VidlatentError(
                    f"There are no {which!r} parameters in step {number} of {self.directory}: use "
                    "'ema' or 'params'."
                )
            if item == "ema" and not manifest.item(item):
                logging.warning("Step %d has no averaged parameters: using the plain ones.", number)
                item = "params"
            where = f"{self.directory / str(number)} ({item})"
            flat = digests.leaf_paths(abstract_params)
            trees.compare_structure(where, flat, manifest.item(item), dtypes=False)
            read = self._read_items(number, {item: abstract_params}, manifest)
            leaves, tree = jax.tree.flatten(read.pop(item))
            # One by one: a device need not have room for all of them in both types.
            for place, like in enumerate(jax.tree.leaves(abstract_params)):
                leaves[place] = leaves[place].astype(like.dtype)
            return self._restored(number, jax.tree.unflatten(tree, leaves), meta)

        restored = self._newest_sound(read, step)
        if restored is None:
            raise VidlatentError(f"There is no checkpoint in {self.directory}: train first.")
        return restored

    def _newest_sound(self, read: Callable[[int], Restored], step: int | None) -> Restored | None:
        self.wait()
        with self._explained("listing the steps"):
            self._manager.reload()
        steps = self.all_steps()
        if step is not None:
            if step not in (*steps, *self._damaged):
                raise VidlatentError(f"There is no step {step} in {self.directory}, only {steps}.")
            try:
                return read(step)
            except _Damaged as reason:
                raise VidlatentError(
                    f"Step {step} in {self.directory} is damaged: {reason}. Leave the step open to "
                    "use the newest sound one."
                ) from reason
        for number in reversed(steps):
            try:
                return read(number)
            except _Damaged as reason:
                logging.error("Step %d is damaged, trying the one before: %s.", number, reason)
                self._damaged[number] = str(reason)
        if self._damaged:
            reasons = "; ".join(f"step {n}: {r}" for n, r in sorted(self._damaged.items()))
            raise VidlatentError(
                f"None of the steps saved in {self.directory} is sound ({reasons}). Restore the "
                "folder from a copy, or choose another --workdir to start afresh."
            )
        return None

    def _restored(self, number: int, state: Any, meta: Mapping[str, Any]) -> Restored:
        spec = None if meta["spec"] is None else LatentSpec.from_json(meta["spec"])
        plain = {k: meta[k] for k in ("iterator", "config_hash", "metrics", "versions")}
        return Restored(step=number, state=state, spec=spec, **plain)

    def _read_meta(self, step: int, crc: int | None = None) -> dict[str, Any]:
        try:
            meta = json.loads((self.directory / str(step) / _META / "metadata").read_text())
        except (OSError, ValueError) as error:
            raise _Damaged(f"its metadata cannot be read ({error})") from error
        fields = {"step", "iterator", "spec", "config_hash", "metrics", "versions"}
        if not isinstance(meta, dict) or set(meta) != fields:
            raise _Damaged("its metadata has not the expected fields")
        if crc is not None and digests.json_crc(meta) != crc:
            raise _Damaged("its metadata differs from what was saved")
        return meta

    def _open(self, step: int) -> tuple[digests.Manifest, dict[str, Any]]:
        """Digests and metadata of a step, on all processes or on none."""
        try:
            manifest = digests.read_manifest(self.directory / str(step) / digests.ITEM)
            if manifest.step != step:
                raise ValueError(f"the digests belong to step {manifest.step}")
            manifest.arrays = trees.with_todays_names(manifest.arrays)
            result: Any = manifest, self._read_meta(step, manifest.meta)
        except (OSError, ValueError, KeyError, TypeError) as error:
            result = _Damaged(f"its digests cannot be read ({type(error).__name__}: {error})")
        except _Damaged as reason:
            result = reason
        if not _everywhere(not isinstance(result, _Damaged)):
            raise result if isinstance(result, _Damaged) else _Damaged("another process says so")
        return result

    def _read_items(
        self, step: int, wanted: Mapping[str, Any], manifest: digests.Manifest
    ) -> dict[str, Any]:
        """The items' trees, in the dtypes they were saved in, compared with the digests."""
        args, folder = {}, self.directory / str(step)
        on_disk = {item: trees.name_on_disk(item, folder) for item in wanted}
        for item, tree in wanted.items():
            saved = manifest.item(item)
            targets = [
                trees.target(leaf, saved[p].dtype) for p, leaf in digests.leaf_paths(tree).items()
            ]
            targets = jax.tree.unflatten(jax.tree.structure(tree), targets)
            args[on_disk[item]] = ocp.args.StandardRestore(trees.nested(targets))
        reason, read = "", None
        try:
            with _storage_errors():
                read = self._manager.restore(step, args=ocp.args.Composite(**args))
        except _StorageError as error:
            reason = f"its arrays cannot be read ({error})"
        if not _everywhere(read is not None):
            raise _Damaged(reason or "another process cannot read its arrays")
        flat = digests.leaf_paths({item: read[name] for item, name in on_disk.items()})
        bad = self._mismatched(flat, manifest, step)
        if not _everywhere(not bad):
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            listed = ", ".join(bad[:5]) + more if bad else "on another process"
            raise _Damaged(f"the bytes of these arrays differ from what was saved: {listed}")
        # By path, since nested dicts flatten in the order of their keys.
        return {
            item: jax.tree.unflatten(
                jax.tree.structure(tree), [flat[f"{item}/{p}"] for p in digests.leaf_paths(tree)]
            )
            for item, tree in wanted.items()
        }

    def _mismatched(
        self, flat: Mapping[str, Any], manifest: digests.Manifest, step: int
    ) -> list[str]:
        records = {name: manifest.arrays[name] for name in flat}
        total = sum(record.nbytes for record in records.values())
        mode = self._verify
        if mode == "auto":
            mode = "full" if total < _FULL_CHECK_BYTES else "sample"
        if mode == "off":
            return []
        sample = _SAMPLE_BYTES if mode == "sample" else None
        return digests.mismatched_arrays(flat, records, sample_bytes=sample, seed=step)
