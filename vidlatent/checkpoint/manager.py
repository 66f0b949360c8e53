"""Checkpoints with checksums: one Orbax step folder a save, read back only if it is undamaged.

A step folder holds the items ``params``, ``opt``, ``ema``, one for each part that is trained beside
the model (such as ``discriminator``) and ``extra`` (everything else in the state), the item
``meta`` (JSON: step, iterator, latent spec, config hash, metrics, versions) and the item
``digests`` (see ``checkpoint.digests``). Scores that are known only after the step was saved lie in
``scores.json`` beside them. Orbax writes it under a temporary name and renames it when
it is complete, so a killed process leaves no half step behind. On restore the arrays are compared
with their digests. If a step is damaged, the reason is logged and the newest undamaged one before
it is read. Reading never changes the folder: the first save after that moves the damaged steps
aside (``<step>.damaged``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from vidlatent.checkpoint import digests, layout
from vidlatent.checkpoint.meta import ITEM as META
from vidlatent.checkpoint.meta import make_meta, read_meta
from vidlatent.checkpoint.pins import read_pins
from vidlatent.checkpoint.scores import Keep, keep_finite, read_scores, write_scores
from vidlatent.checkpoint.storage import (
    QUIET,
    Damaged,
    SaveError,
    StorageError,
    agree_on_all_processes,
    find_folder,
    move_aside,
    remove_unfinished,
    storage_errors,
    warn_of_changes,
)
from vidlatent.errors import VidlatentError
from vidlatent.spec import LatentSpec

__all__ = ["Checkpointer", "Restored"]

_UNFINISHED = "*.orbax-checkpoint-tmp*"  # Orbax's name while it writes
# verify = 'auto' checks steps below the first size in full, and of larger ones a sample of the
# second size, so that resuming a large model is not slowed down.
_FULL_CHECK_BYTES = 10 << 30
_SAMPLE_BYTES = 1 << 30
VERIFY_MODES = ("off", "sample", "full", "auto")


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a step held.

    Attributes:
      step: its number.
      state: the pytree asked for (the whole state, or one item for ``restore_params``).
      iterator: the data iterator's JSON state.
      spec: of the latents, or None if none was saved.
      config_hash: hash of the resolved config.
      metrics: metrics handed to ``save``.
      versions: versions, flags and device layout of the process that saved.
      adapters: what is known about the adapters that the step holds in place of parameters, or
        None if it holds parameters.
    """

    step: int
    state: Any
    iterator: dict[str, Any]
    spec: LatentSpec | None
    config_hash: str
    metrics: dict[str, float]
    versions: dict[str, Any]
    adapters: dict[str, Any] | None = None


