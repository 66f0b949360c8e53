"""Memory that encoding a window of 1024x1024 pixels takes at published sizes: estimates.

    python -m benchmarks.encode_memory

prints a table: the whole window in one program, as ``--mode=encode`` had it before it followed
``config.codec``; the largest piece that the tokenizer's preset cuts it into; and the smallest parts
that its ways of cutting offer. By the codec's own estimate, in bfloat16, of one clip and beside the
parameters. Nothing is computed or allocated.
"""

from __future__ import annotations

import jax.numpy as jnp
from absl import app

from vidlatent import config as configs
from vidlatent.codec.auto import estimate_bytes
from vidlatent.codec.options import CodecOptions, plan_codec
from vidlatent.codec.pieces import Pieces
from vidlatent.models.load import abstract_params, model_of

# Config, and frames of a window that its generator is trained on.
_CASES = {
    "fsae:paper,start=random": 121,
    "ivvae:paper": 17,
    "promag:paper": 56,
    "reducio_vae:paper,start=random": 16,
}
_SIDE = 1024


def estimate_row(name: str, frames: int) -> tuple[float, int, float, float]:
    """GiB of the whole window, frames of a piece, GiB of a piece, GiB of its smallest parts."""
    config = configs.load(name)
    model = model_of(config, jnp.bfloat16)
    params = abstract_params(model)

    def estimate(coder, length):
        return estimate_bytes(coder, "encode", params, (length, _SIDE, _SIDE)) / 2**30

    plan = plan_codec(CodecOptions.of(**config.codec), model)
    length = max(piece.length for piece in Pieces(plan, model.latent_spec).cut(range(frames)))
    coder = plan.programs.choose("encode", params, (1, 1, 1)).coder
    parts = [
        way.make(CodecOptions.of(**size.keys))
        for way in model.list_space_ways()
        if way.exact
        for size in way.sizes
    ]
    piece = estimate(coder, length)
    smallest = min([piece, *(estimate(part, length) for part in parts)])
    return estimate(model.make_frame_coder(), frames), length, piece, smallest


def main(_: list[str]) -> None:
    """Print the table."""
    print("| tokenizer, window | whole, GiB | a piece, GiB | in the smallest parts, GiB |")
    print("|---|---|---|---|")
    for name, frames in _CASES.items():
        whole, length, piece, smallest = estimate_row(name, frames)
        config = name.partition(",")[0]
        print(
            f"| {config}, {frames} frames | {whole:.1f} | {piece:.1f} ({length} frames) | "
            f"{smallest:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
