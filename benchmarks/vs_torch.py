"""Time and results of published PyTorch models and ours on this CPU, with the same weights.

    python -m benchmarks.vs_torch --torch-python /path/to/env/bin/python
    python -m benchmarks.vs_torch --models ivvae --sizes 5x256x256    # without the comparison

``ivvae`` is the released size with z = 16, ``dcae`` DC-AE f32c32, whose frames are a batch of
images, ``reducio`` the released ft4-fs32, whose clips have 16 frames: sizes are those of a clip,
frames x height x width. ``wan-block`` is a block of Wan2.1's transformer of 1.3 B with 512 text
tokens; its size is that of the tokens' grid, and keys and values of the text are made each time.

Weights are random. Both sides compute in float32 from the same inputs, in turns, on all cores that
this process may use. The time of each is the least of ``--repeats``; "difference" is the largest
difference between results, relative to the largest value. A ratio below 1 means that this package
is faster; on a busy machine compare processor seconds, which other work hardly changes. The torch
environment needs torch, safetensors and numpy, and diffusers for DC-AE and the block. Tokenizers at
17x256x256 take minutes a turn on two idle cores.

Another model is an ``Entry`` in ``MODELS`` here and, for the comparison, a network of the same name
in ``NETWORKS`` of ``torch_models.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.layers.positions import rope_tables
from vidlatent.models.generators.wan.block import WanBlock
from vidlatent.models.generators.wan.names import WAN_DIFFUSERS_TABLE
from vidlatent.models.load import abstract_params
from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.fsvideo.names import DCAE_TABLE
from vidlatent.models.tokenizers.ivvae.names import IVVAE_TABLE, RELEASED
from vidlatent.models.tokenizers.reducio.names import REDUCIO_TABLE
from vidlatent.models.tokenizers.reducio.names import RELEASED as REDUCIO
from vidlatent.report.tables import markdown_table
from vidlatent.weights.importer import export_params
from vidlatent.weights.safetensors import save_safetensors

WIDTHS = (128, 256, 512, 512, 1024, 1024)
BLOCKS = ("res",) * 3 + ("evit",) * 3
SCALES = ((), (), (), (5,), (5,), (5,))
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
# Ours of the same.
DCAE = {
    "name": "dcae",
    "latent_channels": 32,
    "encoder_widths": WIDTHS,
    "decoder_widths": WIDTHS,
    "encoder_depths": (2, 2, 2, 3, 3, 3),
    "decoder_depths": (3,) * 6,
    "block_types": BLOCKS,
    "multiscales": SCALES,
    "head_dim": 32,
}
# Arguments of Diffusers' WanTransformerBlock; text tokens.
WAN_1_3B = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12}
TEXT = 512
TORCH_SIDE = Path(__file__).with_name("torch_models.py")

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model on both sides.

    Attributes:
      make: makes our side, an object with ``calls``, see ``Tokenizer``.
      table: names of its weights on file.
      torch: constructor arguments of the torch side.
      sizes: measured by default.
    """

    make: Callable[[], Any]
    table: Any
    torch: dict[str, Any]
    sizes: tuple[str, ...]


class Tokenizer:
    """Encodes a clip and decodes our latent of it.

    Attributes:
      calls: method -> the inputs that it reads on both sides, in order.
    """

    calls = {"encode": ("video",), "decode": ("latent",)}

    def __init__(self, fields: Mapping[str, Any]):
        self.model = build(dict(fields))

    def shapes(self) -> Any:
        """Abstract parameters."""
        return abstract_params(self.model)

    def inputs(self, size: tuple[int, ...], rng: np.random.Generator) -> Arrays:
        """Arrays by name; ``content`` is what our decoder looks at, where it does."""
        video = jnp.asarray(rng.uniform(-1, 1, (*size, 3)), jnp.float32)
        if self.model.condition_kind != "content":
            return {"video": video}
        content = self.model.apply({}, video[None], method="pick_content_frames")
        return {"video": video, "content": content}

    def encode(self, params: Any, arrays: Arrays) -> Arrays:
        """Arrays to add to the inputs; the first is the result to compare."""
        posterior = self.model.apply({"params": params}, arrays["video"][None], method="encode")[0]
        return {"latent": posterior.mode()[0]}

    def decode(self, params: Any, arrays: Arrays) -> Arrays:
        # Features of the content frame are made here, as part of decoding.
        condition = arrays["content"] if "content" in arrays else None
        return {
            "restored": self.model.apply(
                {"params": params}, arrays["latent"][None], condition=condition, method="decode"
            )[0][0]
        }

    def published(self, params: Any) -> Any:
        """Parameters in the structure that ``table`` names."""
        return params