class Checkpointer:
    """Saves, keeps, finds and restores the steps of one run.

    Every process of a run makes its own ``Checkpointer`` on the same directory and calls the same
    methods in the same order. Making one and reading with it changes nothing on disk.

    Args:
      directory: folder of the step folders; made by the first save. Any path that ``etils.epath``
        opens, including ``gs://``.
      every: save interval in steps (0: only forced saves).
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
        self.directory = find_folder(directory)
        self._every = every
        self._best = (best_metric, best_mode, keep_best)
        self._verify = verify
        self._metrics: dict[int, dict[str, float]] = {}
        self._damaged: dict[int, str] = {}
        self._late_metrics: dict[int, dict[str, float]] = {}  # not yet written
        self._last_saved: int | None = None
        self._under_way = False  # a save was started, and nobody has looked at its end
        self._failed: SaveError | None = None  # why that save failed, if it did at its start
        self._failures = 0  # saves that failed since the last one that did not
        self._own: set[int] = set()  # steps that this object has saved or restored
        self._prepared = False
        logging.get_absl_logger().addFilter(QUIET)
        policies = [
            Keep(lambda steps: set(sorted(steps)[-keep_latest:])),
            # A run that resumed from an earlier step saves steps that are not the newest, and must
            # keep them.
            Keep(lambda steps: {step for step in steps if step == self._last_saved}),
            Keep(self._choose_best),
            # What latent sets and generators rely on.
            Keep(lambda steps: read_pins(self.directory.parent).intersection(steps)),
        ]
        if keep_every:
            policies.append(checkpoint_managers.EveryNSteps(keep_every))
        with self._explain_errors("opening the checkpoints"):
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    # Opening and reading leave no trace; the first save makes the folder.
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

    @property
    def last_complete(self) -> int | None:
        """The newest step that this object has saved or restored, and knows to be complete."""
        return max(self._own, default=None)

    def best(self) -> int | None:
        """The best step by the best metric; None when no step has it."""
        name, mode, _ = self._best
        scored = self._rank_by_metric(self.all_steps()) if name else []
        return max(scored)[1] if scored else None

    def _rank_by_metric(self, steps: Sequence[int]) -> list[tuple[float, int]]:
        """(score, step) where a higher score is better; steps without the metric are left out."""
        name, mode, _ = self._best
        values = ((self._step_metrics(step).get(name, math.nan), step) for step in steps)
        sign = 1.0 if mode == "max" else -1.0
        return [(sign * value, step) for value, step in values if not math.isnan(value)]

    def _choose_best(self, steps: Sequence[int]) -> set[int]:
        name, _, count = self._best
        return (
            {step for _, step in sorted(self._rank_by_metric(steps))[-count:]}
            if name and count
            else set()
        )

    def _step_metrics(self, step: int) -> dict[str, float]:
        if step not in self._metrics:
            try:
                folder = self.directory / str(step)
                self._metrics[step] = {**read_meta(folder)["metrics"], **read_scores(folder)}
            except Damaged as reason:
                logging.warning("The metrics of step %d cannot be read: %s.", step, reason)
                # It cannot be the best then, but must not stop the saving of others.
                self._metrics[step] = {}
        return self._metrics[step]

    # ------------------------------------------------------------------ saving

    def should_save(self, step: int) -> bool:
        """True at multiples of ``every``, unless the step is saved already."""
        due = self._every > 0 and step > 0 and step % self._every == 0
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
        adapters: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> bool:
        """Start saving ``state``; the arrays may be donated as soon as the call returns.

        Args:
          step: its number.
          state: dict of pytrees of arrays.
          iterator: JSON state of the data iterator.
          spec: of the tokenizer's latents.
          config_hash: hash of the resolved config.
          metrics: numbers; ``best_metric`` is looked up in them.
          adapters: if ``params`` and ``ema`` are adapters: JSON by which readers find what they
            adapt (``weights.files.restore_weights``).
          force: save even where ``should_save`` says no (a step that exists is left alone).

        Returns:
          Whether a save was started.

        A failure of the save before is a warning, for which this save makes up. One of this save
        shows in ``find_failure``, ``wait`` and the next ``save``.

        Raises:
          SaveError: when the two saves before this one failed, or the folder cannot be prepared.
        """
        # A damaged step is not among them and may be saved anew.
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
        metrics = keep_finite(metrics or {})
        meta = make_meta(step, iterator, spec, config_hash, metrics, adapters)
        items = layout.split(state)
        manifest = digests.make_manifest(step, items, meta)
        args = {name: ocp.args.StandardSave(layout.nested(tree)) for name, tree in items.items()}
        args[META] = ocp.args.JsonSave(meta)
        args[digests.ITEM] = digests.DigestSave(manifest)
        self._start_save(step, args, metrics)
        return True

    def _start_save(self, step: int, args: dict[str, Any], metrics: dict[str, float]) -> None:
        try:
            self.wait()
        except SaveError as error:
            self._tolerate(error)
            self._prepare_saves()
        self._metrics[step], self._last_saved, self._under_way = metrics, step, True
        try:
            with self._explain_errors(f"saving step {step}"):
                # force: whether to save is decided above, and Orbax refuses steps below its newest.
                self._manager.save(step, args=ocp.args.Composite(**args), force=True)
        except SaveError as error:
            # Told like a failure in the background, for which all processes look together.
            self._failed = error

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Store scores of a step that is saved already; they count for ``best_metric`` at once.

        They are written when the step is complete. A step that is not saved is left alone.
        """
        if step in self.all_steps():
            self._metrics[step] = {**self._step_metrics(step), **keep_finite(metrics)}
            self._late_metrics[step] = self._metrics[step]
            if not self._manager.is_saving_in_progress():
                self._write_late_metrics()

    def _write_late_metrics(self) -> None:
        late, self._late_metrics = self._late_metrics, {}
        if jax.process_index() == 0:
            for step, metrics in late.items():
                write_scores(self.directory / str(step), metrics)

    def wait(self) -> None:
        """Wait for the save in progress; raises ``SaveError`` if it failed."""
        under_way, self._under_way = self._under_way, False
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
        with self._explain_errors(f"saving step {self._last_saved}"):
            self._manager.wait_until_finished()
        if under_way and self._last_saved is not None:
            self._failures = 0
            self._own.add(self._last_saved)
        if self._late_metrics:
            self._write_late_metrics()

    def find_failure(self) -> bool:
        """Whether the save in the background has failed, without waiting for it; says why.

        Call it on all processes at once: if it failed on one, it is true on all. The first failure
        is a warning, and the caller should save again.

        Raises:
          SaveError: it is the second failure in a row.
        """
        failure: SaveError | None = None
        try:
            ended = self._under_way and not self._manager.is_saving_in_progress()
            if ended or self._failed is not None:
                self.wait()  # which has nothing to wait for
        except SaveError as error:
            failure = error
        if agree_on_all_processes(failure is None):
            return False
        if failure is None:
            with contextlib.suppress(SaveError):
                self.wait()
            self._prepared = False
            failure = SaveError(f"Failed saving step {self._last_saved} on another process.")
        self._tolerate(failure)
        return True

    def _tolerate(self, error: SaveError) -> None:
        """Warn of a save that failed; raise ``error`` if it is the second in a row."""
        self._failures += 1
        if self._failures > 1:
            raise error
        logging.warning("%s It is tried again.", error)

    def confirm(self, step: int) -> None:
        """Raise ``SaveError`` unless ``step`` is on disk, saved or restored by this object."""
        self.wait()
        if step not in self._own:
            raise SaveError(
                f"Step {step} is not saved: {self.directory} holds a step of that number that "
                "another run wrote; move it away, or use another --workdir."
            )
        with self._explain_errors(f"saving step {step}"):
            there = (self.directory / str(step)).exists()
        if not there:
            raise SaveError(
                f"Step {step} is not saved: {self.directory / str(step)} is gone; somebody else "
                "removes or moves the folder."
            )

    def close(self) -> None:
        """Wait for the save in progress and release the threads."""
        with self._explain_errors(f"saving step {self._last_saved}"):
            self._manager.close()

    @contextlib.contextmanager
    def _explain_errors(self, doing: str) -> Iterator[None]:
        try:
            with storage_errors():
                yield
        except StorageError as error:
            self._prepared = False  # the next save removes the unfinished files first
            self._forget_errors()
            raise SaveError(
                f"Failed {doing} in {self.directory} ({error}); check free space and permissions. "
                "Steps that were saved before are untouched."
            ) from error

    def _forget_errors(self) -> None:
        """Make Orbax forget a failure that was told: it keeps several, and the next save raises."""
        for _ in range(3):
            # Whatever TensorStore raises (see ``storage_errors``); it has been told already.
            with contextlib.suppress(Exception):
                self._manager.wait_until_finished()
                self._manager.check_for_errors()
                return

    def _prepare_saves(self) -> None:
        """Once per run: make the folder, move damaged steps aside, remove unfinished saves."""
        if self._damaged or not self._prepared:
            with self._explain_errors("preparing to save"):
                if jax.process_index() == 0:
                    self.directory.mkdir(parents=True, exist_ok=True)
                    for folder in self.directory.glob(_UNFINISHED):
                        remove_unfinished(folder)
                    for step in sorted(self._damaged):
                        move_aside(self.directory, step)
                if jax.process_count() > 1:
                    # No process may begin to save while the first one still cleans up.
                    multihost_utils.sync_global_devices("vidlatent.checkpoint.manager.prepare")
                # Orbax lists the steps once and keeps the list; the folder has changed.
                self._manager.reload()
            self._damaged, self._prepared = {}, True

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
            manifest, meta = self._read_manifest(number)
            wanted = layout.split(abstract_state, manifest.arrays)
            where = os.fspath(self.directory / str(number))
            flat = digests.leaf_paths(wanted)
            layout.compare_structure(where, flat, manifest.arrays, dtypes=True)
            items = self._read_items(number, wanted, manifest)
            return self._make_restored(number, layout.merge(abstract_state, items), meta)

        restored = self._read_newest(read, step)
        if restored is not None:
            self._own.add(restored.step)
            warn_of_changes(restored.step, restored.versions)
        return restored

    def restore_params(
        self,
        abstract_params: Any,
        *,
        step: int | None = None,
        which: str = "ema",
        adapted: Callable[[Mapping[str, Any]], Any] | None = None,
    ) -> Restored:
        """Read the parameters alone, for inference; leaves are cast to the dtypes asked for.

        A step that holds adapters is read by ``weights.files.restore_weights``, which merges them.

        Args:
          abstract_params: the parameters' structure, as for ``restore``.
          step: read this step and no other (None: the newest sound one).
          which: 'ema' (the trained parameters if the run kept no average), 'params', or the name of
            a part that was trained beside the model, such as 'discriminator' (all of that part).
          adapted: for steps that hold adapters: their structure, made from what the step says
            about them. They are returned as they are.

        Raises:
          VidlatentError: as ``restore``, and when there is no step at all.
        """

        def read(number: int) -> Restored:
            manifest, meta = self._read_manifest(number)
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
            wanted = abstract_params
            if adapted is not None and meta.get("adapters"):
                wanted = adapted(meta["adapters"])
            flat = digests.leaf_paths(wanted)
            layout.compare_structure(where, flat, manifest.item(item), dtypes=False)
            read = self._read_items(number, {item: wanted}, manifest)
            leaves, tree = jax.tree.flatten(read.pop(item))
            # One by one, so that a device needs no room for all of them in both dtypes.
            for place, like in enumerate(jax.tree.leaves(wanted)):
                leaves[place] = leaves[place].astype(like.dtype)
            return self._make_restored(number, jax.tree.unflatten(tree, leaves), meta)

        restored = self._read_newest(read, step)
        if restored is None:
            raise VidlatentError(f"There is no checkpoint in {self.directory}: train first.")
        return restored

    def _read_newest(self, read: Callable[[int], Restored], step: int | None) -> Restored | None:
        self.wait()
        with self._explain_errors("listing the steps"):
            # A training that is still running may have saved since the last look.
            self._manager.reload()
        steps = self.all_steps()
        if step is not None:
            if step not in (*steps, *self._damaged):
                raise VidlatentError(f"There is no step {step} in {self.directory}, only {steps}.")
            try:
                return read(step)
            except Damaged as reason:
                raise VidlatentError(
                    f"Step {step} in {self.directory} is damaged: {reason}. Leave the step open to "
                    "use the newest sound one."
                ) from reason
        # From the newest on; the damaged ones are only noted, since reading changes nothing.
        for number in reversed(steps):
            try:
                return read(number)
            except Damaged as reason:
                logging.error("Step %d is damaged, trying the one before: %s.", number, reason)
                self._damaged[number] = str(reason)
        if self._damaged:
            reasons = "; ".join(f"step {n}: {r}" for n, r in sorted(self._damaged.items()))
            raise VidlatentError(
                f"None of the steps saved in {self.directory} is sound ({reasons}). Restore the "
                "folder from a copy, or choose another --workdir to start afresh."
            )
        return None

    def _make_restored(self, number: int, state: Any, meta: Mapping[str, Any]) -> Restored:
        spec = None if meta["spec"] is None else LatentSpec.from_json(meta["spec"])
        plain = {k: meta[k] for k in ("iterator", "config_hash", "versions")}
        metrics = {**meta["metrics"], **read_scores(self.directory / str(number))}
        adapters = meta.get("adapters")
        return Restored(
            step=number, state=state, spec=spec, metrics=metrics, adapters=adapters, **plain
        )

    def _read_manifest(self, step: int) -> tuple[digests.Manifest, dict[str, Any]]:
        """Digests and metadata of a step; ``Damaged`` on all processes if it is on one."""
        try:
            manifest = digests.read_manifest(self.directory / str(step) / digests.ITEM)
            if manifest.step != step:
                raise ValueError(f"the digests belong to step {manifest.step}")
            manifest.arrays = layout.with_todays_names(manifest.arrays)
            result: Any = manifest, read_meta(self.directory / str(step), manifest.meta)
        except (OSError, ValueError, KeyError, TypeError) as error:
            result = Damaged(f"its digests cannot be read ({type(error).__name__}: {error})")
        except Damaged as reason:
            result = reason
        # Errors are kept until here: a process that raised alone would leave the others waiting.
        if not agree_on_all_processes(not isinstance(result, Damaged)):
            raise result if isinstance(result, Damaged) else Damaged("another process says so")
        return result

    def _read_items(
        self, step: int, wanted: Mapping[str, Any], manifest: digests.Manifest
    ) -> dict[str, Any]:
        """Read items in the dtypes they were saved in, and compare them with the digests."""
        args, folder = {}, self.directory / str(step)
        on_disk = {item: layout.name_on_disk(item, folder) for item in wanted}
        for item, tree in wanted.items():
            saved = manifest.item(item)
            # As saved, because a cast would change the bytes that the digests describe.
            targets = [
                layout.target(leaf, saved[p].dtype) for p, leaf in digests.leaf_paths(tree).items()
            ]
            targets = jax.tree.unflatten(jax.tree.structure(tree), targets)
            args[on_disk[item]] = ocp.args.StandardRestore(layout.nested(targets))
        reason, read = "", None
        try:
            with storage_errors():
                read = self._manager.restore(step, args=ocp.args.Composite(**args))
        except StorageError as error:
            reason = f"its arrays cannot be read ({error})"
        if not agree_on_all_processes(read is not None):
            raise Damaged(reason or "another process cannot read its arrays")
        flat = digests.leaf_paths({item: read[name] for item, name in on_disk.items()})
        bad = self._find_mismatched(flat, manifest, step)
        if not agree_on_all_processes(not bad):
            more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
            listed = ", ".join(bad[:5]) + more if bad else "on another process"
            raise Damaged(f"the bytes of these arrays differ from what was saved: {listed}")
        # By path: what was read is sorted by key, which ``tree`` need not be.
        return {
            item: jax.tree.unflatten(
                jax.tree.structure(tree), [flat[f"{item}/{p}"] for p in digests.leaf_paths(tree)]
            )
            for item, tree in wanted.items()
        }

    def _find_mismatched(
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
        # The same sample on all processes, another one for each step.
        return digests.find_mismatched_arrays(flat, records, sample_bytes=sample, seed=step)
