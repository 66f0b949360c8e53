"""``--mode=encode``: a folder, TFDS set or renderer -> a latent data set (``data.latent_set``).

The plan fixes which windows a shard holds, and process ``k % processes`` writes shard ``k``. An
unfinished shard is written again from its beginning, with the same bytes. So after a run that was
killed at any time, running it again gives a set that holds every window exactly once.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from vidlatent import config as configs
from vidlatent.checkpoint.lock import FILE, lock_folder
from vidlatent.checkpoint.pins import pin_step
from vidlatent.data.buckets import parse_buckets
from vidlatent.data.frame_rate import FrameRate
from vidlatent.data.latent_set import HEADER, NULL_TEXT, Header, Shard, Window
from vidlatent.data.loader import Loader, make_index, make_loader
from vidlatent.data.loaders import check_buckets
from vidlatent.data.split import WHOLE
from vidlatent.data.stream import Listed
from vidlatent.encode.content import ContentLatents
from vidlatent.encode.encoders import ImageTokens, LatentEncoder, TextStates, choose_chunks
from vidlatent.encode.for_generator import tokenizer_job
from vidlatent.encode.pictures import draw_pictures
from vidlatent.encode.plan import (
    EncodeOptions,
    EncodePlan,
    choose_shard_count,
    plan_windows,
    write_or_check_plan,
)
from vidlatent.encode.shards import ShardWriter, merge_shards, read_finished_shard, round_to_dtype
from vidlatent.encode.statistics import LatentMoments, check_measurable, settle_moments
from vidlatent.errors import VidlatentError
from vidlatent.files import replace_file
from vidlatent.latents.digest import hash_encoder, hash_params
from vidlatent.latents.pairs import LOW, check_halves, halve_pixels
from vidlatent.models.load import model_of, restore_tokenizer
from vidlatent.parallel.mesh import local_mesh
from vidlatent.paths import as_path

__all__ = ["encode_set"]


def encode_set(config: ConfigDict, workdir: Path, step: int, output: str) -> int:
    """Encode ``config.data`` with the tokenizer of ``workdir`` as ``config.encode`` says.

    Args:
      config: the tokenizer's, or that of a generator for which the set is (``for_generator``).
      step: checkpoint of the tokenizer; below 0 the newest sound one.
      output: folder of the set; an unfinished set there is resumed.

    Returns:
      The exit status.

    Raises:
      VidlatentError: there is nothing to encode, ``output`` holds another set, weights are
        missing, too many clips are bad, or the disk is full.
    """
    if not output:
        raise VidlatentError("--mode=encode needs --output=<folder of the latent data set>.")
    if (as_path(output) / "config.json").exists():
        raise VidlatentError(f"--output={output} holds a run: name another folder for the set.")
    if configs.is_generator(config):
        config, workdir, step = tokenizer_job(config, workdir, step)
    if config.data.source == "latents":
        raise VidlatentError("config.data.source='latents' is encoded already: name the videos.")
    job = _Job(config, workdir, step, as_path(output))
    with jax.set_mesh(job.mesh):
        job.prepare()
        # Several processes may fill one folder, each with a number and shards of its own.
        number, count = job.process
        name = FILE if count == 1 else f"writer_{number}.lock"
        with lock_folder(output, "--output", name):
            job.run()
            job.finish()
    return 0


class _Job:
    """This process's part of the work."""

    def __init__(self, config: ConfigDict, workdir: Path, step: int, folder: Path):
        self.config, self.workdir, self.folder = config, workdir, folder
        self.options = EncodeOptions.of(config.encode)
        self.process = self.options.process(jax.process_index(), jax.process_count())
        self.model = model_of(config)
        self.spec, self.coding = choose_chunks(config, self.model)
        check_buckets(config, self.spec)
        if self.options.low:
            sizes = [tuple(bucket[:3]) for bucket in config.data.buckets]
            check_halves(self.model.latent_spec, sizes, "config.encode.low")
        self.mesh = local_mesh([bucket[3] for bucket in config.data.buckets])
        self._asked_step = step

    def prepare(self) -> None:
        """Load networks and weights, index the clips, and write or check the plan."""
        networks, dtype = self.config.networks, self.model.dtype
        self._text: TextStates | None = None
        self._image: ImageTokens | None = None
        self._still: ContentLatents | None = None
        if self.options.text:
            self._text = TextStates(self.options, networks, self.mesh, dtype)
        if self.options.image:
            self._image = ImageTokens(self.options, networks, self.mesh, dtype)
        if self.options.content:
            self._still = ContentLatents(self.options, networks, self.mesh, dtype, self.config.seed)
        restored = restore_tokenizer(
            self.config, self.workdir, self.model, self.mesh, self._asked_step
        )
        self.step, self.weights = restored.step, hash_params(restored.state)
        self.encoder_digest = hash_encoder(self.model, restored.state)
        self.params = restored.state
        # As stored in the checkpoint: reading the config again would add today's defaults.
        self._trained_with = restored.config_hash
        self.encoder = LatentEncoder(
            self.model,
            self.params,
            self.mesh,
            self.options.draws,
            self.config.seed,
            self.coding,
        )
        check_measurable(self.config, self.workdir, self.encoder, self.encoder_digest)
        self._data = self._video_options()
        self._index = make_index(self._data, seed=self.config.seed)
        # No windows yet: this loader only indexes the clips.
        with self._loader(None) as loader:
            self._indexed = [dataclasses.astuple(bad) for bad in loader.report.clips]
            self.plan = self._make_plan(loader.index)

    def _video_options(self) -> dict[str, Any]:
        """``config.data`` without flips and random crops: windows as they are in their clips."""
        data = self.config.data.to_dict()
        if self.options.flip != "none" and (data["source"], data["synthetic"]["kind"]) == (
            "synthetic",
            "shapes",
        ):
            raise VidlatentError(
                f"config.encode.flip={self.options.flip!r} would turn the left and right that "
                "labels of config.data.synthetic.kind='shapes' speak of: set it to 'none'."
            )
        data |= {"flip": False, "crop": "centre"}
        if data["source"] == "folder" and not data["index_cache"]:
            # A run that is resumed need not open every file again.
            data["index_cache"] = str(self.folder / "clips.json")
        return data

    def _loader(self, windows: Listed | None) -> Loader:
        return make_loader(
            self._data,
            split=WHOLE,
            rule=self.spec.lengths,
            seed=self.config.seed,
            index=self._index,
            windows=windows,
        )

    def _make_plan(self, clips: list[Any]) -> EncodePlan:
        options, rate = self.options, FrameRate(self._data["fps"], self._data["frame_interval"])
        buckets = parse_buckets(self._data["buckets"], self.spec.lengths, 1)
        how = self.config.seed, self._data["bucket_rule"], self._data["max_shapes"]
        places = plan_windows(clips, buckets, rate, options, *how)
        if not places:
            raise VidlatentError(
                f"no clip of {self._index.where} fills a bucket of config.data.buckets."
            )
        sizes = [(bucket.height, bucket.width) for bucket in buckets]
        largest = max(_estimate_bytes(self.spec, bucket, options) for bucket in buckets)
        shards = choose_shard_count(options.shards, len(places), largest, self.process[1])
        plan = EncodePlan(clips, buckets, places, rate, shards)
        made_of = {
            "tokenizer": self.spec.hash,
            "weights": self.weights,
            "config.data": self._pixel_settings(),
            "windows": [len(places), plan.digest()],
            # Only where frames are so large that it changes their latents.
            "config.codec.space": self.encoder.cut if self.encoder.cuts(sizes) else "",
            "config.encode.dtype": options.dtype,
            # Without draws the seed decides nothing, so another one may resume the set.
            "config.encode.draws": [options.draws, self.config.seed if options.draws else 0],
            "config.encode.text": self._text.label if self._text else "",
            "config.encode.image": self._image.label if self._image else "",
        }
        if self._still:  # only then, so that sets that were begun before the key existed resume
            draws = self.options.content_draw
            made_of["config.encode.content"] = [
                self._still.label,
                self.config.seed if draws else 0,
            ]
        if options.low:
            made_of["config.encode.low"] = [options.low]
        # A set has no more shards than windows, whatever was asked for.
        asked = min(options.shards, len(places))
        shards = write_or_check_plan(self.folder, made_of, shards, asked)
        return dataclasses.replace(plan, shards=shards)

    def _pixel_settings(self) -> dict[str, Any]:
        """The keys of ``config.data`` that decide the pixels of a clip with a given name."""
        data = self._data
        if data["source"] == "synthetic":
            return {"synthetic": data["synthetic"], "seed": self.config.seed}
        return {"source": data["source"], "tfds_field": data["tfds_field"]}

    def run(self) -> None:
        """Write the shards of this process that are not there yet."""
        index, count = self.process
        mine = list(range(index, self.plan.shards, count))
        todo = [k for k in mine if read_finished_shard(self._path(k)) is None]
        total = sum(len(self.plan.shard(k)) for k in mine)
        done = total - sum(len(self.plan.shard(k)) for k in todo)
        if done:
            logging.info("%d of %d windows are encoded already", done, total)
        if not todo:
            return
        groups = [group for k in todo for group in self.plan.groups(k)]
        listed = [
            (number, [(place.row, place.first) for place in places]) for number, places in groups
        ]
        with self._loader(Listed(listed)) as loader, _Progress(total, done) as progress:
            # The devices encode the next batch while the host writes this one.
            encoded = _delay_by_one(self._encode(loader, groups))
            for k in todo:
                with ShardWriter(self._path(k), self.spec) as writer:
                    self._write(writer, len(self.plan.shard(k)), encoded, progress)
                    writer.publish()
                progress.say(f"shard {k + 1} of {self.plan.shards}")

    def _path(self, shard: int) -> Path:
        return self.folder / self.plan.files()[shard]

    def _encode(self, loader: Loader, groups: list) -> Iterator[tuple[dict, list, Any]]:
        """``(batch, its windows, latents by name)`` by groups; latents are still computing."""
        batches = iter(loader)
        for number, places in groups:
            size = self.plan.buckets[number].batch
            for begin in range(0, len(places), size):
                some = places[begin : begin + size]
                batch = next(batches)
                windows = [self.plan.window(place) for place in some]
                # Before anything is made of the frames: the content frame is mirrored with them.
                batch["video"] = _flip(batch["video"], [window.flip for window in windows])
                # The last batch is padded; latents of the padding are not stored.
                padding = size - len(some)
                clips = [window.clip for window in windows] + [""] * padding
                firsts = [window.first for window in windows] + [0] * padding
                latents = {"latent": self.encoder(batch["video"], clips, firsts)}
                if self.options.low:
                    half = np.asarray(halve_pixels(batch["video"]))
                    latents[LOW] = self.encoder(half, clips, firsts)
                yield batch, windows, latents

    def _write(
        self, writer: ShardWriter, left: int, encoded: Iterator, progress: _Progress
    ) -> None:
        """Write the next ``left`` windows into a shard."""
        while left:
            batch, windows, latents = next(encoded)
            writer.bad(batch["skipped"])
            host = {name: np.asarray(found) for name, found in latents.items()}
            self._write_batch(writer, batch, windows, host)
            left -= len(windows)
            progress.advance(len(windows))

    def _write_batch(
        self,
        writer: ShardWriter,
        batch: dict,
        windows: list[Window],
        latents: dict[str, np.ndarray],
    ) -> None:
        options, videos = self.options, batch["video"]
        texts = self._text([window.caption for window in windows]) if self._text else None
        images = stills = None
        if self._image or self._still:
            seen = self._image_encoder_frames(videos)
            images = self._image(seen) if self._image else None
            stills = self._encode_content(self._still, seen, windows) if self._still else None
        for i, window in enumerate(windows):
            # The window could not be read; the shard lists its clip among the bad ones.
            if not batch["mask"][i]:
                continue
            common: dict[str, np.ndarray] = {}
            content = self.encoder.content(videos[i])
            if content is not None:
                common["content"] = np.ascontiguousarray(content)
            if texts is not None:
                common["text"] = round_to_dtype(
                    texts[i], options.dtype, f"the text of {window.clip}"
                )
            if images is not None:
                what = f"the picture of {window.clip}"
                common["image"] = round_to_dtype(images[i], options.dtype, what)
            if stills is not None:
                what = f"the content frame's latent of {window.clip}"
                common["content_latent"] = round_to_dtype(stills[i], options.dtype, what)
            what = f"the latent of {window.clip}"
            for number, latent in enumerate(latents["latent"][i]):
                stored = {
                    name: round_to_dtype(found[i, number], options.dtype, what)
                    for name, found in latents.items()
                }
                # Draws count from 1, and 0 stands for the mean.
                drawn = dataclasses.replace(window, draw=number + 1 if options.draws else 0)
                writer.add(drawn, {**stored, **common}, latent)

    @staticmethod
    def _encode_content(
        network: ContentLatents, frames: np.ndarray, windows: list[Window]
    ) -> np.ndarray:
        padding = len(frames) - len(windows)
        clips = [window.clip for window in windows] + [""] * padding
        return network(frames, clips, [window.first for window in windows] + [0] * padding)

    def _image_encoder_frames(self, videos: np.ndarray) -> np.ndarray:
        """The frame of each window for the image encoder: its content frame, or frame 0."""
        if self.encoder.model.condition_kind != "content":
            return videos[:, 0]
        content = (self.encoder.content(video) for video in videos)
        return np.stack([frames[0] for frames in content if frames is not None])

    def finish(self) -> None:
        """Write the header if all shards are finished, and the states of the empty text.

        Those stand for texts that training drops; a set that was finished before gets them, too.
        """
        if self._text and not (self.folder / NULL_TEXT).exists():
            # Whole: several processes may write it, and others may read it.
            with replace_file(self.folder / NULL_TEXT) as file:
                np.save(file, self._text.empty())
        if (self.folder / HEADER).exists():
            logging.info("%s is complete", self.folder)
            return
        shards = [read_finished_shard(self._path(k)) for k in range(self.plan.shards)]
        missing = sum(shard is None for shard in shards)
        if missing:
            logging.info(
                "%d of %d shards are missing; the process that writes the last one completes "
                "the set",
                missing,
                self.plan.shards,
            )
            return
        header = self._header([shard for shard in shards if shard is not None])
        _log_result(header, self.folder)
        if self.options.pictures:
            path = draw_pictures(
                *(self.folder, self.model, self.params, self.coding),
                *(self.workdir, self.options.pictures, self._read),
            )
            logging.info("wrote %s", path)

    def _read(self, windows: Sequence[Window]) -> list[np.ndarray]:
        """The frames of windows of the set, read again."""

        def name(window: Window) -> tuple[Any, ...]:
            sizes = window.frames, window.height, window.width
            return window.clip, window.first, *sizes, window.flip

        asked = {name(window) for window in windows}
        places = [p for p in self.plan.places if name(self.plan.window(p)) in asked]
        found = {}
        # One place a group, so that each batch holds one window and padding.
        with self._loader(Listed([(p.bucket, [(p.row, p.first)]) for p in places])) as loader:
            for place, batch in zip(places, loader, strict=False):
                window = self.plan.window(place)
                found[name(window)] = _flip(batch["video"], [window.flip])[0]
        return [found[name(window)] for window in windows]

    def _header(self, shards: list[Shard]) -> Header:
        options = self.options
        about = {
            "where": self._index.where,
            "data": {key: self._data[key] for key in ("source", "fps", "frame_interval")},
            # Also those that no clip was nearest to.
            "buckets": [[b.frames, b.height, b.width] for b in self.plan.buckets],
            "windows": options.windows,
            "windows_per_clip": options.windows_per_clip,
            "stride": options.stride,
            "flip": options.flip,
            "draws": options.draws,
            "chunks": list(self.spec.chunks or ()),
            "cut": self.encoder.describe(),
            "low": options.low,
            "text": self._text.label if self._text else "",
            "image": self._image.label if self._image else "",
            "content": self._still.label if self._still else "",
        }

        def settle(measured: LatentMoments) -> list[dict[str, Any]]:
            known = {"encoder": self.encoder_digest, "cut": self.encoder.cut, "step": self.step}
            return settle_moments(
                self.workdir, measured.statistics(**known, where=self._index.where)
            )

        # The latents are worth nothing without what decodes them.
        pin_step(self.workdir, self.step, f"the latent set {self.folder}")
        return merge_shards(
            self.folder,
            self.plan.files(),
            shards,
            self.spec,
            self._indexed,
            settle=settle,
            text_length=self._text.length if self._text else 0,
            dtype=options.dtype,
            label_names=self._index.labels,
            tokenizer=self._trained_with,
            step=self.step,
            weights=self.weights,
            encoder=self.encoder_digest,
            cut=self.encoder.cut,
            source=about,
        )


