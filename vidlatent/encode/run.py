"""``--mode=encode``: a folder, TFDS set or renderer -> a latent data set (``data.latent_set``).

Windows are dealt out to shards once and for all, and shard ``k`` belongs to process ``k`` modulo
their number. A shard that is not whole is written again from its beginning, with the same bytes; so
a run that was killed at any time, run again, leaves every window in the set exactly once.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from vidlatent.data.buckets import parse_buckets
from vidlatent.data.latent_set import HEADER, NULL_TEXT, Header, Shard, Window
from vidlatent.data.loader import Loader, make_index, make_loader
from vidlatent.data.loaders import check_buckets
from vidlatent.data.split import WHOLE
from vidlatent.data.stream import Listed
from vidlatent.encode.content import ContentLatents
from vidlatent.encode.encoders import ImageTokens, LatentEncoder, TextStates
from vidlatent.encode.pictures import draw_pictures
from vidlatent.encode.plan import EncodeOptions, Plan, digest_of, plan_windows, settle, shard_count
from vidlatent.encode.shards import ShardWriter, finished_shard, merge_shards, stored_as
from vidlatent.errors import VidlatentError
from vidlatent.models.load import model_of, restored_params, spec_in_chunks
from vidlatent.parallel.mesh import local_mesh

__all__ = ["encode_set"]


def encode_set(config: ConfigDict, workdir: Path, step: int, output: str) -> int:
    """Encode ``config.data`` with the tokenizer of ``workdir`` as ``config.encode`` says.

    Args:
      step: checkpoint of the tokenizer; below 0 the newest sound one.
      output: folder of the set; one that was begun there is gone on with.

    Returns:
      The exit status.

    Raises:
      VidlatentError: nothing to encode, a set made of something else in ``output``, missing
        weights, too many bad clips, a full disk.
    """
    if not output:
        raise VidlatentError("--mode=encode needs --output=<folder of the latent data set>.")
    if config.data.source == "latents":
        raise VidlatentError("config.data.source='latents' is encoded already: name the videos.")
    job = _Job(config, workdir, step, Path(output))
    with jax.set_mesh(job.mesh):
        job.prepare()
        job.run()
        job.finish()
    return 0


class _Job:
    """One process's part of the work."""

    def __init__(self, config: ConfigDict, workdir: Path, step: int, folder: Path):
        self.config, self.workdir, self.folder = config, workdir, folder
        self.options = EncodeOptions.of(config.encode.to_dict())
        self.process = self.options.process(jax.process_index(), jax.process_count())
        self.model = model_of(config)
        self.spec = spec_in_chunks(self.model, self.options.chunks, "config.encode.chunks")
        check_buckets(config, self.spec)
        self.mesh = local_mesh([bucket[3] for bucket in config.data.buckets])
        self._asked_step = step

    def prepare(self) -> None:
        """Open everything, cheap things that can be missing first, and settle the plan."""
        networks, dtype = self.config.networks.to_dict(), self.model.dtype
        self._text = self._image = self._still = None
        if self.options.text:
            self._text = TextStates(self.options, networks, self.mesh, dtype)
        if self.options.image:
            self._image = ImageTokens(self.options, networks, self.mesh, dtype)
        if self.options.content:
            self._still = ContentLatents(self.options, networks, self.mesh, dtype, self.config.seed)
        restored = restored_params(
            self.config, self.workdir, self.model, self.mesh, self._asked_step
        )
        self.step, self.weights = restored.step, digest_of(restored.state)
        self.params = restored.state
        # The checkpoint's own word: reading the config again adds the defaults of today.
        self._trained_with = restored.config_hash
        self.encoder = LatentEncoder(
            self.model,
            self.params,
            self.mesh,
            self.options.draws,
            self.config.seed,
            self.spec.chunks,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._data = self._video_options()
        self._index = make_index(self._data, seed=self.config.seed)
        with self._loader(None) as loader:
            self._indexed = [dataclasses.astuple(bad) for bad in loader.report.clips]
            self.plan = self._planned(loader.index)

    def _video_options(self) -> dict[str, Any]:
        """``config.data`` for windows that are what their clips are called."""
        data = self.config.data.to_dict() | {"flip": False, "crop": "centre"}
        if data["source"] == "folder" and not data["index_cache"]:
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

    def _planned(self, clips: list[Any]) -> Plan:
        options, fps = self.options, self._data["fps"]
        buckets = parse_buckets(self._data["buckets"], self.spec.lengths, 1)
        rule = self._data["bucket_rule"]
        places = plan_windows(clips, buckets, fps, options.windows, options.stride, rule)
        if not places:
            raise VidlatentError(
                f"no clip of {self._index.where} fills a bucket of config.data.buckets."
            )
        largest = max(_bytes_of(self.spec, bucket, options) for bucket in buckets)
        shards = shard_count(options.shards, len(places), largest, self.process[1])
        plan = Plan(clips, buckets, places, fps, shards)
        made_of = {
            "tokenizer": self.spec.hash,
            "weights": self.weights,
            "config.data": self._content(),
            "windows": [len(places), plan.digest()],
            "config.encode.dtype": options.dtype,
            "config.encode.draws": [options.draws, self.config.seed if options.draws else 0],
            "config.encode.text": self._text.label if self._text else "",
            "config.encode.image": self._image.label if self._image else "",
        }
        if self._still:  # sets that were begun before it was there go on
            draws = self.options.content_draw
            made_of["config.encode.content"] = [
                self._still.label,
                self.config.seed if draws else 0,
            ]
        asked = min(options.shards, len(places))
        shards = settle(self.folder, made_of, shards, asked)
        return dataclasses.replace(plan, shards=shards)

    def _content(self) -> dict[str, Any]:
        """What of ``config.data`` decides the pixels of a clip of a given name."""
        data = self._data
        if data["source"] == "synthetic":
            return {"synthetic": data["synthetic"], "seed": self.config.seed}
        return {"source": data["source"], "tfds_field": data["tfds_field"]}

    def run(self) -> None:
        """Write the shards of this process that are not there yet."""
        index, count = self.process
        mine = list(range(index, self.plan.shards, count))
        todo = [k for k in mine if finished_shard(self._path(k)) is None]
        total = sum(len(self.plan.shard(k)) for k in mine)
        done = total - sum(len(self.plan.shard(k)) for k in todo)
        if done:
            logging.info("%d of %d windows are there already", done, total)
        if not todo:
            return
        groups = [group for k in todo for group in self.plan.groups(k)]
        with self._loader(Listed(groups)) as loader, _Progress(total, done) as progress:
            encoded = _one_behind(self._encoded(loader, groups))
            for k in todo:
                with ShardWriter(self._path(k), self.spec.channels) as writer:
                    self._write(writer, len(self.plan.shard(k)), encoded, progress)
                    writer.publish()
                progress.say(f"shard {k + 1} of {self.plan.shards}")

    def _path(self, shard: int) -> Path:
        return self.folder / self.plan.files()[shard]

    def _encoded(self, loader: Loader, groups: list) -> Iterator[tuple[dict, list, Any]]:
        """``(batch, its windows, latents that are being computed)``, group after group."""
        batches = iter(loader)
        for number, places in groups:
            size = self.plan.buckets[number].batch
            for begin in range(0, len(places), size):
                some = places[begin : begin + size]
                batch = next(batches)
                windows = [self.plan.window(number, row, first) for row, first in some]
                # What fills the last batch up is encoded and forgotten.
                padding = size - len(some)
                clips = [window.clip for window in windows] + [""] * padding
                firsts = [window.first for window in windows] + [0] * padding
                yield batch, windows, self.encoder(batch["video"], clips, firsts)

    def _write(
        self, writer: ShardWriter, left: int, encoded: Iterator, progress: _Progress
    ) -> None:
        """The next ``left`` windows into a shard."""
        while left:
            batch, windows, latents = next(encoded)
            writer.bad(batch["skipped"])
            self._add(writer, batch, windows, np.asarray(latents))
            left -= len(windows)
            progress.advance(len(windows))

    def _add(
        self, writer: ShardWriter, batch: dict, windows: list[Window], latents: np.ndarray
    ) -> None:
        options, videos = self.options, batch["video"]
        texts = self._text([window.caption for window in windows]) if self._text else None
        seen = self._looked_at(videos) if self._image or self._still else None
        images = self._image(seen) if self._image else None
        stills = self._content_latents(seen, windows) if self._still else None
        for i, window in enumerate(windows):
            if not batch["mask"][i]:
                continue
            common: dict[str, np.ndarray] = {}
            content = self.encoder.content(videos[i])
            if content is not None:
                common["content"] = np.ascontiguousarray(content)
            if texts is not None:
                common["text"] = stored_as(texts[i], options.dtype, f"the text of {window.clip}")
            if images is not None:
                what = f"the picture of {window.clip}"
                common["image"] = stored_as(images[i], options.dtype, what)
            if stills is not None:
                what = f"the content frame's latent of {window.clip}"
                common["content_latent"] = stored_as(stills[i], options.dtype, what)
            for number, latent in enumerate(latents[i], 1):
                stored = stored_as(latent, options.dtype, f"the latent of {window.clip}")
                drawn = dataclasses.replace(window, draw=number if options.draws else 0)
                writer.add(drawn, {"latent": stored, **common}, latent)

    def _content_latents(self, frames: np.ndarray, windows: list[Window]) -> np.ndarray:
        padding = len(frames) - len(windows)
        clips = [window.clip for window in windows] + [""] * padding
        return self._still(frames, clips, [window.first for window in windows] + [0] * padding)

    def _looked_at(self, videos: np.ndarray) -> np.ndarray:
        """The frame of each window that an image encoder sees: the content frame, or frame 0."""
        if self.encoder.model.condition_kind != "content":
            return videos[:, 0]
        return np.stack([self.encoder.content(video)[0] for video in videos])

    def finish(self) -> None:
        """Write the header, once every shard is there; and what stands for a text that is dropped.

        The latter also into a set that was finished before.
        """
        if self._text and not (self.folder / NULL_TEXT).exists():
            part = self.folder / f"{NULL_TEXT}.{os.getpid()}.partial"
            with part.open("wb") as file:
                np.save(file, self._text.empty())
            os.replace(part, self.folder / NULL_TEXT)
        if (self.folder / HEADER).exists():
            logging.info("%s is complete", self.folder)
            return
        shards = [finished_shard(self._path(k)) for k in range(self.plan.shards)]
        missing = sum(shard is None for shard in shards)
        if missing:
            logging.info(
                "%d of %d shards are still to come; the process that writes the last one finishes "
                "the set",
                missing,
                self.plan.shards,
            )
            return
        header = self._header([shard for shard in shards if shard is not None])
        _report(header, self.folder)
        if self.options.pictures:
            path = draw_pictures(self.folder, self.model, self.params, self.workdir, self.options)
            logging.info("look at %s", path)

    def _header(self, shards: list[Shard]) -> Header:
        options = self.options
        about = {
            "where": self._index.where,
            "data": {"source": self._data["source"], "fps": self._data["fps"]},
            "windows": options.windows,
            "stride": options.stride,
            "draws": options.draws,
            "chunks": list(self.spec.chunks or ()),
            "text": self._text.label if self._text else "",
            "image": self._image.label if self._image else "",
            "content": self._still.label if self._still else "",
        }
        return merge_shards(
            self.folder,
            self.plan.files(),
            shards,
            self.spec,
            self._indexed,
            text_length=self._text.length if self._text else 0,
            dtype=options.dtype,
            label_names=self._index.labels,
            tokenizer=self._trained_with,
            step=self.step,
            weights=self.weights,
            source=about,
        )


def _bytes_of(spec: Any, bucket: Any, options: EncodeOptions) -> int:
    """About what a window of a bucket takes in the set."""
    size = (bucket.frames, bucket.height, bucket.width)
    item = 4 if options.dtype == "float32" else 2
    return int(np.prod(spec.latent_shape(size))) * item * max(1, options.draws)


def _one_behind(items: Iterable[Any]) -> Iterator[Any]:
    """The same items, each handed out when the next one is under way on the devices."""
    waiting: collections.deque[Any] = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


class _Progress:
    """A bar on a terminal, a line now and then elsewhere, both with the time that is left."""

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
        """So many more windows are done."""
        self._bar.update(windows)
        self._done += windows
        self._new += windows
        if time.monotonic() - self._said > self.QUIET_S:
            self.say("encode")

    def say(self, what: str) -> None:
        """A line, where there is no bar."""
        self._said = time.monotonic()
        if self._bar.disable:
            rate = self._new / max(self._said - self._began, 1e-9)
            left = tqdm.format_interval((self._total - self._done) / rate) if rate else "?"
            logging.info(
                "%s: %d of %d windows, %.1f windows/s, %s left",
                *(what, self._done, self._total, rate, left),
            )


def _report(header: Header, folder: Path) -> None:
    logging.info(
        "%s: %d windows of %d clips in %d shards; stored as %s, rounding error at most %.3g, root "
        "mean square %.3g (latents %.3g)",
        *(folder, header.windows, header.clips, len(header.shards), header.dtype),
        *(header.rounding["max"], header.rounding["rms"]),
        float(np.sqrt(np.mean(np.square(header.std) + np.square(header.mean)))),
    )
    if header.bad:
        logging.warning(
            "%d clips were left out; %s lists them with the reasons", len(header.bad), HEADER
        )
