"""What a trained refiner makes of held-out clips, for ``second_half``.

It is given three things: the clip's own small latent moved by the base model's error, as in
training (FSVideo, eqs. 10-13); that latent as it is; and the base model's sample. Then the first of
these with one true frame, which is marked as true or not. All results start from the same noise.
Distances are mean absolute differences of standardised latents from the clip's own. Frame 0 is
given and left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.data.loader import Loader
from vidlatent.data.loaders import Loaders
from vidlatent.data.renderers.shapes import make_shape_scene, render_shape
from vidlatent.diffusion.refiner import drop_frames
from vidlatent.diffusion.refiner_given import Given, give_for_sampling
from vidlatent.evaluate.generator_loss import compile_loss_step, evaluate_loss, make_loss_step
from vidlatent.latents.refiner_inputs import (
    RefinerInputs,
    make_inputs,
    read_given_options,
    read_part,
    upsampler_of,
)
from vidlatent.latents.space import Latents, generator_of, restore_generator
from vidlatent.media.sheets import contact_sheet
from vidlatent.models.frozen import load_frozen
from vidlatent.parallel.mesh import mesh_for_batches
from vidlatent.sample.decoding import load_tokenizer_codec, use_one_device
from vidlatent.sample.sampler import LatentSampler

__all__ = [
    "KINDS",
    "Trained",
    "draw_results",
    "leave_out",
    "mark_true_frames",
    "measure_distances",
    "measure_loss",
    "measure_pixels",
    "open_trained",
]

KINDS = ("moved", "own", "cascade")
_HALF = 0.5  # the mask of what is not marked as true


@dataclasses.dataclass(frozen=True)
class Trained:
    """A generator or refiner on the devices, and the clips that it was scored on.

    Attributes:
      config: of its run.
      model, known, params: the network, the facts about its latents, and the averaged parameters.
      inputs, frozen: what makes latents and conditions, and its networks' parameters.
      loader: of the validation part.
    """

    config: ConfigDict
    model: Any
    known: Latents
    params: Any
    inputs: Any
    frozen: Mapping[str, Any]
    loader: Loader

    def sampler(self, config: ConfigDict | None = None) -> LatentSampler:
        """Of this network, or of one with another ``config`` and a size of its own."""
        config = config or self.config
        size = config.sample.size or config.data.buckets[-1][:3]
        return LatentSampler(generator_of(config), config, self.known.spec.latent_shape(size))


@contextlib.contextmanager
def open_trained(workdir: Path, overrides: Mapping[str, str] | None = None) -> Iterator[Trained]:
    """The newest checkpoint of a run; ``overrides`` are config keys, such as other data."""
    config = configs.read(workdir, overrides)
    model, known = generator_of(config), Latents.load(workdir)
    inputs = make_inputs(config, model, known)
    mesh = mesh_for_batches(config.mesh, config.data.buckets)
    with jax.set_mesh(mesh):
        frozen = load_frozen(inputs.frozen, mesh)
        params = restore_generator(config, workdir, model, mesh, -1).state
        with Loaders(config, known.spec, workdir).validation() as loader:
            yield Trained(config, model, known, params, inputs, frozen, loader)


def measure_loss(trained: Trained, inputs: Any = None) -> dict[str, Any]:
    """``loss``, held out, and ``by_level``, at fixed noise levels and with fixed noise.

    ``inputs`` replaces what makes the conditions.
    """
    step = compile_loss_step(
        make_loss_step(trained.config, trained.model, inputs or trained.inputs),
        trained.inputs.arrays,
        trained.frozen,
        jax.tree.leaves(trained.params)[0].sharding.mesh,
        trained.params,
    )
    found = evaluate_loss(step, trained.params, trained.loader)
    return {"loss": found.scores["loss"], "by_level": [row["loss"] for row in found.levels]}


def leave_out(inputs: RefinerInputs) -> Callable[..., Any]:
    """``inputs`` without the small video, as some samples of the training are; frame 0 stays."""

    def read(batch, frozen, key):
        high, conditions, given = inputs.give(batch, frozen, key)
        dropped = drop_frames(given.condition, given.mask, jnp.ones(len(high), bool))
        return high, {**conditions, "given": _join(*dropped)}

    return read


def mark_true_frames(given: Given, high: jax.Array) -> dict[str, jax.Array]:
    """What a refiner is given, with a mask of 0.5 in all frames but the first, and variants of it.

    ``'plain'``: no more than that. ``'true k'``: latent frame ``k`` is the clip's own and is marked
    as true, with 1. ``'unmarked k'``: the same frame with the mask of 0.5.
    """
    condition, mask = given.condition, given.mask.at[:, 1:].set(_HALF)
    found = {"plain": _join(condition, mask)}
    for k in range(1, high.shape[1]):
        true = condition.at[:, k].set(high[:, k])
        found[f"true {k}"] = _join(true, mask.at[:, k].set(1.0))
        found[f"unmarked {k}"] = _join(true, mask)
    return found


def _join(condition: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.concatenate([mask, condition], axis=-1)


def draw_results(trained: Trained, limit: int) -> dict[str, np.ndarray]:
    """Results of the refiner's sampler by what it is given, ``[clips, t, h, w, c]`` each.

    Besides ``KINDS`` and the names of ``mark_true_frames`` there are what it was given
    (``'given moved'`` and so on), and the clip's own latent, ``'real'``.

    Args:
      trained: the refiner.
      limit: of clips.
    """
    prepare, base = _make_preparation(trained), _make_base(trained)
    sampler = trained.sampler()
    rows: dict[str, list[np.ndarray]] = {}
    drawn = 0
    for batch in trained.loader:
        arrays = {name: batch[name] for name in trained.inputs.arrays}
        seeds = np.arange(drawn, drawn + len(batch["mask"]))
        low = base(arrays, seeds)
        conditions, given, shown = jax.device_get(prepare(trained.frozen, arrays, low))
        results = {
            name: sampler(trained.params, seeds, {**conditions, "given": one})
            for name, one in given.items()
        }
        real = np.flatnonzero(batch["mask"])[: limit - drawn]
        for name, values in {**results, **shown}.items():
            rows.setdefault(name, []).append(np.asarray(values)[real])
        drawn += len(real)
        if drawn >= limit:
            break
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def _make_base(trained: Trained) -> Callable[[Any, np.ndarray], np.ndarray]:
    """``(arrays, seeds) -> samples`` of the base model, ``[B, t, h / 2, w / 2, c]``."""
    config = read_part(trained.config, "base")
    sampler, reader = trained.sampler(config), trained.inputs.reader

    def draw(arrays, seeds):
        low = reader.read_low(arrays, trained.frozen, jax.random.key(0))
        given = {"label": arrays["label"], "first": low[:, :1]}
        conditions = {name: given[name] for name in sampler.model.reads}
        return sampler(trained.frozen["base"], seeds, jax.device_get(conditions))

    return draw


def _make_preparation(trained: Trained) -> Callable[..., Any]:
    """``(frozen, arrays, base's samples) -> conditions, given by name, and what to compare``."""
    inputs, options = trained.inputs, read_given_options(trained.config, trained.model)
    upsampler = upsampler_of(read_part(trained.config, "upsampler"), trained.model.dtype)

    @jax.jit
    def prepare(frozen, arrays, sampled):
        key = jax.random.key(0)
        high, conditions, moved = inputs.give(arrays, frozen, key)
        low = inputs.reader.read_low(arrays, frozen, key)

        def upsample(latent):
            return upsampler.apply({"params": frozen["upsampler"]}, latent)

        def give(latent):
            return give_for_sampling(high[:, :1], low[:, :1], latent, upsample, options)

        kinds = dict(zip(KINDS, (moved, give(low), give(sampled)), strict=True))
        given = {name: each.join() for name, each in kinds.items()}
        shown = {f"given {name}": each.condition for name, each in kinds.items()}
        return conditions, given | mark_true_frames(moved, high), {**shown, "real": high}

    return prepare


def measure_distances(drawn: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Distances from the clips' own latents, of ``draw_results``.

    ``<kind>_result`` and ``<kind>_given`` for each of ``KINDS``; ``marked``, ``unmarked`` and
    ``plain``: results in frames whose condition is true and marked, true and not marked, and
    neither.
    """
    real = drawn["real"]

    def distance(name, frames):
        return float(np.abs(drawn[name] - real)[:, frames].mean())

    later = slice(1, None)
    found = {f"{kind}_result": distance(kind, later) for kind in KINDS}
    found |= {f"{kind}_given": distance(f"given {kind}", later) for kind in KINDS}
    for name, stem in (("marked", "true"), ("unmarked", "unmarked")):
        each = [distance(f"{stem} {k}", k) for k in range(1, real.shape[1])]
        found[name] = float(np.mean(each))
    return {**found, "plain": distance("plain", later)}


def measure_pixels(
    trained: Trained, drawn: Mapping[str, np.ndarray], limit: int, shown: int
) -> tuple[dict[str, float], bytes]:
    """Root mean square errors to the real clips, of 255 levels, and a PNG of some clips.

    ``<kind>_result_pixels`` and ``<kind>_given_pixels``, and ``tokenizer_pixels`` of the clips' own
    latents, after frame 0; the mean over clips.

    Args:
      trained: the refiner.
      drawn: of ``draw_results``.
      limit: clips to decode.
      shown: of these, in the picture.
    """
    clips = _render_clips(trained, limit)
    columns = {f"{kind}_result": kind for kind in KINDS}
    columns |= {f"{kind}_given": f"given {kind}" for kind in KINDS}
    columns["tokenizer"] = "real"
    videos = {}
    with use_one_device():
        codec = load_tokenizer_codec(trained.config, trained.known)
        for column, name in columns.items():
            latents = trained.known.restore(drawn[name][: len(clips)])
            videos[column] = [codec.decode(latent) for latent in latents]
    errors = {
        f"{column}_pixels": float(
            np.mean([_rms(a[1:], b[1:]) for a, b in zip(decoded, clips, strict=True)])
        )
        for column, decoded in videos.items()
    }
    rows, labels = [], []
    for number in range(min(shown, len(clips))):
        for kind in KINDS:
            rows += [videos[f"{kind}_given"][number], videos[f"{kind}_result"][number]]
            labels += [f"{kind}\ngiven", f"{kind}\nresult"]
        rows.append(clips[number])
        labels.append("real clip")
    return errors, contact_sheet(rows, labels, columns=9, cell=96, group=2 * len(KINDS) + 1)


def _rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.square(np.float64(a) - b).mean()))


def _render_clips(trained: Trained, limit: int) -> list[np.ndarray]:
    """The first ``limit`` clips as they were rendered, uint8 ``[T, H, W, 3]``."""
    frames, height, width = trained.config.data.buckets[-1][:3]
    seed = configs.read(Path(trained.config.tokenizer.path)).seed
    clips: list[np.ndarray] = []
    for batch in trained.loader:
        for row in np.flatnonzero(batch["mask"]):
            # scene-000012:0:9x64x64 is all of scene 12.
            name = trained.loader.index[int(batch["clip"][row])].path
            number = int(name.partition(":")[0].rpartition("-")[2])
            scene = make_shape_scene(seed, number, frames)
            clips.append(render_shape(scene, range(frames), height, width))
            if len(clips) == limit:
                return clips
    return clips