def _estimate_bytes(spec: Any, bucket: Any, options: EncodeOptions) -> int:
    """Approximate size of a window of a bucket in the set."""
    size = (bucket.frames, bucket.height, bucket.width)
    item = 4 if options.dtype == "float32" else 2
    pair = 1.25 if options.low else 1  # half the height and half the width
    return int(pair * np.prod(spec.latent_shape(size))) * item * max(1, options.draws)


def _flip(videos: np.ndarray, flips: list[bool]) -> np.ndarray:
    """``[B, T, H, W, 3]`` whose rows with a True are mirrored left to right."""
    if not any(flips):
        return videos
    rows = np.flatnonzero(flips)
    videos = videos.copy()
    videos[rows] = videos[rows, :, :, ::-1]
    return videos


def _delay_by_one(items: Iterable[Any]) -> Iterator[Any]:
    """The same items, each yielded once the next one has been started on the devices."""
    waiting: collections.deque[Any] = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


class _Progress:
    """A bar on a terminal, else a line every 30 seconds, both with the remaining time."""

    QUIET_S = 30.0

    def __init__(self, total: int, done: int):
        self._bar = tqdm(total=total, initial=done, unit="window", disable=None, desc="encode")
        self._total, self._done, self._new = total, done, 0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, windows: int) -> None:
        """Count windows that are done."""
        self._bar.update(windows)
        self._done += windows
        self._new += windows
        if time.monotonic() - self._said > self.QUIET_S:
            self.say("encode")

    def say(self, what: str) -> None:
        """Log a line if there is no bar."""
        self._said = time.monotonic()
        if self._bar.disable:
            rate = self._new / max(self._said - self._began, 1e-9)
            left = tqdm.format_interval((self._total - self._done) / rate) if rate else "?"
            logging.info(
                "%s: %d of %d windows, %.1f windows/s, %s left",
                *(what, self._done, self._total, rate, left),
            )


def _log_result(header: Header, folder: Path) -> None:
    logging.info(
        "%s: %d windows of %d clips in %d shards; stored as %s, rounding error at most %.3g, root "
        "mean square %.3g (of the latents %.3g)",
        *(folder, header.windows, header.clips, len(header.shards), header.dtype),
        *(header.rounding["max"], header.rounding["rms"]),
        float(np.sqrt(np.mean(np.square(header.std) + np.square(header.mean)))),
    )
    if header.bad:
        logging.warning(
            "%d clips were left out; %s lists them with the reasons", len(header.bad), HEADER
        )
