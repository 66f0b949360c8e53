"""The loader: host batches for training and validation.

A training batch depends on (options, index, seed, step, process) and on nothing else: neither on
the number of decoding processes or threads, nor on what was read before. So ``start_step`` is all
that is needed to resume a run.

    loader = make_loader(config.data.to_dict(), split='train', rule=FrameRule(1, 4), seed=0)
    batch = next(loader)       # video uint8 [b, T, H, W, 3], mask, clip, start, skipped, ...
    loader.state()             # goes into the checkpoint
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from vidlatent.data.bad_clips import BadClips, find_thin
from vidlatent.data.buckets import Bucket, keep_shapes, parse_buckets, weigh_buckets
from vidlatent.data.clip_cache import ClipCache, count_decoded_bytes
from vidlatent.data.frame_rate import FrameRate
from vidlatent.data.index import BadClip, Clip, Index, build_index
from vidlatent.data.options import DataOptions
from vidlatent.data.sources import MediaSource, Source, make_source
from vidlatent.data.sources.latents import LatentSource
from vidlatent.data.sources.pairs import PairSource
from vidlatent.data.split import TRAIN, VALIDATION, WHOLE, split_groups
from vidlatent.data.stream import (
    LatentReading,
    Listed,
    OneEach,
    PairReading,
    Reading,
    train_stream,
    validation_stream,
    validation_windows,
    whole_windows,
)
from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json
from vidlatent.media.decoders import Decoders
from vidlatent.spec import FrameRule, LatentSpec

__all__ = ["Loader", "make_index", "make_loader"]

# Options that change speed or what is tolerated, but never the content of a batch.
_NOT_IN_FINGERPRINT = frozenset(
    (
        "path",
        "num_workers",
        "read_threads",
        "prefetch",
        "decode_timeout_s",
        "max_pixels",
        "bad_clip_budget",
        "bad_clip_window",
        "index_cache",
        "memory_mb",
        "verify",
        "validation_clips",
        # These change labels and captions, which are hashed themselves.
        "labels",
        "tfds_label",
        "tfds_caption",
    )
)


def make_index(data: Mapping[str, Any], *, seed: int = 0) -> Index:
    """Probe the clips of ``config.data`` once; ``make_loader`` takes the result for both parts."""
    options = DataOptions.from_mapping(data)
    source = make_source(options, seed)
    return build_index(source, options.limits, options.verify, options.index_cache)


def make_loader(
    data: Mapping[str, Any],
    *,
    split: str,
    rule: FrameRule,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
    index: Index | None = None,
    windows: OneEach | Listed | None = None,
    spec: LatentSpec | None = None,
) -> Loader:
    """Build the loader of one part of the data.

    Args:
      data: ``config.data.to_dict()``; see ``DataOptions``.
      split: 'train' (endless, drawn at random), 'validation' (each window once, in order) or
        'whole' (all clips of both parts, one window each, in the longest bucket that it fills).
      rule: numbers of frames that the model takes.
      seed: of the draws, and of the scenes of the synthetic source.
      process_index, process_count: this process among all; each gets its share of every batch.
      start_step: first step to deliver.
      index: what ``make_index`` found; None: the clips are probed now.
      windows: for 'whole': which windows of which clips; None: the middle one of every clip.
      spec: latents that a latent data set must hold; None accepts any.

    Raises:
      VidlatentError: wrong options, no usable clip, a number of frames that no clip has, or latents
        of another tokenizer.
    """
    if split not in (TRAIN, VALIDATION, WHOLE):
        raise VidlatentError(f"split {split!r} is unknown: take 'train', 'validation' or 'whole'.")
    options = DataOptions.from_mapping(data)
    buckets = parse_buckets(options.buckets, rule, process_count)
    source = make_source(options, seed)
    if isinstance(source, LatentSource) and spec is not None:
        source.header.check(spec, source.where)
    if index is None:
        index = build_index(source, options.limits, options.verify, options.index_cache)
    report, clips = _select_usable(index, source, buckets, options)
    if report.counts and split == TRAIN:  # validation has the same bad clips
        logging.warning("%s", report.table())
    buckets, clips = _bound_shapes(options, buckets, source, clips, split)
    parts = split_groups({clip.group: clip.part for clip in clips}, options.validation_share)
    kept = tuple(clip for clip in clips if split in (parts[clip.group], WHOLE))
    if not kept:
        _report_empty_part(report, split)
    part = (windows or OneEach()) if split == WHOLE else split
    return Loader(
        _make_stream(options, buckets, source, kept, part, seed, (process_index, process_count)),
        options=options,
        clips=kept,
        report=report,
        split=split,
        start_step=start_step,
        fingerprint=_hash_content(options, source, buckets, kept, split, seed, index.labels),
        labels=index.labels,
        captions=any(clip.caption for clip in index.clips),  # both parts have the same keys
    )


def _make_stream(
    options: DataOptions,
    buckets: tuple[Bucket, ...],
    source: Source,
    clips: tuple[Clip, ...],
    part: str | OneEach | Listed,
    seed: int,
    process: tuple[int, int],
) -> grain.MapDataset | None:
    """The Grain graph of one part for process (index, count)."""
    reading = _make_reading(options, source, clips)
    if isinstance(part, Listed):
        if isinstance(source, MediaSource):  # windows of a clip that follow one another
            # One open file for each thread that reads.
            source.decoders = Decoders(max(1, options.read_threads))
        grouped = [buckets[number] for number, _ in part.groups]
        windows = [mine for _, mine in part.groups]
        return validation_stream(reading, grouped, windows, *process)
    # For scoring and encoding a clip is read once for each number of frames; for training, in every
    # size that it fills.
    members = reading.members(buckets, every_size=part == TRAIN)
    if isinstance(part, OneEach):
        windows = whole_windows(buckets, members, reading, part)
        return validation_stream(reading, buckets, windows, *process)
    # Clips are cached at the scale that covers their bucket, so random scales cannot use the cache.
    cacheable = source.cacheable and not (part == TRAIN and options.crop == "resized")
    if cacheable and count_decoded_bytes(clips, buckets, members) <= options.memory_mb * 2**20:
        reading = dataclasses.replace(reading, cache=ClipCache())
    if part == TRAIN:
        weights = options.bucket_weights, options.length_weights
        shares = weigh_buckets(buckets, members, *weights)
        _tell_shapes(buckets, shares)
        return train_stream(reading, buckets, members, shares, seed, *process)
    windows = validation_windows(reading, buckets, members, options.validation_clips)
    return validation_stream(reading, buckets, windows, *process)


def _make_reading(options: DataOptions, source: Source, clips: tuple[Clip, ...]) -> Reading:
    if isinstance(source, LatentSource):
        # Stored latents have one frame rate and are neither cropped nor mirrored.
        return LatentReading(source, clips, FrameRate(), "centre", False, options.limits)
    keys = options.rate, options.crop, options.flip, options.limits
    make = PairReading if isinstance(source, PairSource) else Reading
    return make(source, clips, *keys, bucket_rule=options.bucket_rule)


def _bound_shapes(
    options: DataOptions,
    buckets: tuple[Bucket, ...],
    source: Source,
    clips: list[Clip],
    split: str,
) -> tuple[tuple[Bucket, ...], list[Clip]]:
    """At most ``data.max_shapes`` buckets, and the clips that can fill them.

    ``clips`` are all usable ones, so that training and validation have the same shapes.
    """
    # Which windows of which buckets are wanted of the whole is the caller's choice.
    if split == WHOLE or not options.max_shapes or len(buckets) <= options.max_shapes:
        return buckets, clips
    if options.bucket_weights:
        raise VidlatentError(
            "data.max_shapes leaves out buckets, so that data.bucket_weights no longer belong to "
            "them: give data.length_weights instead, or max_shapes 0."
        )
    members = _make_reading(options, source, tuple(clips)).members(buckets, every_size=True)
    kept = keep_shapes(buckets, members, options.max_shapes)
    if isinstance(source, LatentSource):
        sizes = {(bucket.frames, bucket.height, bucket.width) for bucket in kept}
        fitting = [clip for clip in clips if (clip.frames, *clip.size) in sizes]
        if len(fitting) < len(clips):
            logging.warning(
                "data.max_shapes = %d leaves out %d of %d windows, stored at other sizes",
                *(options.max_shapes, len(clips) - len(fitting), len(clips)),
            )
        clips = fitting
    return kept, clips


def _tell_shapes(buckets: Sequence[Bucket], shares: Sequence[float]) -> None:
    """Log what is going to be compiled, with the share of the steps of each shape."""
    told = [f"{b} {share:.1%}" for b, share in zip(buckets, shares, strict=True) if share]
    logging.info(
        "shapes to compile: %d (data.max_shapes bounds them), with these shares of the steps: %s",
        *(len(told), ", ".join(told)),
    )


def _select_usable(
    index: Index, source: Source, buckets: tuple[Bucket, ...], options: DataOptions
) -> tuple[BadClips, list[Clip]]:
    """The report of bad clips, and the clips that fill at least one bucket."""
    shortest = min(bucket.frames for bucket in buckets)
    bad, clips = list(index.bad), []
    candidates = index.clips
    if isinstance(source, LatentSource):
        sizes = {(bucket.frames, bucket.height, bucket.width) for bucket in buckets}
        source.check_sizes(sizes)
        clips = [clip for clip in index.clips if (clip.frames, *clip.size) in sizes]
        # Stored windows have the size of a bucket or they do not: no length is left to check.
        candidates = ()
    for clip in candidates:
        thin = find_thin(clip, buckets, options.limits)
        if thin:
            bad.append(BadClip(clip.path, "too_large", thin))
        elif options.rate.count_starts(clip.info, shortest):
            clips.append(clip)
        else:
            have = options.rate.count_frames(clip.info)
            detail = f"{have} frames{options.rate}, the shortest bucket takes {shortest}"
            bad.append(BadClip(clip.path, "too_short", detail))
    report = BadClips(index.where, bad, options.bad_clip_budget, options.bad_clip_window)
    if not clips:
        raise report.none_left("")
    return report, clips


def _report_empty_part(report: BadClips, split: str) -> None:
    """Raise if there is nothing to train on; warn if there is nothing to validate on."""
    if split == TRAIN:
        raise report.none_left(" for training")
    logging.warning(
        "%s has nothing to validate on: it takes two files and data.validation_share > 0",
        report.where,
    )


def _hash_content(
    options, source, buckets, clips, split: str, seed: int, labels: Sequence[str]
) -> str:
    """Hex SHA-256 of everything that decides the content of the batches."""
    stated = {
        key: value
        for key, value in dataclasses.asdict(options).items()
        if key not in _NOT_IN_FINGERPRINT
    }
    usual = {"bucket_rule": "nearest", "resize": "area", "length_weights": (), "max_shapes": 0}
    usual["frame_interval"] = 1
    for key, before in usual.items():
        if stated[key] == before:  # hash as before this option existed
            del stated[key]
    if isinstance(source, LatentSource):
        stated["latents"] = source.header.to_json()
    # It decides which windows are scored, and nothing in training.
    if split == VALIDATION:
        stated["validation_clips"] = options.validation_clips
    # Names are relative to the source, so a folder may be moved without changing the hash.
    rows = [(clip.path, clip.frames, clip.fps, clip.size, clip.info.is_image) for clip in clips]
    parts = [stated, [str(b) for b in buckets], rows, split, seed]
    words = [(clip.label, clip.caption) for clip in clips]
    if labels or any(caption for _, caption in words):
        parts += [labels, words]
    text = dump_json(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Loader:
    """Iterator of host batches.

    A batch is a dict: ``video`` uint8 [b, T, H, W, 3], or of a latent data set ``latent`` float32
    [b, t, h, w, c] as encoded and what else is kept (``data.latent_set``; ``text`` is padded with
    zeros and has a ``text_length`` int32 [b]), or of pairs ``other``, the second videos, and
    ``judged`` int32 [b, scores] besides (``data.sources.pairs``); ``mask`` float32 [b], 1 for a
    real window and 0 for padding (validation only); ``clip`` int32 [b], row of ``index`` (-1:
    padding); ``start`` float32 [b], seconds into the clip; ``skipped``, (path, reason, detail) of
    the clips that failed while this batch was read. b is this process's share of the bucket's
    batch. Where the source has labels or captions: ``label`` int32 [b], place in ``labels`` (-1:
    none), and ``caption``, a list of b texts.

    Training never ends. Validation and 'whole' end, have ``len``, and start again with each
    ``iter``. Close the loader (or use ``with``) to end its decoding processes.

    Attributes:
      index: the clips of this part.
      report: the bad clips (``BadClips``).
      fingerprint: hash of what decides the batches; the same on all processes.
      labels: names of the classes.
      wait_s: seconds spent waiting for data so far.
      before_batch: called before each batch; what it raises goes to whoever asked for the batch.
    """

    def __init__(
        self,
        stream: grain.MapDataset | None,
        *,
        options: DataOptions,
        clips: tuple[Clip, ...],
        report: BadClips,
        split: str,
        start_step: int,
        fingerprint: str,
        labels: tuple[str, ...] = (),
        captions: bool = False,
    ):
        self.index = list(clips)
        self.report = report
        self.fingerprint = fingerprint
        self.labels, self._captions = labels, captions
        self._numbers = {name: number for number, name in enumerate(labels)}
        self.wait_s = 0.0
        self.before_batch: Callable[[], None] = lambda: None
        self._stream, self._options, self._split = stream, options, split
        self._first = self._step = start_step
        self._batches: Any = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __len__(self) -> int:
        """Batches of one pass over the validation part."""
        if self._split == TRAIN:
            raise TypeError("training data has no end")
        return 0 if self._stream is None else len(self._stream)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._split != TRAIN:
            self.close()
            self._step = self._first
        return self

    def __next__(self) -> dict[str, Any]:
        self.before_batch()
        began = time.monotonic()
        try:
            if self._batches is None:
                # Grain starts its processes with the first element, so it is asked for in here.
                with _shield_children_from_ctrl_c():
                    self._batches = self._start_reading()
                    raw = next(self._batches)
            else:
                raw = next(self._batches)
        except StopIteration:
            self.close()
            raise
        batch = {key: _copy_if_shared(raw[key]) for key in raw if key != "skipped"}
        batch["skipped"] = [
            (self.index[row].path, reason, detail)
            for row, reason, detail in json.loads(str(raw["skipped"]))
        ]
        del raw  # returns the worker's shared memory before the next batch is asked for
        batch |= self._collect_texts(batch["clip"])
        self.wait_s += time.monotonic() - began
        self._step += 1
        for bad in self.report.record(len(batch["mask"]), batch["skipped"]):
            logging.warning("clip left out: %s: %s: %s", bad.path, bad.reason, bad.detail)
        # Training has no padding: a position stays empty only if many draws in a row failed.
        if self._split == TRAIN and not batch["mask"].all():
            raise self.report.none_left(" left after many draws")
        self.report.check()
        return batch

    def _collect_texts(self, rows: np.ndarray) -> dict[str, Any]:
        """Labels and captions of a batch."""
        clips = [self.index[row] if row >= 0 else None for row in rows]
        words: dict[str, Any] = {}
        if self.labels:
            numbers = [self._numbers.get(clip.label, -1) if clip else -1 for clip in clips]
            words["label"] = np.array(numbers, np.int32)
        if self._captions:
            words["caption"] = [clip.caption if clip else "" for clip in clips]
        return words

    def _start_reading(self):
        """Start reading at the current step."""
        if self._stream is None or (self._split != TRAIN and self._step >= len(self)):
            return iter(())
        options = self._options
        ahead = max(1, options.prefetch)
        if options.num_workers:
            ahead = max(1, options.read_threads)  # in each worker, beside its own queue below
        # Positions have random access, so resuming is cutting off what was read.
        stream = self._stream[self._step :] if self._step else self._stream
        # Threads fill the buffer: with fewer places than threads, some of them would wait.
        batches = stream.to_iter_dataset(
            grain.ReadOptions(
                num_threads=options.read_threads,
                prefetch_buffer_size=max(ahead, options.read_threads),
            )
        )
        if options.num_workers:
            if not flags.FLAGS.is_parsed():  # Grain reads an absl flag; a library has no argv
                flags.FLAGS.mark_as_parsed()
            # The batches to decode ahead are shared out among the workers.
            batches = batches.mp_prefetch(
                grain.multiprocessing.MultiprocessingOptions(
                    num_workers=options.num_workers,
                    per_worker_buffer_size=max(1, -(-options.prefetch // options.num_workers)),
                )
            )
        return iter(batches)

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores: the next step, the fingerprint, the number of workers."""
        return {
            "step": self._step,
            "fingerprint": self.fingerprint,
            "workers": self._options.num_workers,
        }

    def check_state(self, saved: Mapping[str, Any]) -> None:
        """Warn if a checkpoint was written with other data; the number of workers may differ."""
        if saved["fingerprint"] != self.fingerprint:
            logging.warning(
                "the data has changed since the checkpoint (clips, buckets, frame rate, crop or "
                "seed): training goes on at step %d, but not with the batches it would have seen",
                self._step,
            )

    def close(self) -> None:
        """Stop reading and end the decoding processes. The loader can be iterated again."""
        batches, self._batches = self._batches, None
        if batches is not None and hasattr(batches, "close"):
            batches.close()


def _copy_if_shared(array: np.ndarray) -> np.ndarray:
    """The array itself, or a copy if it lies in the shared memory of a worker process."""
    # Grain hands over arrays in shared memory as a subclass of ndarray.
    return array if type(array) is np.ndarray else np.array(array)


@contextlib.contextmanager
def _shield_children_from_ctrl_c() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C; this process gets it when the block ends.

    Ctrl-C goes to the whole process group. But it is the run's own process that decides what to do
    (save, then stop), and for the current step it still needs its decoding processes. They inherit
    the blocked signal, so they are safe from their first instruction.
    """
    resource_tracker.ensure_running()  # starting it later would unblock the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
