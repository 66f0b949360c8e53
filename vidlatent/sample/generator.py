"""A trained generator with its tokenizer and encoders: requests in, latents and frames out.

A video depends on the generator's weights, the settings, its own seed and its conditions, not on
the batch that it is in. All conditions are encoded first; then the encoders are released and the
generator is loaded (``residency``). Latents are sampled a batch at a time; frames are decoded piece
by piece.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.codec.codec import Codec
from vidlatent.errors import VidlatentError
from vidlatent.latents.distilled import Distilled
from vidlatent.latents.inputs import find_pooled_side
from vidlatent.latents.space import (
    Latents,
    abstract_at_rest,
    check_tokenizer,
    choose_tokenizer_step,
    cover_size,
    generator_of,
    read_tokenizer_config,
    restore_generator,
)
from vidlatent.media.errors import ClipError, Limits
from vidlatent.media.pictures import read_picture, read_picture_size
from vidlatent.models.generators.fp8_weights import cast_to_fp8
from vidlatent.models.load import abstract_params, find_step, model_of
from vidlatent.parallel.mesh import make_mesh
from vidlatent.parallel.sharding import shardings, with_shardings
from vidlatent.paths import as_path
from vidlatent.sample.call import GeneratorCall
from vidlatent.sample.conditions import encoder_networks
from vidlatent.sample.decoding import load_tokenizer_codec, use_one_device
from vidlatent.sample.encoded import encode_requests
from vidlatent.sample.few_steps import follow_distilled, settle_sampler
from vidlatent.sample.requests import PYTHON, Request, Wording, make_requests
from vidlatent.sample.residency import (
    Loadable,
    Residency,
    choose_plan,
    count_device_bytes,
    hold_on_host,
    measure_peak,
)
from vidlatent.sample.sampler import LatentSampler, latent_psnr

__all__ = ["Generator", "check_makes_videos", "group_requests"]

_GENERATOR, _TOKENIZER = "generator", "tokenizer"
_TOLD_CUT = 0.02  # share of a picture
_KEPT_SETTINGS = 4  # of a generator that is called with several sizes or numbers of steps


@dataclasses.dataclass
class _Loaded:
    """What loading the parameters found out; shared by a generator's settings.

    Attributes:
      step: of the checkpoint; before loading, the one that will be tried first.
      exact: parameters without fp8, until the first batch has been compared with them.
      fp8_psnr: see ``Generator``.
    """

    step: int
    exact: Any = None
    fp8_psnr: float | None = None


class Generator(GeneratorCall):
    """A trained generator: its weights, sampler, encoders and tokenizer, loaded when used.

        generator = vidlatent.load_generator("runs/fsvideo_dit-demo")
        video = generator("red square moving left", seed=3)  # uint8 [T, H, W, 3]

    The call stands in ``call.GeneratorCall``. Many videos at once, or their latents:

        for request, latent in generator.latents(generator.requests(["red square moving left"])):
            video = np.concatenate(list(generator.decode(request, latent)))

    Args:
      config: of its run, overrides included.
      workdir: of its run.
      latents: the latent space that it was trained in.
      mesh: of the devices to use.
      step: checkpoint; below 0 the newest sound one.

    Attributes:
      size: frames, height and width of the videos.
      shape: of their latents, ``(t, h, w, c)``.
      sampler: the compiled sampling loop.
      compute: name of the generator's compute dtype.
      residency: the networks in memory.
    """

    def __init__(
        self, config: ConfigDict, workdir: Path, latents: Latents, mesh: Mesh, step: int = -1
    ):
        self.config, self.workdir, self.known, self._mesh = config, workdir, latents, mesh
        self.model = generator_of(config)
        self.compute = jnp.dtype(self.model.dtype).name
        self._loaded = _Loaded(find_step(config, workdir, step))
        self._distilled = Distilled.load(workdir)
        config = follow_distilled(config, workdir, self._loaded.step)
        if config.tokenizer.path:
            # Now, and not when the first video is decoded.
            with use_one_device():
                config = choose_tokenizer_step(config, latents.space)
                check_tokenizer(latents.space, config, "this generator")
        self._asked_step = step
        self._use(config)
        # By settings; each has a compiled program of its own.
        self._variants: dict[Any, Generator] = {_key(self.size, self.config): self}
        networks = self.networks()
        sizes = [network.size() for network in networks.values()]
        self.residency = Residency(networks, choose_plan(config.sample.residency, sizes))

    def _use(self, config: ConfigDict) -> None:
        """Take over the settings of a config: sizes and sampler."""
        self.config = config = settle_sampler(config, self._distilled, self._loaded.step)
        self.size = self._size()
        self.shape = self._latent_shape()
        self.sampler = LatentSampler(self.model, config, self.shape)

    @classmethod
    def from_workdir(
        cls, workdir: str | Path, overrides: Mapping[str, str] | None = None, step: int = -1
    ) -> Generator:
        """The generator trained in ``workdir``; ``step`` below 0 is the newest sound one."""
        if not configs.is_generator(configs.read(as_path(workdir))):
            raise VidlatentError(f"{workdir} is the run of a tokenizer: read it by load_codec.")
        return cls.of(configs.read(as_path(workdir), overrides), as_path(workdir), step)

    @classmethod
    def of(cls, config: ConfigDict, workdir: Path, step: int) -> Generator:
        """``from_workdir`` with a config that has been read already."""
        return cls(config, workdir, Latents.load(workdir), make_mesh(config.mesh), step)

    def __repr__(self) -> str:
        reads = ", ".join(self.model.reads) or "nothing"
        return (
            f"<Generator {self.config.name} ({self.config.preset}) of {self.workdir}, step "
            f"{self.step}: reads {reads}, makes {'x'.join(map(str, self.size))}>"
        )

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the conditions that the generator reads."""
        return self.model.reads

    @property
    def guidance(self) -> tuple[float, ...]:
        """Guidance scales, ``config.sampler.guidance.scales``."""
        return tuple(self.config.sampler.guidance.scales)

    @property
    def mesh(self) -> Mesh:
        """The devices that it uses."""
        return self._mesh

    @property
    def nfe(self) -> int:
        """Evaluations of the network for a video."""
        return self.sampler.nfe

    @property
    def step(self) -> int:
        """Step of the checkpoint."""
        return self._loaded.step

    @property
    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """Workdir and step of every network that was trained here."""
        found = {"generator": (self.workdir, self.step)}
        if self.config.tokenizer.path:
            found["tokenizer"] = self.find_tokenizer()
        return {name: {"workdir": str(path), "step": step} for name, (path, step) in found.items()}

    def find_tokenizer(self) -> tuple[Path, int]:
        """Workdir and step of the tokenizer."""
        tokenizer = self.config.tokenizer
        config, path = read_tokenizer_config(self.config), as_path(tokenizer.path)
        return path, find_step(config, path, tokenizer.step)

    @property
    def fp8_psnr(self) -> float | None:
        """PSNR in dB of the first batch's latents against the same sampled without fp8.

        None before the first batch, and without ``config.sampler.fp8``.
        """
        return self._loaded.fp8_psnr

    @property
    def params(self) -> Any:
        """The generator's parameters on its mesh; read now if they are not in memory."""
        return self.residency[_GENERATOR]

    @property
    def codec(self) -> Codec | None:
        """The tokenizer, read now if it is not in memory; None if the config names none."""
        return self.residency[_TOKENIZER] if self.config.tokenizer.path else None

    # Networks: how they are loaded, and how large they are.

    def networks(self) -> dict[str, Loadable]:
        """What a residency of this generator loads, by name."""
        found = encoder_networks(self.config, self.model.reads)
        if find_pooled_side(self.config, self.model, self.known):
            found.pop("content", None)  # made from pixels
        found[_GENERATOR] = Loadable(
            self._load_params,
            self._count_params,
            # In fp8 it is cast on the devices, and compared with what it was.
            None if self.config.sampler.fp8 else self._read_params,
            self._place_params,
        )
        if self.config.tokenizer.path:
            found[_TOKENIZER] = Loadable(self._load_codec, self._count_codec)
        return found

    def _load_params(self) -> Any:
        with jax.set_mesh(self._mesh):
            params = self._restore(self._mesh)
            if not self.config.sampler.fp8:
                return params
            if self._loaded.fp8_psnr is None:
                self._loaded.exact = params  # for comparison; released after the first batch
            return jax.jit(cast_to_fp8)(params)

    def _read_params(self) -> Any:
        params = self._restore(None)
        return hold_on_host(params, shardings(params, self._mesh))

    def _place_params(self, params: Any) -> Any:
        return jax.device_put(params, shardings(params, self._mesh))

    def _restore(self, mesh: Mesh | None) -> Any:
        """The checkpoint's parameters, on a mesh or in the host's memory."""
        restored = restore_generator(self.config, self.workdir, self.model, mesh, self._asked_step)
        if restored.spec is not None and restored.spec.hash != self.known.spec.hash:
            raise VidlatentError(
                f"the checkpoint of step {restored.step} is of latents {restored.spec}, but "
                f"{self.workdir} says {self.known.spec}: train in another workdir."
            )
        self._check_steps(restored.step)
        self._loaded.step = restored.step
        return restored.state

    def _check_steps(self, step: int) -> None:
        """The checkpoint that was found to be sound has the steps of the one that was looked at."""
        known, first = self._distilled, self._loaded.step
        if known is not None and known.grid_at(step) != known.grid_at(first):
            raise VidlatentError(
                f"the checkpoint of step {first} in {self.workdir} is damaged, and the newest "
                f"sound one was distilled to other steps: name it by --step={step}."
            )

    def _count_params(self) -> int:
        held = abstract_at_rest(self.model, self.config.sampler.fp8)
        return count_device_bytes(with_shardings(held, shardings(held, self._mesh)))

    def _load_codec(self) -> Codec:
        # The codec runs on one device: requests are decoded one after another.
        with use_one_device():
            return load_tokenizer_codec(self.config, self.known)

    def _count_codec(self) -> int:
        return count_device_bytes(abstract_params(model_of(read_tokenizer_config(self.config))))

    # Settings.

    def with_settings(
        self,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        steps: int | None = None,
        guidance: Sequence[float] | None = None,
    ) -> Generator:
        """This generator with other settings; it shares the networks, and they stay loaded."""
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.sample.size = (frames or self.size[0], *(size or self.size[1:]))
            config.sampler.steps = steps or config.sampler.steps
            if guidance is not None:
                config.sampler.guidance.scales = tuple(guidance)
        key = _key(config.sample.size, config)
        if key not in self._variants:
            while len(self._variants) >= _KEPT_SETTINGS:
                self._variants.pop(next(iter(self._variants)))
            other = copy.copy(self)
            other._use(config)
            self._variants[key] = other
        return self._variants[key]

    def _size(self) -> tuple[int, int, int]:
        size = tuple(self.config.sample.size) or tuple(self.config.data.buckets[-1][:3])
        if len(size) != 3 or min(size) < 1:
            raise VidlatentError(
                f"config.sample.size={size}: give (frames, height, width), such as (9, 64, 64)."
            )
        return size

    def _latent_shape(self) -> tuple[int, int, int, int]:
        """``(t, h, w, c)`` of the smallest latent that covers ``size`` and has whole patches."""
        spec = self.known.spec
        return spec.latent_shape(cover_size(spec, self.model.patch, self.size))

    def memory(self) -> dict[str, Any]:
        """Most memory of a device so far, in bytes.

        ``parameters``: by network, when most was held; ``working``: of the sampling loop beside
        them, as the compiler says, None if it was not compiled or the compiler does not say;
        ``estimated``: the sum; ``measured``: as the device says, None where it does not.
        """
        parameters, working = self.residency.peak, self.sampler.working_bytes
        return {
            "parameters": parameters,
            "working": working,
            "estimated": sum(parameters.values()) + (working or 0),
            "measured": measure_peak(),
        }

    # Requests.

    def requests(self, prompts: Sequence[str] = (), count: int = 1, seed: int = 0) -> list[Request]:
        """Requests for ``count`` videos of each prompt.

        Without prompts: of each class, or without any condition.
        """
        return self.requests_for([{"prompt": prompt} for prompt in prompts], count, seed)

    def requests_for(
        self,
        rows: Sequence[dict[str, object]],
        count: int,
        seed: int,
        wording: Wording = PYTHON,
    ) -> list[Request]:
        """``requests`` from rows as ``requests.read_prompts`` returns them."""
        names, classes = None, 0
        if "label" in self.model.reads:
            names, classes = self.known.label_names, self.model.label_classes
            # Without names the classes go by their numbers.
            rows = rows or [{"prompt": name} for name in names or map(str, range(classes))]
        elif "text" in self.model.reads and not rows:
            raise VidlatentError(f"this generator reads texts: give {wording.prompt}.")
        return make_requests(
            rows or [{"prompt": ""}], count=count, seed=seed, label_names=names, classes=classes
        )

    def check(self, requests: Sequence[Request], wording: Wording = PYTHON) -> None:
        """Raise for requests that sampling would refuse or ignore, before anything is loaded."""
        reads = {*self.model.reads}
        self.require_tokenizer(wording)
        tokenizer = model_of(read_tokenizer_config(self.config))
        decoder_reads = tokenizer.condition_kind != "none"
        # A single frame is all there is to generate: training leaves its picture out, too.
        reads_first = bool({"first", "image"} & reads) and self.shape[0] > 1
        reads_picture = decoder_reads or reads_first or "content" in reads
        for request in requests:
            if request.prompt and not {"label", "text"} & reads:
                raise VidlatentError(
                    f"this generator reads neither classes nor texts: leave {request.prompt!r} out."
                )
            if request.picture is not None and not reads_picture:
                what = request.image or "the picture"
                if {"first", "image"} & reads:
                    raise VidlatentError(
                        f"{what} would be the first frame, and a video of {self.size[0]} has no "
                        "other: leave it out, or ask for more frames."
                    )
                raise VidlatentError(
                    f"this generator reads no picture, so {what} would have no effect: leave it "
                    "out, or train one that does, such as "
                    "--config=configs/fsvideo_dit.py:demo,first=true."
                )
            if request.image and not as_path(request.image).is_file():
                raise VidlatentError(f"there is no picture at {request.image}.")
            if decoder_reads and request.picture is None:
                raise VidlatentError(
                    f"{request.prompt!r} has no picture, but the decoder of "
                    f"{self.known.spec.name} reads one: give it by {wording.image}."
                )
        for picture in dict.fromkeys(r.picture for r in requests if r.picture is not None):
            self._tell_cut(picture)

    def _tell_cut(self, picture: str | bytes) -> None:
        """Say how much of a picture is cut off because its shape is not that of the video.

        Raises:
          VidlatentError: it is no picture.
        """
        name = picture if isinstance(picture, str) else "the picture"
        try:
            height, width, _ = read_picture_size(picture, Limits())
        except ClipError as error:
            raise VidlatentError(f"{name} cannot be read: {error.detail}.") from error
        shapes = sorted((height / width, self.size[1] / self.size[2]))
        if (share := 1 - shapes[0] / shapes[1]) > _TOLD_CUT:
            logging.info(
                "%s is %dx%d and the video %dx%d: %.0f %% of the picture is cut off at its edges",
                name,
                height,
                width,
                *self.size[1:],
                100 * share,
            )

    def require_tokenizer(self, wording: Wording = PYTHON) -> None:
        """Raise if the config names no tokenizer."""
        if not self.config.tokenizer.path:
            raise VidlatentError(
                "no tokenizer is known, to code pictures and decode latents: name its workdir by "
                f"{wording.tokenizer}."
            )

    # Drawing.

    def latents(
        self, requests: Sequence[Request], watch: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[Request, np.ndarray]]:
        """Latents ``[t, h, w, c]`` as the tokenizer decodes them, in the order of the requests.

        The last batch is filled up by repetition, so that one compiled program serves all batches.

        Args:
          requests: what to draw.
          watch: is told after each step of a batch how many are done, of how many.
        """
        (encoded,) = encode_requests([(self, requests)])
        stage = (_GENERATOR, _TOKENIZER) if self.config.tokenizer.path else (_GENERATOR,)
        self.residency.enter(*stage)
        size = max(1, min(self.config.sample.batch, len(requests)))
        for batch in group_requests(requests, size):
            conditions = encoded(batch + [batch[-1]] * (size - len(batch)))
            drawn = self.draw(batch, size, conditions, watch)
            yield from zip(batch, self.known.restore(drawn)[: len(batch)], strict=True)

    def draw(
        self,
        batch: Sequence[Request],
        size: int,
        conditions: Mapping[str, Any],
        watch: Callable[[int, int], None] | None,
    ) -> np.ndarray:
        """Standardised latents ``[size, t, h, w, c]`` of a batch that is filled up to ``size``."""
        full = [*batch, *[batch[-1]] * (size - len(batch))]
        seeds = [r.seed % 2**32 for r in full]  # keys are made of uint32
        params = self.residency[_GENERATOR]
        with jax.set_mesh(self._mesh):
            drawn = self.sampler(params, seeds, conditions, watch)
            if self._loaded.exact is not None:
                # A sampler of its own: the compiled one expects parameters in fp8.
                sampler = LatentSampler(self.model, self.config, self.shape)
                exact = sampler(self._loaded.exact, seeds, conditions)
                self._loaded.exact, self._loaded.fp8_psnr = None, latent_psnr(drawn, exact)
                message = "latents sampled in fp8: %.2f dB PSNR against those in %s"
                logging.info(message, self._loaded.fp8_psnr, self.compute)
        # The first latent frame is known exactly, so the sampled one can be replaced by it.
        first = conditions.get("first")
        if self.config.sample.clamp_first and first is not None and self.shape[0] > 1:
            # NumPy's view of a device array cannot be written to.
            drawn = drawn.copy()
            drawn[:, :1] = first
        return drawn

    def picture(self, request: Request) -> np.ndarray | None:
        """The request's picture, resized and cropped to the videos' size: uint8 ``[H, W, 3]``."""
        if request.picture is None:
            return None
        if not request.encoded and not as_path(request.image).is_file():
            raise VidlatentError(f"there is no picture at {request.image}.")
        return read_picture(request.picture, self.size[1:])

    def pad(self, picture: np.ndarray) -> np.ndarray:
        """The image ``[H, W, 3]`` with its last row and column repeated up to the latents' size."""
        spec = self.known.spec
        height, width = (n * f for n, f in zip(self.shape[1:3], (spec.h, spec.w), strict=True))
        room = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
        return np.pad(picture, room, mode="edge")

    def decode(self, request: Request, latent: np.ndarray) -> Iterator[np.ndarray]:
        """The frames of a latent ``[t, h, w, c]`` in pieces, uint8 ``[n, H, W, 3]``."""
        self.require_tokenizer()
        codec, picture = self.residency[_TOKENIZER], self.picture(request)
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


def check_makes_videos(config: ConfigDict, workdir: Path, wording: Wording = PYTHON) -> None:
    """Raise unless the run's network makes videos by itself."""
    what = {
        "upsampler": "a latent upsampler's, which makes no videos by itself",
        "refiner": "a refiner's, which starts from a base model's videos",
    }.get(configs.role_of(config))
    if what is not None:
        raise VidlatentError(f"{workdir} is {what}: {wording.cascade} runs it in its place.")


def _key(size: Sequence[int], config: ConfigDict) -> tuple[Any, ...]:
    """What tells settings of one generator apart."""
    return tuple(size), config.sampler.steps, tuple(config.sampler.guidance.scales)


def group_requests(requests: Sequence[Request], size: int) -> Iterator[list[Request]]:
    """Batches of which all requests have a picture, or none has: conditions are one array each."""
    batch: list[Request] = []
    for request in requests:
        other = batch and (batch[0].picture is None) != (request.picture is None)
        if len(batch) == size or other:
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch
