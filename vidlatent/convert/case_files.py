"""Readers of reference cases, one for each family of models.

Every hyper-parameter comes from the files. Their arrays are ``(N, C, [T,] H, W)``, ours
``[B, T, H, W, C]``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.layers.positions import interleaved_sincos
from vidlatent.models.tokenizers.fsvideo.names import fields_from_diffusers
from vidlatent.models.tokenizers.reducio.names import REDUCIO_TABLE
from vidlatent.weights.files import read_tensors
from vidlatent.weights.importer import export_names

__all__ = ["StoredCase", "read_dcae", "read_fsae", "read_ivvae", "read_reducio"]

Run = Callable[..., Any]
Checks = Iterator[tuple[str, Any, np.ndarray]]
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class StoredCase:
    """One case.

    Attributes:
      fields: of the model.
      tensors: ``parameter shapes -> weights`` by the names of the file.
      checks: ``run -> (name, output of the model, stored output)`` for each stored output;
        ``run(method, *args, **fields)`` calls the model, with some of its fields changed.
    """

    fields: dict[str, Any]
    tensors: Callable[[Any], Arrays]
    checks: Callable[[Run], Checks]


def read_dcae(folder: Path) -> StoredCase:
    """``config.json`` (constructor arguments), ``weights.safetensors``, ``io.npz``."""
    case, arrays = _read_diffusers(folder)

    def checks(run: Run) -> Checks:
        for name in arrays:
            kind, _, tag = name.partition("_")
            if kind == "input" and f"latent_{tag}" in arrays:
                latent = arrays[f"latent_{tag}"]
                yield f"latent_{tag}", run("encode", jnp.asarray(arrays[name]))[0].mean, latent
                if f"output_{tag}" in arrays:
                    output = arrays[f"output_{tag}"]
                    yield f"output_{tag}", run("decode", jnp.asarray(latent))[0], output

    return StoredCase(fields_from_diffusers(case["config"]), _read_weights(folder), checks)


_DECODERS = {"dec_causal": "causal", "dec_noncausal": "centred", "dec_group": "group"}


def read_fsae(folder: Path) -> StoredCase:
    """The files of ``read_dcae``, for FSVideo's autoencoder."""
    case, arrays = _read_diffusers(folder)
    fields = fields_from_diffusers(case["config"])
    fields["temporal_down"] = tuple(case["temporal_down_after_stages"])

    def checks(run: Run) -> Checks:
        yield "latent", run("encode", jnp.asarray(arrays["video"]))[0].mean, arrays["latent"]
        for name, time in _DECODERS.items():
            if name in arrays:
                latent = jnp.asarray(arrays["latent"])
                yield name, run("decode", latent, decoder_time=time)[0], arrays[name]

    return StoredCase(fields, _read_weights(folder), checks)


def read_ivvae(folder: Path) -> StoredCase:
    """``ivvae.npz`` (weights as ``param/<name>``, inputs, outputs), ``ivvae_stages.json``."""
    _require_files(folder, "ivvae.npz", "ivvae_stages.json")
    case = json.loads((folder / "ivvae_stages.json").read_text())["config"]
    with np.load(folder / "ivvae.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    tensors = {
        name.removeprefix("param/"): x for name, x in arrays.items() if name.startswith("param/")
    }
    arrays = {
        name: _to_channel_last(x) for name, x in arrays.items() if not name.startswith("param/")
    }
    scale, shift = (np.float32(case[name]) for name in ("scale", "shift"))

    def checks(run: Run) -> Checks:
        posterior, _ = run("encode", _to_pixels(arrays["video_u8"]))
        yield "latent_mu", posterior.mean, arrays["latent_mu"]
        yield "latent_logvar", posterior.logvar, arrays["latent_logvar"]
        drawn = posterior.draw(jnp.asarray(arrays["eps"]))
        # Stored latents are as a generator sees them: scaled here, scaled back below.
        yield "latent", scale * (drawn - shift), arrays["latent"]
        yield "recon", run("decode", arrays["latent"] / scale + shift)[0], arrays["recon"]

    return StoredCase(_infer_ivvae_fields(tensors, case), lambda _: tensors, checks)


