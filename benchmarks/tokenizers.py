"""Encode and decode of whole tokenizers on this CPU, against the same weights in PyTorch.

    python -m benchmarks.tokenizers --torch-python /path/to/env/bin/python
    python -m benchmarks.tokenizers --models ivvae --clips 5x256x256    # without the comparison

``ivvae`` is the released size with z = 16, ``dcae`` DC-AE f32c32, whose frames are a batch of
images, ``reducio`` the released ft4-fs32, whose clips have 16 frames; weights are random. Both
sides compute in float32 on two threads, one after the other in one run, and decode the same latent;
"difference" is the largest one between their results, relative to the largest value. A ratio below
1 means that this package is faster; on a busy machine look at the processor seconds, which other
work hardly moves. The other environment needs torch, safetensors, numpy, and diffusers for DC-AE.
17x256x256 takes minutes a model on two idle cores.

Another model is an ``Entry`` in ``MODELS`` here and, for the comparison, a network of the same name
in ``NETWORKS`` of ``torch_tokenizers.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.infer.load import abstract_params
from vidlatent.io.importer import export_params
from vidlatent.io.safetensors import save_safetensors
from vidlatent.models import build
from vidlatent.models.fsvideo.import_dcae import DCAE_TABLE
from vidlatent.models.ivvae.import_ivvae import IVVAE_TABLE, RELEASED
from vidlatent.models.reducio.import_reducio import REDUCIO_TABLE
from vidlatent.models.reducio.import_reducio import RELEASED as REDUCIO

WIDTHS = (128, 256, 512, 512, 1024, 1024)
BLOCKS = ("res",) * 3 + ("evit",) * 3
SCALES = ((), (), (), (5,), (5,), (5,))
WEIGHTS = "weights.safetensors"
# DC-AE f32c32 for Diffusers' constructor.
DCAE_CONFIG = {
    "latent_channels": 32,
    "attention_head_dim": 32,
    **{f"{side}_block_out_channels": WIDTHS for side in ("encoder", "decoder")},
    **{
        f"{side}_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
        for side in ("encoder", "decoder")
    },
    **{f"{side}_qkv_multiscales": SCALES for side in ("encoder", "decoder")},
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3,) * 6,
    "upsample_block_type": "interpolate",
    "downsample_block_type": "conv",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """Fields of our model, names of its weights on file, what the torch side is told, clips."""

    fields: dict[str, Any]
    table: Any
    torch: dict[str, Any] = dataclasses.field(default_factory=dict)
    clips: tuple[str, ...] = ("17x256x256", "1x512x512")


MODELS = {
    "ivvae": Entry({"name": "ivvae", **RELEASED["ivvae_z16_dim64"]}, IVVAE_TABLE),
    "reducio": Entry(
        {"name": "reducio", **REDUCIO["reducio-ft4-fs32-attn23"]},
        REDUCIO_TABLE,
        clips=("16x256x256",),
    ),
    "dcae": Entry(
        {
            "name": "dcae",
            "latent_channels": 32,
            "encoder_widths": WIDTHS,
            "decoder_widths": WIDTHS,
            "encoder_depths": (2, 2, 2, 3, 3, 3),
            "decoder_depths": (3,) * 6,
            "block_types": BLOCKS,
            "multiscales": SCALES,
            "head_dim": 32,
        },
        DCAE_TABLE,
        DCAE_CONFIG,
    ),
}


def random_params(model, seed=0):
    """Values of the usual sizes everywhere, so that nothing vanishes or grows."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("gamma", "scale"):
            return np.ones(leaf.shape, np.float32)
        size = np.prod(leaf.shape[:-1]) if name == "kernel" else 1e4
        return (rng.standard_normal(leaf.shape) / np.sqrt(size)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(model))


def timed(function, params, x, repeats):
    """Result, least seconds (wall, processor), seconds of compilation."""
    start = time.perf_counter()
    run = jax.jit(function).lower(params, x).compile()
    compilation = time.perf_counter() - start
    wall, processor = [], []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        y = jax.block_until_ready(run(params, x))
        wall.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    return np.asarray(y), (min(wall), min(processor)), compilation


def ours(model, params, video, repeats):
    def encode(p, x):
        return model.apply({"params": p}, x, method="encode")[0].mode()

    def decode(p, x):
        latent, content = x  # features of the content frame are made here, as part of decoding
        return model.apply({"params": p}, latent, condition=content, method="decode")[0]

    content = None
    if hasattr(model, "content_frame"):
        content = model.apply({}, video, method="content_frame")

    latent, encoding, first = timed(encode, params, video, repeats)
    given = (jnp.asarray(latent), content)
    restored, decoding, second = timed(decode, params, given, repeats)
    seconds = {"encode": encoding, "decode": decoding}
    return {"latent": latent[0], "restored": restored[0]}, seconds, first + second


def theirs(python, name, folder, video, latent, repeats):
    """Runs ``torch_tokenizers.py`` on the weights in ``folder``."""
    files = [str(Path(folder, f)) for f in (WEIGHTS, "io.npz", "result.npz")]
    config = json.dumps(MODELS[name].torch)
    np.savez(files[1], video=np.asarray(video[0]), latent=latent, config=config)
    script = str(Path(__file__).with_name("torch_tokenizers.py"))
    subprocess.run([python, script, name, *files, str(repeats)], check=True)
    result = dict(np.load(files[2]))
    seconds = {key: tuple(map(float, result.pop(key))) for key in ("encode", "decode")}
    return result, seconds


def measure(name, clip, python, repeats):
    entry = MODELS[name]
    model = build(entry.fields)
    frames, height, width = clip
    video = np.random.default_rng(1).uniform(-1, 1, (1, frames, height, width, 3))
    video = jnp.asarray(video, jnp.float32)
    row, others = {"model": name, "clip": "x".join(map(str, clip))}, {}
    with tempfile.TemporaryDirectory() as folder:
        params = random_params(model)
        if python:
            tensors = export_params(params, entry.table)
            tensors = {key: np.asarray(x) for key, x in tensors.items()}
            save_safetensors(tensors, Path(folder, WEIGHTS))
            del tensors
        params = jax.tree.map(jnp.asarray, params)
        values, seconds, row["compile s"] = ours(model, params, video, repeats)
        del params
        if python:
            other, others = theirs(python, name, folder, video, values["latent"], repeats)
            for key, value in other.items():
                error = np.abs(value - values[key]).max() / np.abs(value).max()
                row[f"{key} difference"] = float(error)
    for key, mine in seconds.items():
        for i, unit in enumerate(("wall s", "cpu s")):
            row[f"{key} {unit}"] = mine[i]
            if others:
                row[f"torch {key} {unit}"] = others[key][i]
                row[f"{key} ratio of {unit}"] = mine[i] / others[key][i]
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--clips", nargs="+", help="frames x height x width; default: by model")
    parser.add_argument("--torch-python", default="", help="interpreter with torch; empty: none")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", default="", help="write the rows here too")
    args = parser.parse_args()
    rows = []
    for name in args.models:
        for clip in args.clips or MODELS[name].clips:
            size = tuple(map(int, clip.split("x")))
            rows.append(measure(name, size, args.torch_python, args.repeats))
            print(
                ", ".join(
                    f"{key} {value:.3g}" if isinstance(value, float) else f"{value}"
                    for key, value in rows[-1].items()
                ),
                flush=True,
            )
    if args.json:
        Path(args.json).write_text(json.dumps({"threads": os.cpu_count(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
