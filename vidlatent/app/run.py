"""The command line of the page."""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

from vidlatent.app.jobs import Bounds
from vidlatent.app.page import build_page, import_gradio, theme_of
from vidlatent.codec.load import load_codec
from vidlatent.codec.preview import FILE, Preview
from vidlatent.errors import VidlatentError
from vidlatent.parallel.compilation import keep_compiled
from vidlatent.paths import as_path
from vidlatent.sample.load import load_generator

__all__ = ["main", "serve"]


def serve(arguments: Sequence[str], folder: str) -> tuple[Any, str]:
    """Start the page; returns gradio's page, which ``close`` ends, and its address.

    Args:
      arguments: of the command line.
      folder: for uploads and what is made; the caller removes it.

    Raises:
      VidlatentError: a run is missing, gradio is not installed, or the port is taken.
    """
    given = _parse(arguments)
    if not (given.tokenizer or given.generator):
        raise VidlatentError("give --tokenizer=runs/fsae-demo, --generator=..., or both.")
    keep_compiled()
    codec = load_codec(given.tokenizer) if given.tokenizer else None
    generator = load_generator(given.generator) if given.generator else None
    preview = None
    if codec is not None and (as_path(given.tokenizer) / FILE).is_file():
        preview = Preview.load(as_path(given.tokenizer) / FILE, codec.spec, codec.encoder)
    bounds = Bounds(given.max_frames, given.max_height, given.max_megabytes)
    fps = 8.0 if generator is None else float(generator.config.sample.fps)
    gradio = import_gradio(as_path(folder))  # makes the folder that of all uploads from now on
    page = build_page(gradio, as_path(folder), codec, generator, bounds, preview, fps)
    try:
        _, address, _ = page.launch(
            server_name=given.host,
            server_port=given.port or None,
            max_file_size=given.max_megabytes * 1_000_000,
            theme=theme_of(gradio),
            share=False,
            show_error=True,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise VidlatentError(f"--port={given.port} cannot be used: name another one.") from error
    return page, address


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vidlatent.app", description=__doc__)
    parser.add_argument("--tokenizer", default="", help="run of a tokenizer: runs/fsae-demo")
    parser.add_argument("--generator", default="", help="run of a generator, or a cascade's folder")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 shows the page to the network")
    parser.add_argument("--port", type=int, default=0, help="0: the first free one from 7860")
    parser.add_argument("--max_megabytes", type=int, default=200, help="of an upload")
    parser.add_argument("--max_frames", type=int, default=240, help="used of a video")
    parser.add_argument("--max_height", type=int, default=480, help="higher ones are scaled down")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="vidlatent_app_") as folder:
        try:
            page, address = serve(sys.argv[1:] if arguments is None else arguments, folder)
        except VidlatentError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
        finally:
            page.close()
    return 0
