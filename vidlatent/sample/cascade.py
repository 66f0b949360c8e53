"""FSVideo's cascade: a picture to a small video, upsampled in latent space, and refined (2.1, 2.4).

The picture is coded at full and at half size. The base model makes a small latent, the upsampler
doubles it, the refiner, given both and told how far to trust them, makes the latent of full size,
and the tokenizer decodes it. All parts share one latent space and one residency: what is in memory
is what the part at work needs (``config.sample.residency``).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.diffusion.refiner_given import give_for_sampling
from vidlatent.errors import VidlatentError
from vidlatent.latents.contract import require_same
from vidlatent.latents.pairs import halve_pixels
from vidlatent.latents.refiner_inputs import (
    abstract_upsampler,
    read_given_options,
    read_part,
    upsampler_of,
)
from vidlatent.latents.space import Latents
from vidlatent.media.sheets import encode_picture
from vidlatent.models.load import find_step, resolve_dtype
from vidlatent.parallel.sharding import shardings, with_shardings
from vidlatent.paths import as_path
from vidlatent.sample.call import GeneratorCall
from vidlatent.sample.encoded import EncodedRequests, encode_requests
from vidlatent.sample.generator import Generator, group_requests
from vidlatent.sample.requests import PYTHON, Request, Wording
from vidlatent.sample.residency import Loadable, Residency, choose_plan, count_device_bytes
from vidlatent.spec import LatentSpec
from vidlatent.weights.files import is_workdir, load_params

__all__ = ["CASCADE_FILE", "Cascade", "cover_sizes", "cut_middle", "read_cascade"]

CASCADE_FILE = "cascade.json"
_PARTS = ("base", "upsampler", "refiner")
_KEYS = (*_PARTS, "tokenizer")
_PLANS = {
    "swap": "one after another; the refiner is copied to the devices during the base model's last "
    "steps, if both fit",
    "keep": "all that were loaded stay",
}


def read_cascade(path: str | Path) -> dict[str, str]:
    """The workdirs that a ``cascade.json`` names; relative ones are beside the file.

    Raises:
      VidlatentError: it is damaged, lacks a part, or names what is no run.
    """
    file = as_path(path)
    file = file / CASCADE_FILE if file.is_dir() else file
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        found = {key: stored[key] for key in _PARTS} | {
            key: value for key, value in stored.items() if key not in _PARTS
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VidlatentError(
            f"{file} is no description of a cascade ({type(error).__name__}: {error}): it holds "
            f"the workdirs {', '.join(_PARTS)} by name, and the tokenizer's if it has moved."
        ) from error
    for key, value in found.items():
        if key not in _KEYS:
            raise VidlatentError(f"{file} names {key!r}: a cascade has {', '.join(_KEYS)}.")
        place = file.parent / value
        if not is_workdir(place):
            raise VidlatentError(f"{file}: {key} {value!r} is no run with checkpoints.")
        found[key] = str(place)
    return found


class Cascade(GeneratorCall):
    """Base model, upsampler and refiner as one generator, called like a single one.

        cascade = vidlatent.load_generator("runs/cascade.json")
        video = cascade("a boat on a lake", image="boat.png", size=(720, 1280))

    Args:
      base: the base model.
      refiner: its config names the upsampler.
      size: frames, height and width of the videos; any. The latents that cover it are cut.

    Attributes:
      seconds: that each part took so far, by name.
      nfe: evaluations of base model and refiner.
    """

    def __init__(self, base: Generator, refiner: Generator, size: tuple[int, int, int]):
        self._upsampler_config = read_part(refiner.config, "upsampler")
        self._check_spaces(base, refiner)
        self._upsampler = upsampler_of(self._upsampler_config, resolve_dtype(refiner.config, None))
        self._options = read_given_options(refiner.config, refiner.model)
        self._upsample = self._compile_upsampler()
        self.residency = self._share_networks(base, refiner)
        self._use(base, refiner, size)

    def _use(self, base: Generator, refiner: Generator, size: tuple[int, int, int]) -> None:
        """Take over settings: sizes and samplers. The networks stay those of ``residency``."""
        self.size = size
        self.seconds: dict[str, float] = {}
        sizes = cover_sizes(size, refiner.known.spec, base.model, refiner.model)
        # Copies, because a generator by itself has a residency of its own.
        self._base = copy.copy(base.with_settings(size=sizes["low"], frames=size[0]))
        self.refiner = copy.copy(refiner.with_settings(size=sizes["high"], frames=size[0]))
        self._base.residency = _Renamed(self.residency, {"generator": "base"})
        self.refiner.residency = _Renamed(self.residency, {"generator": "refiner"})

    @classmethod
    def of(
        cls, base: Generator, refiner: str | Path, *, upsampler: str = "", step: int = -1
    ) -> Cascade:
        """The cascade of a base model and the refiner trained in the workdir ``refiner``.

        Videos have the size of the refiner's ``config.sample.size``.

        Args:
          upsampler: workdir, if it is not the one that the refiner was trained with.
          step: of the refiner's checkpoint; below 0 the newest sound one.
        """
        if not is_workdir(refiner):
            raise VidlatentError(
                f"config.sample.refine={refiner} is no run with checkpoints: name the workdir of a "
                "refiner, such as that of configs/fsvideo_refiner.py."
            )
        stored = configs.read(as_path(refiner))
        if configs.role_of(stored) != "refiner":
            raise VidlatentError(
                f"{refiner} is a run of the task {stored.task!r}: a cascade ends with a refiner, "
                "such as that of configs/fsvideo_refiner.py."
            )
        if "first" not in base.reads:
            raise VidlatentError(
                f"the base model {base.workdir} reads no first frame, from which a cascade starts: "
                "name one that does, such as that of configs/fsvideo_dit.py:demo,first=true."
            )
        config = configs.read(as_path(refiner), {"sample.residency": base.config.sample.residency})
        with config.unlocked():
            config.refiner.upsampler = upsampler or config.refiner.upsampler
            if base.config.tokenizer.path:
                config.tokenizer = base.config.tokenizer.copy_and_resolve_references()
        found = Generator.of(config, as_path(refiner), step)
        return cls(base, found, found.size)

    def _check_spaces(self, base: Generator, refiner: Generator) -> None:
        upsampler = Latents.load(as_path(refiner.config.refiner.upsampler))
        named = (
            (base.known, f"the base model {base.workdir}"),
            (upsampler, f"the upsampler {refiner.config.refiner.upsampler}"),
        )
        for known, name in named:
            require_same(
                refiner.known.space,
                known.space,
                f"the refiner {refiner.workdir}",
                name,
                "name parts that were trained in one latent space",
            )

    def _share_networks(self, base: Generator, refiner: Generator) -> Residency:
        """One residency for all: both generators see it under the names that they use."""
        networks = {
            **base.networks(),
            "upsampler": Loadable(self._load_upsampler, self._count_upsampler),
        }
        networks["base"] = networks.pop("generator")
        networks["refiner"] = refiner.networks()["generator"]
        sizes = [network.size() for network in networks.values()]
        plan = choose_plan(refiner.config.sample.residency, sizes)
        logging.info("networks in memory (%s): %s", plan, _PLANS[plan])
        return Residency(networks, plan)

    def _load_upsampler(self) -> Any:
        config = self.refiner.config.refiner
        abstract = abstract_upsampler(self._upsampler)
        abstract = with_shardings(abstract, shardings(abstract, self.refiner.mesh))
        step = config.upsampler_step
        with jax.set_mesh(self.refiner.mesh):
            return load_params(
                config.upsampler,
                abstract,
                family=self._upsampler_config.generator.name,
                step=None if step < 0 else step,
            )

    def _count_upsampler(self) -> int:
        return count_device_bytes(abstract_upsampler(self._upsampler))

    # What callers of a single generator ask for, too.

    @property
    def config(self) -> ConfigDict:
        """The refiner's config."""
        return self.refiner.config

    @property
    def part_configs(self) -> dict[str, ConfigDict]:
        return {"base": self._base.config}

    @property
    def reads(self) -> tuple[str, ...]:
        return self.refiner.reads

    @property
    def known(self) -> Latents:
        return self.refiner.known

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.refiner.shape

    @property
    def compute(self) -> str:
        return self.refiner.compute

    @property
    def fp8_psnr(self) -> float | None:
        return self.refiner.fp8_psnr

    @property
    def step(self) -> int:
        """Step of the refiner's checkpoint."""
        return self.refiner.step

    @property
    def guidance(self) -> tuple[float, ...]:
        """Guidance scales of the base model; the refiner has its own."""
        return self._base.guidance

    @property
    def nfe(self) -> dict[str, int]:
        return {"base": self._base.sampler.nfe, "refiner": self.refiner.sampler.nfe}

    @property
    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """Workdir and step of every part."""
        upsampler, asked = (
            as_path(self.config.refiner.upsampler),
            self.config.refiner.upsampler_step,
        )
        found = {
            "base": (self._base.workdir, self._base.step),
            "upsampler": (upsampler, find_step(self._upsampler_config, upsampler, asked)),
            "refiner": (self.refiner.workdir, self.refiner.step),
            "tokenizer": self.refiner.find_tokenizer(),
        }
        return {name: {"workdir": str(path), "step": step} for name, (path, step) in found.items()}

    def memory(self) -> dict[str, Any]:
        """As ``Generator.memory``: the part that needs most."""
        found = [self._base.memory(), self.refiner.memory()]
        most = max(found, key=lambda memory: memory["working"] or 0)
        parameters = self.residency.peak
        total = sum(parameters.values()) + (most["working"] or 0)
        return {**most, "parameters": parameters, "estimated": total}

    def with_settings(
        self,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        steps: int | None = None,
        guidance: Sequence[float] | None = None,
    ) -> Cascade:
        """This cascade with other settings; steps and guidance are those of the base model."""
        size = (frames or self.size[0], *(size or self.size[1:]))
        if size == self.size and steps is None and guidance is None:
            return self
        other = copy.copy(self)
        base = self._base.with_settings(steps=steps, guidance=guidance)
        other._use(base, self.refiner, size)
        return other

    def requests_for(
        self, rows: Sequence[dict[str, object]], count: int, seed: int, wording: Wording = PYTHON
    ) -> list[Request]:
        return self.refiner.requests_for(rows, count, seed, wording)

    def check(self, requests: Sequence[Request], wording: Wording = PYTHON) -> None:
        """As ``Generator.check``; every request has a picture."""
        self.refiner.check(requests, wording)
        for request in requests:
            if request.picture is None:
                raise VidlatentError(
                    f"{request.prompt or 'a request'!r} has no picture, and a cascade starts from "
                    f"one: give it by {wording.image}."
                )

    def picture(self, request: Request) -> np.ndarray | None:
        """The request's picture, cut as the video is: uint8 ``[H, W, 3]``."""
        found = self.refiner.picture(request)
        return None if found is None else cut_middle(found[None], self.size[1:])[0]

    # Drawing.

    def latents(
        self, requests: Sequence[Request], watch: Callable[..., None] | None = None
    ) -> Iterator[tuple[Request, np.ndarray]]:
        """Latents ``[t, 2 h, 2 w, c]`` of the requests; one part after the other for all of them.

        ``watch`` is told the steps of the part at work, over all batches, and the part's name.
        """
        lows = [self._halve(request) for request in requests]
        with self._clock("encoding"):
            small, large = encode_requests([(self._base, lows), (self.refiner, requests)])
        size = max(1, min(self.config.sample.batch, len(requests)))
        with self._clock("base"):
            drawn = self._draw_base(lows, size, small, watch)
        groups = list(group_requests(requests, size))
        with self._clock("upsampler"):
            self.residency.enter("upsampler", then=("refiner",))
            given = []
            for batch, (first_low, low) in zip(groups, drawn, strict=True):
                conditions = large(batch + [batch[-1]] * (size - len(batch)))
                given.append({**conditions, "given": self._give(conditions, first_low, low)})
        self.residency.enter("refiner", "tokenizer")
        for number, (batch, conditions) in enumerate(zip(groups, given, strict=True)):
            with self._clock("refiner"):
                tell = _tell_part(watch, "refiner", number, len(groups))
                high = self.refiner.draw(batch, size, conditions, tell)
            yield from zip(batch, self.known.restore(high)[: len(batch)], strict=True)

    def _draw_base(
        self,
        lows: Sequence[Request],
        size: int,
        encoded: EncodedRequests,
        watch: Callable[..., None] | None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each batch the encoded small picture and the small latents, standardised.

        While the last steps run, the refiner's weights are on their way to the devices.
        """
        self.residency.enter("base", then=("refiner",))
        groups, drawn = list(group_requests(lows, size)), []
        for number, batch in enumerate(groups):
            conditions = encoded(batch + [batch[-1]] * (size - len(batch)))
            tell = _tell_part(watch, "base", number, len(groups))
            last = number == len(groups) - 1
            low = self._base.draw(batch, size, conditions, self._copy_refiner(tell, last))
            drawn.append((conditions["first"], low))
        return drawn

    def _copy_refiner(
        self, tell: Callable[[int, int], None] | None, last: bool
    ) -> Callable[[int, int], None] | None:
        """``tell``, and in the second half of the last batch's steps the refiner is copied."""
        if self.residency.plan != "swap" or not last:
            return tell

        def watch(done: int, steps: int) -> None:
            if tell is not None:
                tell(done, steps)
            # Early enough for a slow link: 15 steps of the published model take about a second.
            if steps <= 2 * done and done < steps:
                reserve = self._base.sampler.working_bytes or 0
                self.residency.copy_ahead("refiner", reserve)

        return watch

    def _halve(self, request: Request) -> Request:
        """The request with its picture at half size, as the pairs of training are made."""
        picture = self.refiner.picture(request)
        if picture is None:
            return request
        half = np.asarray(halve_pixels(self.refiner.pad(picture)[None, None]))[0, 0]
        return dataclasses.replace(request, image="", encoded=encode_picture(half))

    def _give(self, conditions: Any, first_low: np.ndarray, low: np.ndarray) -> np.ndarray:
        """Mask and condition of the refiner, ``[B, t, 2 h, 2 w, mask + c]``."""
        with jax.set_mesh(self.refiner.mesh):
            params = self.residency["upsampler"]
            return np.asarray(self._upsample(params, conditions["first"], first_low, low))

    def _compile_upsampler(self) -> Callable[..., jax.Array]:
        @jax.jit
        def give(params, first_high, first_low, low):
            def upsample(latent):
                return self._upsampler.apply({"params": params}, latent)

            given = give_for_sampling(first_high, first_low, low, upsample, self._options)
            return given.join()

        return give

    def decode(self, request: Request, latent: np.ndarray) -> Iterator[np.ndarray]:
        """Frames of a latent in pieces, uint8 ``[n, H, W, 3]``: the middle of what it covers."""
        for piece in self.refiner.decode(request, latent):
            yield cut_middle(piece, self.size[1:])

    def _clock(self, part: str) -> _Clock:
        return _Clock(self.seconds, part)


def _tell_part(
    watch: Callable[..., None] | None, part: str, number: int, batches: int
) -> Callable[[int, int], None] | None:
    """What tells ``watch`` of the steps of batch ``number``, counted over all batches."""
    if watch is None:
        return None
    return lambda done, steps: watch(number * steps + done, batches * steps, part)


class _Clock:
    """Adds the time inside it to ``seconds[part]``."""

    def __init__(self, seconds: dict[str, float], part: str):
        self._seconds, self._part = seconds, part

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        passed = time.perf_counter() - self._began
        self._seconds[self._part] = round(self._seconds.get(self._part, 0.0) + passed, 3)


class _Renamed:
    """A residency in which some networks go by other names."""

    def __init__(self, residency: Residency, names: dict[str, str]):
        self._residency, self._names = residency, names

    def _of(self, name: str) -> str:
        return self._names.get(name, name)

    def enter(self, *names: str) -> None:
        self._residency.enter(*map(self._of, names))

    def __getitem__(self, name: str) -> Any:
        return self._residency[self._of(name)]

    @property
    def peak(self) -> dict[str, int]:
        return self._residency.peak


def cover_sizes(
    size: tuple[int, int, int], spec: LatentSpec, base: Any, refiner: Any
) -> dict[str, tuple[int, int]]:
    """Rows and columns of the large and the small video: whole patches of both, one half.

    Args:
      size: frames, height and width of the video asked for.
      spec: of the latents; base, refiner: the models.
    """
    sides = []
    for side, factor, *patches in zip(
        size[1:],
        (spec.h, spec.w),
        refiner.patch[1:],
        base.patch[1:],
        strict=True,
    ):
        # A patch of the small video covers twice the pixels in the large one.
        part = factor * int(np.lcm(patches[0], 2 * patches[1]))
        sides.append(-(-side // part) * part)
    return {"high": tuple(sides), "low": tuple(side // 2 for side in sides)}


def cut_middle(frames: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The middle ``size`` of ``[n, H, W, 3]``."""
    top, left = ((whole - part) // 2 for whole, part in zip(frames.shape[1:3], size, strict=True))
    return frames[:, top : top + size[0], left : left + size[1]]
