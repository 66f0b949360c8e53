"""Videos from classes, texts and images: a trained generator together with its tokenizer.

A video depends on the generator's weights, the settings, its own seed and its conditions, not on
the batch that it is in. Latents are sampled a batch at a time; frames are decoded and written piece
by piece.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from vidlatent import config as configs
from vidlatent.codec.codec import Codec
from vidlatent.errors import VidlatentError
from vidlatent.files import write_json
from vidlatent.latents.inputs import find_pooled_side, pool_content
from vidlatent.latents.space import Latents, generator_of, restore_generator
from vidlatent.media.pictures import read_picture
from vidlatent.media.sheets import contact_sheet, pick_frames
from vidlatent.media.write import VideoWriter
from vidlatent.models.generators.fp8_weights import cast_to_fp8
from vidlatent.parallel.mesh import make_mesh
from vidlatent.parallel.multihost import is_main
from vidlatent.sample.conditions import ContentEncoder, ImageEncoder, TextEncoder
from vidlatent.sample.grid import load_tokenizer_codec, use_one_device
from vidlatent.sample.outputs import collect_settings, name_video
from vidlatent.sample.requests import Request, make_requests, read_prompts
from vidlatent.sample.sampler import LatentSampler, latent_psnr

__all__ = ["Generator", "generate_videos", "load_generator"]

_FPS = 24.0  # of written files, if neither config.sample.fps nor the data set gives a rate
_SHOWN, _COLUMNS = 48, 8  # videos on the contact sheet, and frames of each


class Generator:
    """A trained generator with its weights, sampler and tokenizer.

        generator = Generator.from_workdir("runs/fsvideo_dit-demo")
        for request, latent in generator.latents(generator.requests(["red square moving left"])):
            video = np.concatenate(list(generator.decode(request, latent)))

    Args:
      config: of its run, overrides included.
      params: its parameters, on ``mesh``.
      latents: the latent space that it was trained in.
      mesh: of the devices to use.
      step: of the checkpoint.

    Attributes:
      size: frames, height and width of the videos.
      shape: of their latents, ``(t, h, w, c)``.
      sampler: the compiled sampling loop.
      fp8_psnr: with ``config.sampler.fp8``, PSNR in dB of the first batch's latents against the
        same sampled without fp8; None before the first batch, and without fp8.
      compute: name of the generator's compute dtype.
      codec: the tokenizer; None if the config names none.
    """

    def __init__(
        self, config: ConfigDict, params: Any, latents: Latents, mesh: Mesh, step: int = 0
    ):
        self.config, self.params, self.known, self.step = config, params, latents, step
        self.model, self._mesh = generator_of(config), mesh
        self.compute = jnp.dtype(self.model.dtype).name
        self.size = self._size()
        self.shape = self._latent_shape()
        self.sampler = self._new_sampler()
        self._exact: Any = None
        self.fp8_psnr: float | None = None
        if config.sampler.fp8:
            self._exact = params  # for comparison; released after the first batch
            with jax.set_mesh(mesh):
                self.params = jax.jit(cast_to_fp8)(params)
        self.codec: Codec | None = None
        if config.tokenizer.path:
            # The codec runs on one device: requests are decoded one after another.
            with use_one_device():
                self.codec = load_tokenizer_codec(config, latents)
        self._encode_image, self._encode_content = ImageEncoder(config), ContentEncoder(config)
        if "text" in self.model.reads:
            self._encode_texts = TextEncoder(config, self.model.text_length)
        self._pictures: dict[str, np.ndarray] = {}

    @classmethod
    def from_workdir(
        cls, workdir: str | Path, overrides: Mapping[str, str] | None = None, step: int = -1
    ) -> Generator:
        """The generator trained in ``workdir``; ``step`` below 0 is the newest sound one."""
        if not configs.is_generator(configs.read(Path(workdir))):
            raise VidlatentError(f"{workdir} is the run of a tokenizer: read it by load_codec.")
        return cls.of(configs.read(Path(workdir), overrides), Path(workdir), step)

    @classmethod
    def of(cls, config: ConfigDict, workdir: Path, step: int) -> Generator:
        """``from_workdir`` with a config that has been read already."""
        latents, mesh = Latents.load(workdir), make_mesh(config.mesh)
        model = generator_of(config)
        with jax.set_mesh(mesh):
            restored = restore_generator(config, workdir, model, mesh, step)
        if restored.spec is not None and restored.spec.hash != latents.spec.hash:
            raise VidlatentError(
                f"the checkpoint of step {restored.step} is of latents {restored.spec}, but "
                f"{workdir} says {latents.spec}: train in another workdir."
            )
        return cls(config, restored.state, latents, mesh, restored.step)

    def _new_sampler(self) -> LatentSampler:
        return LatentSampler(self.model, self.config, self.shape)

    def _size(self) -> tuple[int, int, int]:
        size = tuple(self.config.sample.size) or tuple(self.config.data.buckets[-1][:3])
        if len(size) != 3 or min(size) < 1:
            raise VidlatentError(
                f"config.sample.size={size}: give (frames, height, width), such as (9, 64, 64)."
            )
        return size

    def _latent_shape(self) -> tuple[int, int, int, int]:
        """``(t, h, w, c)`` of the smallest latent that covers ``size`` and has whole patches."""
        spec, patch = self.known.spec, self.model.patch
        frames = spec.lengths.ceil(self.size[0])
        sides = [
            # A patch covers ``part`` latents of ``factor`` pixels in each direction.
            -(-side // (factor * part)) * factor * part
            for side, factor, part in zip(self.size[1:], (spec.h, spec.w), patch[1:], strict=True)
        ]
        return spec.latent_shape((frames, *sides))

    def requests(self, prompts: Sequence[str] = (), count: int = 1, seed: int = 0) -> list[Request]:
        """Requests for ``count`` videos of each prompt.

        Without prompts: of each class, or without any condition.
        """
        return self.requests_for([{"prompt": prompt} for prompt in prompts], count, seed)

    def requests_for(
        self, rows: Sequence[dict[str, object]], count: int, seed: int
    ) -> list[Request]:
        """``requests`` from rows as ``requests.read_prompts`` returns them."""
        names, classes = None, 0
        if "label" in self.model.reads:
            names, classes = self.known.label_names, self.model.label_classes
            # Without names the classes go by their numbers.
            rows = rows or [{"prompt": name} for name in names or map(str, range(classes))]
        elif "text" in self.model.reads and not rows:
            raise VidlatentError(
                "this generator reads texts: give --prompt='...' or --prompts=file.txt."
            )
        return make_requests(
            rows or [{"prompt": ""}], count=count, seed=seed, label_names=names, classes=classes
        )

    def latents(self, requests: Sequence[Request]) -> Iterator[tuple[Request, np.ndarray]]:
        """Latents ``[t, h, w, c]`` as the tokenizer decodes them, in the order of the requests.

        The last batch is filled up by repetition, so that one compiled program serves all batches.
        """
        size = max(1, min(self.config.sample.batch, len(requests)))
        start = 0
        while start < len(requests):
            # Either all requests of a batch have an image or none: conditions are one array each.
            pictured = bool(requests[start].image)
            batch = [requests[start]]
            for request in requests[start + 1 : start + size]:
                if bool(request.image) != pictured:
                    break
                batch.append(request)
            full = batch + [batch[-1]] * (size - len(batch))
            conditions = self._conditions(full)
            seeds = [r.seed % 2**32 for r in full]  # keys are made of uint32
            with jax.set_mesh(self._mesh):
                drawn = self.sampler(self.params, seeds, conditions)
                if self._exact is not None:
                    # A sampler of its own: the compiled one expects parameters in fp8.
                    exact = self._new_sampler()(self._exact, seeds, conditions)
                    self._exact, self.fp8_psnr = None, latent_psnr(drawn, exact)
                    message = "latents sampled in fp8: %.2f dB PSNR against those in %s"
                    logging.info(message, self.fp8_psnr, self.compute)
            # The first latent frame is known exactly, so the sampled one can be replaced by it.
            if self.config.sample.clamp_first and "first" in conditions and pictured:
                # NumPy's view of a device array cannot be written to.
                drawn = drawn.copy()
                drawn[:, :1] = conditions["first"]
            yield from zip(batch, self.known.restore(drawn)[: len(batch)], strict=True)
            start += len(batch)

    def _conditions(self, requests: Sequence[Request]) -> dict[str, Any]:
        """The generator's conditions by name, ``[B, ...]`` each; None for those not requested."""
        found: dict[str, Any] = {}
        # All of a batch have a picture or none has.
        found_pictures = (self.picture(request) for request in requests)
        pictures = [picture for picture in found_pictures if picture is not None]
        for name in self.model.reads:
            if name == "label":
                found[name] = np.asarray([request.label for request in requests], np.int32)
            elif name == "text":
                found |= self._encode_texts([request.prompt for request in requests])
            elif not pictures:
                found[name] = None
            elif name == "first":
                found[name] = np.stack([self._first(picture) for picture in pictures])
            elif name == "content":
                found[name] = self._content(np.stack(pictures))
            else:
                found[name] = self._encode_image(np.stack(pictures))
        return found

    def picture(self, request: Request) -> np.ndarray | None:
        """The request's image, resized and cropped to the videos' size: uint8 ``[H, W, 3]``."""
        if not request.image:
            return None
        if request.image not in self._pictures:
            if not Path(request.image).is_file():
                raise VidlatentError(f"there is no picture at {request.image}.")
            # Only the last image is kept: requests with the same image follow each other.
            self._pictures = {request.image: read_picture(request.image, self.size[1:])}
        return self._pictures[request.image]

    def _tokenizer(self) -> Codec:
        if self.codec is None:
            raise VidlatentError(
                "config.tokenizer.path is empty: name the tokenizer's workdir, "
                "--config.tokenizer.path=runs/fsae-demo, to code pictures and decode latents."
            )
        return self.codec

    def _first(self, picture: np.ndarray) -> np.ndarray:
        padded = self._pad(picture)
        with use_one_device():
            # [H, W, 3] -> [1, h, w, c]: a picture is a video of one frame.
            latent = self._tokenizer().encode(padded[None]).latent[:1]
        return np.asarray(self.known.standardise(latent))

    def _pad(self, picture: np.ndarray) -> np.ndarray:
        """The image ``[H, W, 3]`` with its last row and column repeated up to the latents' size."""
        spec = self.known.spec
        height, width = (n * f for n, f in zip(self.shape[1:3], (spec.h, spec.w), strict=True))
        room = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
        return np.pad(picture, room, mode="edge")

    def _content(self, pictures: np.ndarray) -> np.ndarray:
        padded = np.stack([self._pad(picture) for picture in pictures])
        if side := find_pooled_side(self.config, self.model, self.known):
            return np.asarray(pool_content(padded, side))
        return self._encode_content(padded)

    def check(self, requests: Sequence[Request]) -> None:
        """Raise for requests that sampling would refuse or ignore, before anything is sampled."""
        model, reads = self._tokenizer().model, self.model.reads
        decoder_reads_image = model.condition_kind != "none"
        reads_image = decoder_reads_image or bool({"first", "image", "content"} & {*reads})
        for request in requests:
            if request.prompt and not {"label", "text"} & {*reads}:
                raise VidlatentError(
                    f"this generator reads neither classes nor texts: leave {request.prompt!r} out."
                )
            if request.image and not reads_image:
                raise VidlatentError(
                    f"this generator reads no picture, so {request.image} would have no effect: "
                    "leave it out, or train one that does, such as "
                    "--config=configs/fsvideo_dit.py:demo,first=true."
                )
            if request.image and not Path(request.image).is_file():
                raise VidlatentError(f"there is no picture at {request.image}.")
            if decoder_reads_image and not request.image:
                raise VidlatentError(
                    f"{request.prompt!r} has no picture, but the decoder of "
                    f"{self.known.spec.name} reads one: give it by --input=picture.png, or as "
                    '"image" in --prompts=file.jsonl.'
                )

    def decode(self, request: Request, latent: np.ndarray) -> Iterator[np.ndarray]:
        """The frames of a latent ``[t, h, w, c]`` in pieces, uint8 ``[n, H, W, 3]``."""
        codec, picture = self._tokenizer(), self.picture(request)
        content = None
        if picture is not None:
            # Reducio reads a content frame for each clip: the one picture stands for all.
            clips = -(-self.size[0] // self.known.spec.rule.first)
            several = codec.model.condition_kind == "content"
            content = np.stack([picture] * (clips if several else 1))
        pieces = codec.decode_stream([latent], self.size[0], self.size[1:], content)
        # Not a plain loop: the mesh must be set while a piece is made, not while it is consumed.
        while True:
            with use_one_device():
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece


def load_generator(path: str | Path, *, step: int | None = None, **keys: Any) -> Generator:
    """A generator ready to make videos.

    Args:
      path: folder of its run, such as ``runs/fsvideo_dit-demo``.
      step: checkpoint; None for the newest sound one.
      keys: keys of ``config.sampler`` to change, such as ``steps=20``.

    Raises:
      VidlatentError: there is no run of a generator, or it has no such key.
    """
    overrides = {f"sampler.{key}": str(value) for key, value in keys.items()}
    return Generator.from_workdir(path, overrides, -1 if step is None else step)


def generate_videos(
    config: ConfigDict,
    workdir: Path,
    step: int,
    output: str,
    prompt: str,
    prompts: str,
    input: str,
) -> int:
    """``--mode=sample``: writes videos, a contact sheet and all settings as JSON.

    Args:
      config, workdir: of the generator's run.
      step: checkpoint; below 0 the newest.
      output: folder; empty: ``<workdir>/samples/step_<n>``.
      prompt: one text or class.
      prompts: a file of prompts; with neither, ``config.sample.prompts``.
      input: image that is the first (or the content) frame of every video.
    """
    if not configs.is_generator(config):
        raise VidlatentError(
            f"--workdir={workdir} is a tokenizer's: --mode=sample needs a generator's, such as "
            "that of configs/fsvideo_dit.py."
        )
    if prompt and prompts:
        raise VidlatentError("--prompt and --prompts: give one of the two.")
    rows = [{"prompt": text} for text in ([prompt] if prompt else config.sample.prompts)]
    rows = read_prompts(prompts) if prompts else rows
    generator = Generator.of(config, workdir, step)
    requests = generator.requests_for(rows, config.sample.count, config.sample.seed)
    if input:
        requests = [dataclasses.replace(request, image=input) for request in requests]
    generator.check(requests)
    folder = Path(output) if output else workdir / "samples" / f"step_{generator.step}"
    return _write_all(generator, requests, folder)


def _write_all(generator: Generator, requests: Sequence[Request], folder: Path) -> int:
    config = generator.config
    fps = config.sample.fps or generator.known.fps or _FPS
    picks = pick_frames(generator.size[0], _COLUMNS)
    rows: list[dict[str, Any]] = []
    sheet: list[np.ndarray] = []
    labels: list[str] = []
    taken: dict[str, set[str]] = {}
    began, decoding = time.perf_counter(), 0.0
    for request, latent in tqdm(
        generator.latents(requests), total=len(requests), unit="video", disable=None
    ):
        if not is_main():
            continue  # every process samples, one decodes and writes
        start = time.perf_counter()
        names = taken.setdefault(request.folder, set())
        name = name_video(request.prompt, request.number, names, vbench=config.sample.vbench)
        name = str(Path(request.folder, name))
        shown = _write(generator.decode(request, latent), folder / name, fps, picks)
        decoding += time.perf_counter() - start
        rows.append({"file": name, **_describe(request)})
        if len(sheet) < _SHOWN:
            sheet.append(shown)
            labels.append(f"{request.prompt or 'sample'}\nseed {request.seed}")
    if not is_main():
        return 0
    total = time.perf_counter() - began
    about = collect_settings(
        config,
        step=generator.step,
        latents=generator.known.spec.to_json(),
        size=generator.size,
        latent_shape=generator.shape,
        fps=float(fps),
        nfe=generator.sampler.nfe,
        nfe_is="at most" if config.sampler.cache.threshold else "exact",
        compute=generator.compute,  # which fp8_psnr is against
        fp8_psnr=generator.fp8_psnr,
        seconds={"drawing": round(total - decoding, 3), "decoding": round(decoding, 3)},
        videos=rows,
    )
    write_json(folder / "samples.json", about)
    contact_sheet(sheet, labels, folder / "contact_sheet.png", group=len(sheet), numbers=picks)
    logging.info(
        "%d videos of %s frames, %s%d evaluations of the network each",
        len(rows),
        "x".join(map(str, generator.size)),
        "at most " if config.sampler.cache.threshold else "",
        generator.sampler.nfe,
    )
    for name in ("contact_sheet.png", "samples.json"):
        logging.info("wrote %s", folder / name)
    return 0


def _write(
    pieces: Iterator[np.ndarray], path: Path, fps: float, picks: Sequence[int]
) -> np.ndarray:
    """Write a video piece by piece; returns the frames ``picks`` of it, ``[n, H, W, 3]``."""
    kept, number = [], 0
    with VideoWriter(path, fps) as writer:
        for piece in pieces:
            for frame in piece:
                writer.add(frame)
                if number in picks:
                    kept.append(frame)
                number += 1
    return np.stack(kept)


def _describe(request: Request) -> dict[str, Any]:
    return {
        "prompt": request.prompt,
        "label": request.label,
        "seed": request.seed,
        "number": request.number,
        "image": Path(request.image).name,
    }
