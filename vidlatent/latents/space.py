"""From a config to a generator: its module, its parameters, and the facts about its latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.data.latent_set import read_header
from vidlatent.errors import VidlatentError
from vidlatent.files import read_json, write_json
from vidlatent.models.generators import build_generator
from vidlatent.models.generators.fp8_weights import cast_to_fp8, is_large
from vidlatent.models.load import model_of, resolve_dtype, restore_onto, spec_in_chunks
from vidlatent.parallel.multihost import is_main
from vidlatent.parallel.paths import path_name
from vidlatent.spec import LatentSpec
from vidlatent.weights.files import is_workdir

__all__ = [
    "FILE",
    "Latents",
    "abstract_at_rest",
    "abstract_generator",
    "check_generator",
    "check_made_by",
    "example",
    "generator_of",
    "load_latents",
    "restore_generator",
    "read_tokenizer_config",
]

FILE = "latents.json"
_CHUNKS = "config.tokenizer.chunks"


@dataclasses.dataclass(frozen=True)
class Latents:
    """What a generator knows about its latents; stored in its workdir as ``latents.json``.

    Attributes:
      spec: spec of the latents.
      mean, std: of each channel; the generator sees ``(latent - mean) / std``.
      label_names: class names by number; empty if there are no classes.
      fps: frame rate of the clips; 0 if unknown.
      tokenizer: hash of the config of the tokenizer that made them; empty if unknown.
      weights: digest of that tokenizer's parameters (``encode.plan.hash_params``); empty if
        unknown.
    """

    spec: LatentSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_names: tuple[str, ...] = ()
    fps: float = 0.0
    tokenizer: str = ""
    weights: str = ""

    def __post_init__(self):
        if not len(self.mean) == len(self.std) == self.spec.channels or min(self.std) <= 0:
            raise VidlatentError(
                f"latents of {self.spec.channels} channels need as many means and standard "
                f"deviations above 0, got {len(self.mean)} and {len(self.std)}: encode them again."
            )

    def standardise(self, latent: Any) -> jax.Array:
        """``(latent - mean) / std`` for a latent ``[..., c]``, float32."""
        mean, std = (jnp.asarray(x, jnp.float32) for x in (self.mean, self.std))
        return (jnp.asarray(latent, jnp.float32) - mean) / std

    def restore(self, latent: Any) -> np.ndarray:
        """The inverse of ``standardise`` for ``[..., c]``, float32 on the host."""
        mean, std = (np.asarray(x, np.float32) for x in (self.mean, self.std))
        return np.asarray(latent, np.float32) * std + mean

    def write_or_check(self, workdir: Path, step: int) -> None:
        """Write ``latents.json`` into a workdir whose run is at ``step``.

        Raises:
          VidlatentError: the run is resumed, and it has learned from latents with other means or
            standard deviations.
        """
        # At step 0 nothing has been learned yet, so the file may be replaced.
        if step and (workdir / FILE).is_file():
            before = Latents.load(workdir)
            if (before.mean, before.std) != (self.mean, self.std):
                raise VidlatentError(
                    f"{workdir} holds a run on latents of other means and standard deviations: "
                    "the data set was encoded anew since; use another --workdir."
                )
        if is_main():
            self.save(workdir)

    def save(self, workdir: Path) -> None:
        fields = {**dataclasses.asdict(self), "spec": self.spec.to_json()}
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
        stored = read_json(path, "copy it from a backup, or train anew in another --workdir")
        lists = {name: tuple(stored[name]) for name in ("mean", "std", "label_names")}
        return cls(**{**stored, **lists, "spec": LatentSpec.from_json(stored["spec"])})


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
    return configs.read(Path(path))


def load_latents(config: ConfigDict) -> Latents:
    """The latents that ``config.data`` and ``config.tokenizer`` describe; checks that both agree.

    Latents of a data set are standardised by its stored mean and standard deviation. Latents that
    are encoded from videos are standardised by the shift and scale of the tokenizer's config.

    Raises:
      VidlatentError: the set was made by another tokenizer, or no tokenizer is given for videos.
    """
    path = config.tokenizer.path
    if config.data.source != "latents":
        own = read_tokenizer_config(config)
        spec = spec_in_chunks(model_of(own), config.tokenizer.chunks, _CHUNKS)
        known = configs.config_hash(own)
        # The spec's (latent - shift) * scale, written with a mean and a deviation.
        mean, std = (spec.shift,) * spec.channels, (1.0 / spec.scale,) * spec.channels
        return Latents(
            spec, mean, std, (), float(config.data.fps) / config.data.frame_interval, known
        )
    header = read_header(config.data.path)
    found = Latents(
        header.spec,
        tuple(float(x) for x in header.mean),
        # A constant channel has std 0; dividing by 1 instead makes it 0 for the generator.
        tuple(float(x) if x > 0 else 1.0 for x in header.std),
        tuple(header.label_names),
        float(header.fps or 0.0),
        header.tokenizer,
        header.weights,
    )
    if len(config.tokenizer.chunks):
        asked = header.spec.in_chunks(config.tokenizer.chunks, _CHUNKS)
        if asked.hash != header.spec.hash:
            coded = f"in chunks {header.spec.chunks}" if header.spec.chunks else "whole"
            raise VidlatentError(
                f"{_CHUNKS} is {asked.chunks}, but the clips of {config.data.path} were coded "
                f"{coded}: encode them with --config.encode.chunks={asked.chunks}, or set "
                f"{_CHUNKS}=() to take them as they are."
            )
    if path:
        own = read_tokenizer_config(config)
        check_made_by(found, own, path)
    return found


def check_made_by(latents: Latents, own: ConfigDict, path: str) -> None:
    """Raise ``VidlatentError`` if a tokenizer of config ``own`` cannot have made the latents.

    ``path`` is that tokenizer's workdir, for the error.
    """
    spec = model_of(own).latent_spec
    # Chunks say how a set was coded, not by which tokenizer: compare without them.
    if spec.hash != latents.spec.whole.hash:
        raise VidlatentError(
            f"the latents were made by {latents.spec}, but config.tokenizer.path={path} makes "
            f"{spec}: name the tokenizer that encoded them, or encode again."
        )


def generator_of(config: ConfigDict, dtype: Any = None) -> Any:
    """The generator of ``config.generator``, computing in ``dtype`` (see ``resolve_dtype``)."""
    return build_generator(config.generator, resolve_dtype(config, dtype))


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


def restore_generator(config: ConfigDict, workdir: Path, model: Any, mesh: Mesh, step: int) -> Any:
    """The EMA parameters of a generator's checkpoint, on a mesh (``Restored``).

    Their dtypes are those of ``abstract_at_rest`` without fp8.
    """
    return restore_onto(config, workdir, abstract_at_rest(model), mesh, step)