class Block:
    """One block of Wan2.1's transformer, from text to video; calls as for ``Tokenizer``."""

    calls = {"forward": ("states", "text", "time", "grid")}

    def __init__(self, dim: int, ffn_dim: int, num_heads: int):
        self.block = WanBlock(dim, num_heads, ffn_dim, image=False)

    def shapes(self) -> Any:
        arrays = self.inputs((1, 1, 1), np.random.default_rng(0))
        return jax.eval_shape(lambda: self.block.init(jax.random.key(0), *_given(arrays)))["params"]

    def inputs(self, size: tuple[int, ...], rng: np.random.Generator) -> Arrays:
        width = self.block.width
        shapes = {"states": (1, math.prod(size), width), "text": (1, TEXT, width)}
        shapes["time"] = (1, 6, width)
        arrays = {k: jnp.asarray(rng.normal(size=shapes[k]), jnp.float32) for k in shapes}
        tables = rope_tables(size, width // self.block.heads)
        cos, sin = map(jnp.asarray, tables)
        return {**arrays, "grid": jnp.asarray(size), "cos": cos, "sin": sin}

    def forward(self, params: Any, arrays: Arrays) -> Arrays:
        return {"result": self.block.apply({"params": params}, *_given(arrays))}

    def published(self, params: Any) -> Any:
        return {"blocks": jax.tree.map(lambda leaf: leaf[None], params)}


def _given(arrays: Arrays) -> tuple[Any, ...]:
    """Arguments of ``WanBlock``."""
    tables = arrays["cos"], arrays["sin"]
    return arrays["states"], None, arrays["time"], {"text": arrays["text"]}, tables


MODELS = {
    "ivvae": Entry(
        lambda: Tokenizer({"name": "ivvae", **RELEASED["ivvae_z16_dim64"]}),
        IVVAE_TABLE,
        {},
        ("17x256x256", "1x512x512"),
    ),
    "reducio": Entry(
        lambda: Tokenizer({"name": "reducio", **REDUCIO["reducio-ft4-fs32-attn23"]}),
        REDUCIO_TABLE,
        {},
        ("16x256x256",),
    ),
    "dcae": Entry(lambda: Tokenizer(DCAE), DCAE_TABLE, DCAE_CONFIG, ("17x256x256", "1x512x512")),
    "wan-block": Entry(lambda: Block(**WAN_1_3B), WAN_DIFFUSERS_TABLE, WAN_1_3B, ("31x6x10",)),
}


def random_params(shapes: Any, seed: int = 0) -> Any:
    """Random parameters of usual magnitude, so that activations neither vanish nor grow."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("gamma", "scale"):
            return np.ones(leaf.shape, np.float32)
        size = np.prod(leaf.shape[:-1]) if name == "kernel" else 1e4
        return (rng.standard_normal(leaf.shape) / np.sqrt(size)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


class TorchSide:
    """The process with torch; it is idle between calls."""

    def __init__(self, process: subprocess.Popen, folder: Path):
        self.process, self.folder = process, folder
        self.version = self._answer()["torch"]

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the torch side ended with status {self.process.wait()}; see above.")
        return json.loads(line)

    def run(self, call: str, given: Arrays | None) -> tuple[tuple[float, float], Any]:
        """``((wall s, processor s), result)``; the result is None unless inputs are given."""
        files = None
        if given is not None:
            files = [str(self.folder / f"{call}.{end}") for end in ("npz", "npy")]
            np.savez(files[0], **{name: np.asarray(array) for name, array in given.items()})
        print(json.dumps({"call": call, "files": files}), file=self.process.stdin, flush=True)
        seconds = tuple(self._answer())
        return seconds, None if files is None else np.load(files[1])


@contextlib.contextmanager
def start_torch_side(python: str, name: str, params: Any, folder: Path) -> Iterator[TorchSide]:
    """The network called ``name`` with these weights, in another interpreter."""
    entry = MODELS[name]
    weights = folder / "weights.safetensors"
    tensors = export_params(params, entry.table)
    save_safetensors({key: np.asarray(x) for key, x in tensors.items()}, weights)
    command = [
        python,
        str(TORCH_SIDE),
        name,
        str(weights),
        json.dumps(entry.torch),
        str(count_threads()),
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        yield TorchSide(
            process, folder
        )  # it exits when its input is closed at the end of the block


def count_threads() -> int:
    """Cores that this process may use, which is what XLA takes."""
    return len(os.sched_getaffinity(0))


def time_call(run: Callable[..., Any], *arguments: Any) -> tuple[tuple[float, float], Any]:
    """Seconds (wall, processor) and the result."""
    start = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(run(*arguments))
    return (time.perf_counter() - start[0], time.process_time() - start[1]), result


def measure(name: str, size: tuple[int, ...], python: str, repeats: int) -> dict[str, Any]:
    """Measure one row of the table; both sides take turns."""
    entry = MODELS[name]
    model = entry.make()
    arrays = model.inputs(size, np.random.default_rng(1))
    row: dict[str, Any] = {"model": name, "size": "x".join(map(str, size)), "compile s": 0.0}
    seconds: dict[str, list[tuple[float, float]]] = {}
    programs = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        params, other = random_params(model.shapes()), None
        if python:
            other = stack.enter_context(
                start_torch_side(python, name, model.published(params), folder)
            )
            row["torch"] = other.version
        params = jax.tree.map(jnp.asarray, params)
        for turn in range(repeats):
            for call, reads in model.calls.items():
                if turn == 0:
                    (compiling, _), run = time_call(_compile, model, call, params, arrays)
                    row["compile s"] += compiling
                    programs[call] = functools.partial(run, params, arrays)
                given = {key: arrays[key] for key in reads} if turn == 0 else None
                spent, made = time_call(programs[call])
                seconds.setdefault(call, []).append(spent)
                arrays = {**arrays, **made} if turn == 0 else arrays
                if other:
                    spent, result = other.run(call, given)
                    seconds.setdefault(f"torch {call}", []).append(spent)
                    if turn == 0:
                        mine = np.asarray(next(iter(made.values())))
                        error = np.abs(result - mine).max() / np.abs(result).max()
                        row[f"{call} difference"] = float(error)
    return row | _least_times(model.calls, seconds)


def _compile(model: Any, call: str, params: Any, arrays: Arrays) -> Any:
    return jax.jit(getattr(model, call)).lower(params, arrays).compile()


def _least_times(calls: Any, seconds: Mapping[str, list[tuple[float, float]]]) -> dict[str, float]:
    """Least seconds of each side, and their ratio."""
    found = {}
    for call in calls:
        for place, unit in enumerate(("wall s", "cpu s")):
            least = {who: min(s[place] for s in seconds[who]) for who in seconds if call in who}
            found |= {f"{who} {unit}": value for who, value in least.items()}
            if f"torch {call}" in least:
                found[f"{call} ratio of {unit}"] = least[call] / least[f"torch {call}"]
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sizes", nargs="+", help="of clip or grid, 17x256x256; default: by model")
    parser.add_argument("--torch-python", default="", help="interpreter with torch; empty: none")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", default="", help="write the rows here too")
    args = parser.parse_args(argv)
    rows = []
    for name in args.models:
        for size in args.sizes or MODELS[name].sizes:
            given = tuple(map(int, size.split("x")))
            rows.append(measure(name, given, args.torch_python, max(1, args.repeats)))
            lines = [{"": key, name: _text(value)} for key, value in rows[-1].items()]
            print(markdown_table(lines, aligned=True), flush=True)
    if args.json:
        about = {"threads": count_threads(), "repeats": args.repeats, "jax": jax.__version__}
        Path(args.json).write_text(json.dumps({**about, "rows": rows}, indent=1))


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
