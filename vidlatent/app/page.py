"""The page: a tab for a codec, a tab for a generator.

Gradio is imported here alone. It is told to report nothing, and the page loads no fonts or scripts
from elsewhere. Uploads are removed once they are read, and all that is made goes with the process.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vidlatent.app.jobs import Bounds, Restored, make_video, restore
from vidlatent.codec.codec import Codec
from vidlatent.codec.preview import Preview
from vidlatent.errors import VidlatentError
from vidlatent.paths import as_path

__all__ = ["build_page", "import_gradio"]

_KEPT_SECONDS = 3600  # of what was made, while the page is served
_FONTS = ("system-ui", "sans-serif")


def import_gradio(folder: Path) -> Any:
    """Gradio, whose files go to ``folder``, without telemetry.

    Raises:
      VidlatentError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        import gradio
    except ImportError as error:
        raise VidlatentError(
            "the page needs gradio: install the extra, pip install 'vidlatent[app]'."
        ) from error
    return gradio


def build_page(
    gradio: Any,
    folder: Path,
    codec: Codec | None,
    generator: Any,
    bounds: Bounds,
    preview: Preview | None = None,
    fps: float = 8.0,
) -> Any:
    """The page as gradio's ``Blocks``.

    Args:
      gradio: of ``import_gradio``.
      folder: for what is made.
      codec, generator: what there is to try; None for none, but one of them is needed.
      bounds: of uploads.
      preview: of the codec's latents; None for none.
      fps: of generated videos.
    """
    with gradio.Blocks(
        title="vidlatent",
        analytics_enabled=False,
        delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS),
    ) as page:
        gradio.Markdown("# vidlatent\nEverything stays on this machine, and is deleted after use.")
        if codec is not None:
            with gradio.Tab("Restore a video"):
                _add_restoring(gradio, folder, codec, bounds, preview)
        if generator is not None:
            with gradio.Tab("Make a video"):
                _add_making(gradio, folder, generator, fps)
    return page


def _add_restoring(
    gradio: Any, folder: Path, codec: Codec, bounds: Bounds, preview: Preview | None
) -> None:
    gradio.Markdown(
        f"{codec!r}. At most {bounds.megabytes} MB, {bounds.frames} frames, {bounds.height} rows."
    )
    pairs = gradio.State([])
    with gradio.Row():
        given = gradio.Video(label="Your video", sources=["upload"])
        result = gradio.Video(label="Restored", interactive=False)
    button = gradio.Button("Compress and restore", variant="primary")
    facts = gradio.Markdown()
    slider = gradio.ImageSlider(label="Original and restored", interactive=False, type="numpy")
    number = gradio.Slider(1, 8, value=1, step=1, label="Frame, from the first to the last")
    with gradio.Row():
        both = gradio.Video(label="Side by side", interactive=False)
        latent = gradio.Video(label="The latent, by its preview", visible=preview is not None)
    files = gradio.File(label="To keep: video and latent file", file_count="multiple")

    def run(path: str, progress: Any = gradio.Progress()) -> tuple[Any, ...]:  # noqa: B008
        with _as_page_errors(gradio):
            if not path:
                raise VidlatentError("choose a video first.")
            place = as_path(tempfile.mkdtemp(dir=folder))
            try:
                made = restore(codec, path, place, bounds, preview, progress)
            finally:
                os.remove(path)
            return _show(made)

    outputs = [result, facts, slider, number, pairs, both, latent, files]
    button.click(run, [given], outputs, api_name="restore")
    number.change(_pick, [pairs, number], [slider], api_name=False)


def _show(made: Restored) -> tuple[Any, ...]:
    """The values of the components, in the order of ``outputs``."""
    return (
        str(made.video),
        "\n\n".join(made.facts),
        made.pairs[0],
        1,
        made.pairs,
        str(made.both),
        None if made.preview is None else str(made.preview),
        [str(made.video), str(made.latent)],
    )


def _pick(pairs: list[tuple[np.ndarray, np.ndarray]], number: int) -> Any:
    return pairs[min(len(pairs), int(number)) - 1] if pairs else None


def _add_making(gradio: Any, folder: Path, generator: Any, fps: float) -> None:
    gradio.Markdown(f"{generator!r}")
    reads = set(generator.reads)
    with gradio.Row():
        prompt = gradio.Textbox(label="Text, or name of a class")
        picture = gradio.Image(
            label="First picture",
            type="numpy",
            sources=["upload"],
            visible=bool(reads & {"first", "image", "content"}),
        )
    with gradio.Row():
        seed = gradio.Number(0, label="Seed", precision=0, minimum=0)
        steps = gradio.Number(0, label="Steps; 0: as trained", precision=0, minimum=0)
    button = gradio.Button("Make a video", variant="primary")
    result = gradio.Video(label="Video", interactive=False)

    def run(
        prompt: str,
        picture: Any,
        seed: int,
        steps: int,
        progress: Any = gradio.Progress(),  # noqa: B008
    ) -> str:
        with _as_page_errors(gradio):
            place = as_path(tempfile.mkdtemp(dir=folder))
            made = make_video(
                generator, prompt, picture, int(seed), int(steps), place, fps, progress
            )
            return str(made)

    button.click(run, [prompt, picture, seed, steps], [result], api_name="make")


@contextlib.contextmanager
def _as_page_errors(gradio: Any) -> Iterator[None]:
    """Mistakes of the user as messages on the page."""
    try:
        yield
    except VidlatentError as error:
        raise gradio.Error(str(error), duration=None) from error


def theme_of(gradio: Any) -> Any:
    """A theme with the system's fonts: gradio's own asks another server for them."""
    return gradio.themes.Default(font=_FONTS, font_mono=("monospace",))