def _infer_ivvae_fields(tensors: Arrays, case: Mapping[str, Any]) -> dict[str, Any]:
    """Widths and the order of modules are seen from names and shapes of the weights."""

    def modules(rest: str) -> list[int]:
        found = (re.fullmatch(r"encoder[.]downsamples[.](\d+)[.]" + rest, name) for name in tensors)
        return sorted(int(match[1]) for match in found if match)

    downs = modules(r"resample_2d[.]1[.]bias")
    widths = [tensors[f"encoder.downsamples.{i}.resample_2d.1.bias"].size for i in downs]
    # The last level has no downsampling; the middle is as wide as both branches together.
    widths.append(tensors["encoder.middle.0.residual.0.gamma"].size // 2)
    return {
        "latent_channels": case["z_dim"],
        "width": case["dim"],
        "multipliers": tuple(width // case["dim"] for width in widths),
        "blocks": case["num_res_blocks"],
        # Numbers of levels: the modules in the names also count residual blocks.
        "temporal_down": tuple(downs.index(i) for i in modules(r"time_conv[.]bias")),
        "latent_scale": case["scale"],
        "latent_shift": case["shift"],
    }


# Names of stored content features -> their places in the pyramid, the last of any length.
_PYRAMID = {"feat2": 2, "feat3": 3, "feat4": -1}


def read_reducio(path: Path) -> StoredCase:
    """One ``.npz`` file: ``meta``, weights ``w/<name>`` as scaled integers, ``io/<name>``.

    It must be a case of a whole network (``vae_*.npz``): files of the tiled decoder have outputs of
    single tiles only.
    """
    if path.is_dir():
        known = sorted(file.name for file in path.glob("vae_*.npz"))
        if len(known) != 1:
            named = f" of {', '.join(known)}" if known else ", vae_<name>.npz"
            raise VidlatentError(f"--verify={path}: name one file{named}.")
        path = path / known[0]
    _require_files(path.parent, path.name)
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    # Cases of the tiled decoder lack some of these.
    missing = {"meta", "io/video_u8", "io/moments", "io/feat4", "io/recon"} - set(arrays)
    if missing:
        raise VidlatentError(
            f"--verify={path} is no case of a whole network: it lacks {', '.join(sorted(missing))}."
        )
    meta = json.loads(str(arrays["meta"]))
    io = {
        name.removeprefix("io/"): _to_channel_last(x)
        for name, x in arrays.items()
        # Scalars, such as the content frame's number, are read below.
        if name.startswith("io/") and x.ndim > 3
    }

    def checks(run: Run) -> Checks:
        video = _to_pixels(io["video_u8"])
        yield "moments", run("moments", video), io["moments"]

        def decode(model, motion, frame):
            pyramid = model.content_values(frame)[1]
            features = tuple(pyramid[level] for level in model.feature_levels)
            return pyramid, model.decode(motion, condition=features)[0]

        frame = video[:, int(arrays["io/content_index"])]
        pyramid, recon = run(decode, jnp.asarray(io["motion"]), frame)
        for name, place in _PYRAMID.items():
            if name in io:
                # Features of one frame: the time axis comes from `_to_channel_last`.
                yield name, pyramid[place], io[name][:, 0]
        yield "recon", recon, io["recon"]

    return StoredCase(
        _read_reducio_fields(meta),
        lambda shapes: _restore_reducio_weights(arrays, meta, shapes),
        checks,
    )


def _read_reducio_fields(meta: Mapping[str, Any]) -> dict[str, Any]:
    volume, frame = meta["ddconfig"], meta["ddconfig_2d"]
    window = volume["window_size"]
    return {
        "latent_channels": volume["z_channels"],
        "width": volume["ch"],
        "multipliers": tuple(volume["ch_mult"]),
        "blocks": volume["num_res_blocks"],
        "time_factor": 2 ** volume["f_t"],
        # The 32-fold networks do not say it; it follows from the number of levels.
        "space_factor": 2 ** (volume["f_s"] if "f_s" in volume else len(volume["ch_mult"]) - 1),
        "frames": volume["temp_res"],
        "fuse": tuple(volume["ch_fuse"]),
        "fuse_middle": volume["fuse_mid"],
        "fuse_window": tuple(window) if isinstance(window, list) else window,
        "content_width": frame["ch"],
        "content_multipliers": tuple(frame["ch_mult"]),
        "content_blocks": frame["num_res_blocks"],
    }


def _restore_reducio_weights(arrays: Arrays, meta: Mapping[str, Any], shapes: Any) -> Arrays:
    """Weights from integers and powers of two, and the position tables that the file leaves out."""
    tensors = {}
    for name, x in arrays.items():
        if name.startswith("w/"):
            key = name.removeprefix("w/")
            tensors[key] = np.ldexp(x.astype(np.float32), -meta["weight_exp"][key])
    for name, shape in export_names(shapes, REDUCIO_TABLE).items():
        if name.endswith("pos_embed"):
            # [N, D] -> [1, N, 1, D]
            tensors[name] = interleaved_sincos(shape[1], shape[3])[None, :, None]
    return tensors


def _require_files(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise VidlatentError(f"--verify={folder} is no reference case: it lacks {name}.")


def _read_diffusers(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    _require_files(folder, "config.json", "io.npz")
    with np.load(folder / "io.npz") as stored:
        arrays = {name: _to_channel_last(stored[name]) for name in stored.files}
    return json.loads((folder / "config.json").read_text()), arrays


def _read_weights(folder: Path) -> Callable[[Any], Arrays]:
    return lambda _: read_tensors(folder / "weights.safetensors")


def _to_channel_last(x: np.ndarray) -> np.ndarray:
    """``(N, C, [T,] H, W)`` as ``[B, T, H, W, C]``."""
    x = x[:, :, None] if x.ndim == 4 else x
    return np.moveaxis(x, 1, -1)


def _to_pixels(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) / 127.5 - 1
