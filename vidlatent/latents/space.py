"""From a config to a generator: its module, its parameters, and the facts about its latents."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.checkpoint.pins import pin_step
from vidlatent.config import is_generator
from vidlatent.data.latent_set import read_header
from vidlatent.diffusion import Diffusion, Flow, make_schedule
from vidlatent.errors import VidlatentError
from vidlatent.files import read_json, write_json
from vidlatent.latents.contract import LatentSpace, require_same
from vidlatent.latents.statistics import (
    Statistics,
    find_digests,
    find_former_step,
    find_statistics,
    find_step_of,
)
from vidlatent.models.generators import build_generator
from vidlatent.models.generators.fp8_weights import cast_to_fp8, is_large
from vidlatent.models.load import (
    find_step,
    model_of,
    resolve_dtype,
    restore_onto,
    spec_in_chunks,
)
from vidlatent.models.tokenizers.cutting import make_latent_coder
from vidlatent.parallel.multihost import is_main
from vidlatent.parallel.paths import path_name
from vidlatent.paths import as_path
from vidlatent.spec import LatentSpec
from vidlatent.weights.files import is_workdir

__all__ = [
    "FILE",
    "Latents",
    "abstract_at_rest",
    "abstract_generator",
    "check_generator",
    "check_tokenizer",
    "choose_tokenizer_step",
    "cover_size",
    "describe_latents",
    "example",
    "generator_of",
    "keep_tokenizer_step",
    "load_latents",
    "make_noise_schedule",
    "pin_tokenizer",
    "restore_generator",
    "read_tokenizer_config",
]

FILE = "latents.json"
_CHUNKS = "config.tokenizer.chunks"


@dataclasses.dataclass(frozen=True)
class Latents:
    """What a generator knows about its latents; stored in its workdir as ``latents.json``.

    Attributes:
      space: the latent space.
      label_names: class names by number; empty if there are no classes.
      fps: frame rate of the clips; 0 if unknown.
    """

    space: LatentSpace
    label_names: tuple[str, ...] = ()
    fps: float = 0.0

    @property
    def spec(self) -> LatentSpec:
        return self.space.spec

    def standardise(self, latent: Any) -> jax.Array:
        """See ``LatentSpace.standardise``."""
        return self.space.standardise(latent)

    def restore(self, latent: Any) -> np.ndarray:
        """See ``LatentSpace.restore``."""
        return self.space.restore(latent)

    def write_or_check(self, workdir: Path, step: int) -> None:
        """Write ``latents.json`` into a workdir whose run is at ``step``.

        Raises:
          VidlatentError: the run is resumed, and it has learned from other latents.
        """
        # At step 0 nothing has been learned yet, so the file may be replaced.
        if step and (workdir / FILE).is_file():
            require_same(
                self.space,
                Latents.load(workdir).space,
                "the data",
                f"the run in {workdir}",
                "name the data that it has learned from, or use another --workdir",
            )
        if is_main():
            self.save(workdir)

    def save(self, workdir: Path) -> None:
        fields = {**self.space.to_json(), "label_names": self.label_names, "fps": self.fps}
        write_json(workdir / FILE, fields)

    @classmethod
    def load(cls, workdir: Path) -> Latents:
        """Read what ``save`` wrote.

        Raises:
          VidlatentError: the file is missing, so the workdir does not belong to a generator.
        """
        path = workdir / FILE
        if not path.is_file():
            raise VidlatentError(
                f"--workdir={workdir} holds no generator (no {FILE}): train one, such as "
                "--config=configs/fsvideo_dit.py."
            )
        remedy = "copy it from a backup, or train anew in another --workdir"
        stored = read_json(path, remedy)
        try:
            names, fps = tuple(stored.pop("label_names")), float(stored.pop("fps"))
            return cls(LatentSpace.from_json(stored), names, fps)
        except (KeyError, TypeError, ValueError, AttributeError, VidlatentError) as error:
            raise VidlatentError(
                f"{path} is damaged ({type(error).__name__}: {error}): {remedy}."
            ) from error


def read_tokenizer_config(config: ConfigDict) -> ConfigDict:
    """The config of the run ``config.tokenizer.path``.

    Raises:
      VidlatentError: the path is empty, or there is no run.
    """
    path = config.tokenizer.path
    if not path:
        raise VidlatentError(
            "config.tokenizer.path is empty: name the workdir of the tokenizer, "
            "--config.tokenizer.path=runs/fsae-demo."
        )
    if not is_workdir(path):
        raise VidlatentError(
            f"config.tokenizer.path={path} is no run with checkpoints: train the tokenizer first."
        )
    return configs.read(as_path(path))


def load_latents(config: ConfigDict) -> Latents:
    """The latents of ``config.data``, normalised as ``config.latents`` says.

    A run that starts from a generator takes over that generator's moments. Otherwise measured
    moments are the tokenizer's, which a latent set carries; those of the set itself if an older
    version made it.

    Raises:
      VidlatentError: as ``describe_latents``; or the generator that the run starts from learned
        another space; or there are no measured moments.
    """
    found, start = describe_latents(config), _find_start(config)
    if start is None:
        return dataclasses.replace(found, space=_with_moments(config, found.space))
    told, remedy = (
        f"config.train.init_from={config.train.init_from}",
        "start from another generator",
    )
    remedy += ", or name the tokenizer and the set that this one has learned from"
    require_same(found.space, start, "config.data", told, remedy, moments=False)
    apart = np.ndim(start.mean) == 2
    asked = config.latents.normalisation, config.latents.chunk_positions
    if asked == ("statistics", apart) and start.normalisation == "statistics":
        space = dataclasses.replace(
            found.space, mean=start.mean, std=start.std, normalisation="statistics"
        )
    else:
        space = _with_moments(config, found.space)
    remedy = f"set config.latents.normalisation={start.normalisation}"
    remedy += f" and config.latents.chunk_positions={apart}"
    require_same(space, start, "config.latents", told, remedy)
    return dataclasses.replace(found, space=space)


def describe_latents(config: ConfigDict) -> Latents:
    """The latents of ``config.data``, whatever they are normalised by.

    Raises:
      VidlatentError: the set was made by another tokenizer, or no tokenizer is given for videos.
    """
    if config.data.source == "latents":
        return _describe_set(config)
    own, step = read_tokenizer_config(config), config.tokenizer.step
    model = model_of(own)
    spec = spec_in_chunks(model, config.tokenizer.chunks, _CHUNKS)
    cut = make_latent_coder(model, own.codec).cut
    fps = float(config.data.fps) / config.data.frame_interval
    digests = find_digests(config.tokenizer.path, step)
    known = {"tokenizer": configs.config_hash(own), "cut": cut, **digests._asdict()}
    return Latents(LatentSpace.of_spec(spec, **known), (), fps)


def _describe_set(config: ConfigDict) -> Latents:
    header, path = read_header(config.data.path), config.tokenizer.path
    if len(config.tokenizer.chunks):
        asked = header.spec.in_chunks(config.tokenizer.chunks, _CHUNKS)
        if asked.hash != header.spec.hash:
            coded = f"in chunks {header.spec.chunks}" if header.spec.chunks else "whole"
            raise VidlatentError(
                f"{_CHUNKS} is {asked.chunks}, but the clips of {config.data.path} were coded "
                f"{coded}: encode them with --config.encode.chunks={asked.chunks}, or set "
                f"{_CHUNKS}=() to take them as they are."
            )
    space = LatentSpace.of_spec(
        header.spec,
        encoder=header.encoder,
        cut=header.cut,
        tokenizer=header.tokenizer,
        weights=header.weights,
    )
    if path:
        chosen = choose_tokenizer_step(config, space)
        space = check_tokenizer(space, chosen, f"the latent set {config.data.path}")
    return Latents(space, tuple(header.label_names), float(header.fps or 0.0))


def check_tokenizer(space: LatentSpace, config: ConfigDict, whose: str) -> LatentSpace:
    """Check that the encoder of ``config.tokenizer`` made the latents of ``space``.

    Its decoder need not be the one that was trained with it: fine-tuned ones decode them too.

    Args:
      space: the space of a set or a generator; how it is normalised does not count.
      config: of a generator.
      whose: the latents, for the error.

    Returns:
      The space, with the digest of the encoder if it had none.

    Raises:
      VidlatentError: another tokenizer, or other weights of what encodes.
    """
    own, path = read_tokenizer_config(config), config.tokenizer.path
    theirs = LatentSpace.of_spec(model_of(own).latent_spec)
    told = f"config.tokenizer.path={path}"
    remedy = (
        "name the tokenizer that encoded them, or one that was fine-tuned from it with a frozen "
        "encoder, its checkpoint by --config.tokenizer.step=..., or encode the videos again"
    )
    former = find_former_step(path, space.encoder) if space.encoder else None
    if former is not None:
        remedy = f"they are of its step {former}, --config.tokenizer.step={former}; or {remedy}"
    # First what a config says, before any weights are read.
    require_same(space, theirs, whose, told, remedy, moments=False)
    digests = find_digests(path, config.tokenizer.step)
    theirs = dataclasses.replace(theirs, **digests._asdict())
    require_same(space, theirs, whose, told, remedy, moments=False)
    return dataclasses.replace(space, encoder=digests.encoder)


def choose_tokenizer_step(config: ConfigDict, space: LatentSpace) -> ConfigDict:
    """The config, with ``tokenizer.step`` set where the newest one did not make the latents.

    A tokenizer may have been trained on since. Of the checkpoints whose encoder made the latents
    the newest is taken. A step that is given, and a tokenizer without such a checkpoint, are left
    for ``check_tokenizer``.
    """
    path = config.tokenizer.path
    if not path or config.tokenizer.step >= 0 or not space.encoder or not is_workdir(path):
        return config
    if find_digests(path).encoder == space.encoder:
        return config
    step = find_step_of(path, space.encoder)
    if step is None:
        return config
    logging.info(
        "%s has been trained on since it made these latents: its step %d is used", path, step
    )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.tokenizer.step = step
    return config


def keep_tokenizer_step(config: ConfigDict, workdir: Path) -> ConfigDict:
    """A run on videos that goes on keeps to the encoder that it has learned from."""
    if not is_generator(config) or config.data.source == "latents":
        return config
    if not (workdir / FILE).is_file():
        return config
    return choose_tokenizer_step(config, Latents.load(workdir).space)


def pin_tokenizer(config: ConfigDict, space: LatentSpace, by: str) -> None:
    """Ask the run of ``config.tokenizer`` to keep the step that these latents are of."""
    path = config.tokenizer.path
    if not path:
        return
    # All processes look, since they open the checkpoints together; one writes.
    step = choose_tokenizer_step(config, space).tokenizer.step
    step = find_step(read_tokenizer_config(config), as_path(path), step)
    if is_main():
        pin_step(path, step, by)


def _find_start(config: ConfigDict) -> LatentSpace | None:
    """The space of the generator that the run starts from, if it starts from one."""
    source = config.train.init_from
    if source and (as_path(source) / FILE).is_file():
        return Latents.load(as_path(source)).space
    # A run that is resumed needs the weights of its start no more, but may need its moments.
    if source and not as_path(source).exists():
        logging.warning(
            "config.train.init_from=%s is not there, so the moments of the latents are those of "
            "the tokenizer or the set, not those of that run.",
            source,
        )
    return None  # a weights file has none


def _with_moments(config: ConfigDict, space: LatentSpace) -> LatentSpace:
    """The space with the moments that ``config.latents`` asks for."""
    kind = config.latents.normalisation
    if kind != "statistics":
        plain = LatentSpace.of_spec(space.spec, kind)
        return dataclasses.replace(space, mean=plain.mean, std=plain.std, normalisation=kind)
    chunks = _find_chunks(config, space)
    if config.data.source == "latents":
        header = read_header(config.data.path)
        for stored in map(Statistics.from_json, header.moments):
            if stored.chunks == chunks:
                return space.with_moments(stored.mean, stored.std)
        if chunks is None:
            return space.with_moments(header.mean, header.std)
        where, again = f"the latent set {config.data.path} has", "encode it again"
    else:
        path = config.tokenizer.path
        found = find_statistics(path, space.encoder, space.cut, chunks)
        if found is not None:
            return space.with_moments(found.mean, found.std)
        data = f"--config.data.source={config.data.source}"
        data += f" --config.data.path={config.data.path}" if config.data.path else ""
        data += f" --config.encode.chunks='({chunks[0]},{chunks[1]})'" if chunks else ""
        where, again = f"the tokenizer {path} has", "measure them once by "
        again += f"python -m vidlatent.main --mode=latents --workdir={path} {data}"
    of = f" of each latent frame of chunks {chunks}" if chunks else ""
    other = "chunk_positions=False" if chunks else "normalisation=spec"
    raise VidlatentError(
        f"config.latents.normalisation is statistics, but {where} no mean and deviation of its "
        f"latents{of}: {again}, or set config.latents.{other}."
    )


def _find_chunks(config: ConfigDict, space: LatentSpace) -> tuple[int, int] | None:
    if not config.latents.chunk_positions:
        return None
    if space.spec.chunks is None:
        raise VidlatentError(
            "config.latents.chunk_positions asks for moments of each latent frame of a chunk, but "
            f"these clips are coded whole: name the chunks, such as {_CHUNKS}=(17,4), or set it to "
            "False."
        )
    return space.spec.chunks


def generator_of(config: ConfigDict, dtype: Any = None) -> Any:
    """The generator of ``config.generator``, computing in ``dtype`` (see ``resolve_dtype``)."""
    return build_generator(config.generator, resolve_dtype(config, dtype))


def make_noise_schedule(config: ConfigDict, model: Any, grid: Sequence[int]) -> Flow | Diffusion:
    """The schedule of ``config.diffusion`` for latents of ``grid`` (frames, rows, columns)."""
    schedule = make_schedule(config.diffusion.schedule)
    if isinstance(schedule, Flow):
        # A flow's shift grows with the number of tokens, t * h * w over the size of a patch.
        return schedule.for_tokens(math.prod(grid) // math.prod(model.patch))
    return schedule


def check_generator(model: Any, latents: Latents) -> None:
    """Raise ``VidlatentError`` if the generator does not fit the latents.

    It checks the channels, the number of classes, and whether a first frame can be coded alone.
    """
    channels, classes = latents.spec.channels, len(latents.label_names)
    if model.latent_channels != channels:
        raise VidlatentError(
            f"config.generator.latent_channels is {model.latent_channels}, but the latents of "
            f"{latents.spec.name} have {channels}: set it to {channels}."
        )
    # More classes than the data has do no harm.
    if "label" in model.reads and model.label_classes < classes:
        raise VidlatentError(
            f"config.generator.label_classes is {model.label_classes}, but the data has {classes} "
            f"classes: set it to {classes}."
        )
    if "first" in model.reads and not latents.spec.lengths.legal(1):
        raise VidlatentError(
            f"this generator reads the latent of a first frame, which {latents.spec.name} "
            f"({latents.spec.rule} frames) does not code by itself: set "
            "config.generator.condition_channels and mask_channels to 0."
        )


def cover_size(spec: LatentSpec, patch: Sequence[int], size: Sequence[int]) -> tuple[int, int, int]:
    """The smallest video of whole patches that covers ``size`` (frames, height, width).

    Args:
      spec: of the latents.
      patch: of the generator, latents in time, rows and columns.
    """
    # A patch covers ``part`` latents of ``factor`` pixels in each direction.
    height, width = (
        -(-side // (factor * part)) * factor * part
        for side, factor, part in zip(size[1:], (spec.h, spec.w), patch[1:], strict=True)
    )
    return spec.lengths.ceil(size[0]), height, width


def example(model: Any, grid: Sequence[int] = ()) -> tuple[Any, Any, dict[str, Any]]:
    """Example arguments to trace a generator with: ``(noisy, time, conditions)``.

    ``noisy`` ``[1, t, h, w, c]`` and ``time`` ``[1]`` are ShapeDtypeStructs, each condition None.

    Args:
      model: the generator.
      grid: latent frames, height and width; empty: a few patches.
    """
    grid = tuple(grid) or tuple(4 * part for part in model.patch)
    noisy = jax.ShapeDtypeStruct((1, *grid, model.latent_channels), jnp.float32)
    return noisy, jax.ShapeDtypeStruct((1,), jnp.float32), {name: None for name in model.reads}


def abstract_generator(model: Any) -> Any:
    """The generator's parameters as ShapeDtypeStructs; they do not depend on the clip size."""
    noisy, time, conditions = example(model)

    def init(key, noisy, time):
        return model.init(key, noisy, time, conditions, method="denoise")["params"]

    return jax.eval_shape(init, jax.random.key(0), noisy, time)


def abstract_at_rest(model: Any, fp8: bool = False) -> Any:
    """Parameters as inference holds them: ``abstract_generator`` with large kernels in ``dtype``.

    Layers cast these kernels to the compute dtype before every product anyway, so results do not
    change. Parameters that layers read in float32 (norms, modulations, time, routers), and small
    ones, keep their dtype.

    Args:
      model: the generator.
      fp8: large kernels in fp8 instead, as ``cast_to_fp8`` stores them (``config.sampler.fp8``).
    """

    def rest(path, leaf):
        dtype = model.dtype if is_large(path_name(path)) else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    held = jax.tree_util.tree_map_with_path(rest, abstract_generator(model))
    return jax.eval_shape(cast_to_fp8, held) if fp8 else held


def restore_generator(
    config: ConfigDict, workdir: Path, model: Any, mesh: Mesh | None, step: int
) -> Any:
    """The EMA parameters of a generator's checkpoint (``Restored``), on a mesh if there is one.

    Their dtypes are those of ``abstract_at_rest`` without fp8.
    """
    return restore_onto(config, workdir, abstract_at_rest(model), mesh, step)
