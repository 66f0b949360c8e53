"""Codecs by name: of a run, of a config with weights, of a compressed file that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.codec.codec import Codec, place_params
from vidlatent.codec.options import CodecOptions
from vidlatent.codec.packed import PackedVideo, unpack
from vidlatent.errors import VidlatentError
from vidlatent.models.load import model_of
from vidlatent.parallel.mesh import mesh_of_rows
from vidlatent.paths import as_path
from vidlatent.registry import did_you_mean
from vidlatent.weights.files import is_workdir, load_params

__all__ = ["decompress", "load_codec", "open_carried", "open_codec"]


def load_codec(
    path_or_name: str | Path,
    mesh: Mesh | None = None,
    dtype: Any = None,
    *,
    weights: str | Path = "",
    table: str = "auto",
    step: int | None = None,
    **options: Any,
) -> Codec:
    """A tokenizer ready to code videos.

    Args:
      path_or_name: folder of a run (``runs/fsae-demo``), or a config with its argument
        (``ivvae:z16``); the latter needs ``weights``.
      mesh: devices over which frames are spread by height; None: one device.
      dtype: compute dtype, such as ``'bfloat16'``; None: the config's choice.
      weights: weights file or run to read the parameters from.
      table: naming table of the weights file (``weights.tables.TABLES``).
      step: checkpoint of a run; None for the newest sound one.
      options: keys of ``config.codec``, such as ``time='chunks', overlap_frames=4``.

    Raises:
      VidlatentError: there is no such run or config, the weights do not fit, or the tokenizer
        cannot code as asked.
    """
    path = as_path(path_or_name)
    if is_workdir(path) and not weights:
        keys = {**configs.read(path).codec, **options}
        return Codec.from_workdir(path, step, CodecOptions.of(**keys), mesh, dtype)
    config = _find_config(path_or_name, path)
    if not weights:
        raise VidlatentError(
            f"{path_or_name} is the name of a config, not the folder of a run: pass weights= with "
            "a weights file or the run that has them."
        )
    coding = CodecOptions.of(**{**config.codec, **options})
    return _of_weights(config, weights, coding, mesh, dtype, table, step)


def open_codec(config: ConfigDict, workdir: Path, step: int, **weights: str) -> Codec:
    """The codec of a mode: weights of ``--from``, of the workdir, or of the config.

    Args:
      config: of the tokenizer.
      workdir: of its run, which need not be there if weights are named.
      step: checkpoint of a run; below 0 the newest sound one.
      weights: the flags ``from``, a weights file or run ('' or absent: the workdir, and if that
        holds no run, what ``config.train.init_from`` names), and ``from_table``, its naming.

    Raises:
      VidlatentError: there are no weights, or they do not fit.
    """
    options, number = CodecOptions.of(**config.codec), None if step < 0 else step
    source, table = weights.get("from", ""), weights.get("from_table", "auto")
    if not source and not is_workdir(workdir) and not config.train.init_kind:
        source, table = config.train.init_from, config.train.init_table
    if not source:
        return Codec.from_workdir(workdir, number, options)
    logging.info("the weights are those of %s", source)
    return _of_weights(config, source, options, table=table, step=number)


def _of_weights(
    config: ConfigDict,
    weights: str | Path,
    options: CodecOptions,
    mesh: Mesh | None = None,
    dtype: Any = None,
    table: str = "auto",
    step: int | None = None,
) -> Codec:
    """The codec of a config with the weights of a file or run."""
    model = model_of(config, dtype)
    mesh = None if mesh is None else mesh_of_rows(mesh)
    params = load_params(
        weights, place_params(model, mesh), family=config.model.name, table=table, step=step
    )
    # Without a mesh they may be NumPy arrays, which every call would send to the device again.
    params = jax.tree.map(jnp.asarray, params) if mesh is None else params
    return Codec(model, params, options, mesh, config)


def decompress(source: bytes | str | Path) -> np.ndarray:
    """A compressed file that holds its decoder's weights, or its bytes, to uint8 ``[T, H, W, 3]``.

    ``codec.compress(video, weights=True)`` writes such files, and so does ``--mode=compress`` with
    ``--config.compress.weights=true``. No run is needed.

    Raises:
      VidlatentError: it is no compressed video, is damaged, or holds no weights.
    """
    packed = unpack(source)
    return open_carried(packed).decode(packed.coded)


def open_carried(packed: PackedVideo) -> Codec:
    """What decodes a compressed file, from the file alone.

    Raises:
      VidlatentError: it holds no weights, or those of a model that is not known here.
    """
    if packed.decoder is None:
        spec = packed.coded.spec
        raise VidlatentError(
            f"this compressed file of {spec.name} with {spec.channels} channels holds no decoder "
            "weights: give --workdir of the run that wrote it (in Python load_codec(run)."
            "decompress), or write it with --config.compress.weights=true."
        )
    return Codec.of_carried(packed.decoder, packed.coded.encoder)


def _find_config(path_or_name: str | Path, path: Path) -> ConfigDict:
    """The config of that name; errors speak of the argument that the caller gave."""
    if (path / "config.json").is_file() and configs.is_generator(configs.read(path)):
        raise VidlatentError(f"{path} is the run of a generator: read it by load_generator.")
    if path.is_dir():
        raise VidlatentError(f"{path} holds no checkpoint of a tokenizer: train first.")
    try:
        config = configs.load(str(path_or_name))
    except VidlatentError as error:
        if "there is no such file" not in str(error):
            raise
        names = [file.stem for file in sorted(configs.shipped_configs().glob("*.py"))]
        found = {name: configs.load(name) for name in names}
        own = [name for name in names if found[name].task == "tokenizer"]
        raise VidlatentError(
            f"{str(path_or_name)!r} is neither the folder of a run nor the config of a tokenizer: "
            f"{did_you_mean(str(path_or_name).partition(':')[0], own)}"
        ) from error
    if configs.is_generator(config):
        raise VidlatentError(f"{path_or_name} is a generator's config: name a tokenizer's.")
    return config
