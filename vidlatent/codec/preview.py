"""Quick pictures of latents: a linear map to small RGB frames, fitted in closed form.

Each latent position becomes one pixel of every frame that its latent frame stands for: enough to
see what a generator draws, at nearly no cost. The least-squares fit is computed from sums of
products in float64, so it needs one pass over the data and no tuning.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vidlatent.codec.codec import Codec
from vidlatent.codec.options import CodecOptions
from vidlatent.data.loaders import Loaders
from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json, parse_json, read_npz, replace_file
from vidlatent.latents.pixels import from_pixels
from vidlatent.media.sheets import contact_sheet, enlarge
from vidlatent.models.tokenizers.cutting import make_latent_coder
from vidlatent.parallel.multihost import is_main
from vidlatent.paths import as_path
from vidlatent.spec import LatentSpec, check_shape

__all__ = ["LinearFit", "Preview", "fit_preview"]

FILE, PICTURE = "preview.npz", "preview.png"
# Training batches that the map is fitted on, and clips shown beside their previews.
_BATCHES, _SHOWN = 64, 4


class LinearFit:
    """Least squares ``y = [x, 1] w`` from running sums.

    Attributes:
      n: rows seen.
    """

    def __init__(self, inputs: int, outputs: int):
        self.n = 0
        self._xx = np.zeros((inputs + 1, inputs + 1))
        self._xy = np.zeros((inputs + 1, outputs))
        self._yy = np.zeros(outputs)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Rows ``[n, inputs]`` and ``[n, outputs]``."""
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        # The column of ones gives the map its constant term.
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        self.n += len(x)
        self._xx += x.T @ x
        self._xy += x.T @ y
        self._yy += np.square(y).sum(axis=0)

    def solve(self) -> np.ndarray:
        """``w`` ``[inputs + 1, outputs]``; of equally good fits the one of smallest norm."""
        # Scale to a unit diagonal, so that channels of very different size do not lose precision.
        size = np.sqrt(np.maximum(np.diag(self._xx), np.finfo(float).tiny))
        scaled = self._xx / size[:, None] / size
        return np.linalg.lstsq(scaled, self._xy / size[:, None], rcond=1e-12)[0] / size[:, None]

    def explained(self, weights: np.ndarray) -> float:
        """Share (0 to 1) of the variance of all outputs that ``weights`` explain on these rows."""
        # |y - x w|^2 = |y|^2 - 2 w.(x y) + w.(x x) w, from the sums alone: no second pass.
        error = self._yy - 2 * (weights * self._xy).sum(0)
        error = error + (weights * (self._xx @ weights)).sum(0)
        # The row of the ones holds the sums of y, so this is n times the variance of y.
        total = self._yy - np.square(self._xy[-1]) / max(self.n, 1)
        return float(1 - error.sum() / total.sum())


class Preview:
    """The map of one tokenizer.

    Args:
      spec: whose latents it takes.
      first: ``[c + 1, 3]`` for a latent frame that stands for frame 0 alone; None if there is none.
      group: ``[c + 1, 3 t]`` for the others, which stand for ``t`` frames each.
      encoder: digest of what encodes the latents; '' if unknown.
    """

    def __init__(
        self,
        spec: LatentSpec,
        first: np.ndarray | None,
        group: np.ndarray | None,
        encoder: str = "",
    ):
        self.spec, self.first, self.group, self.encoder = spec, first, group, encoder

    def __call__(self, latent: np.ndarray) -> np.ndarray:
        """Latent ``[t, h, w, c]`` -> frames uint8 ``[T, h, w, 3]``."""
        check_shape(latent, "t h w c", c=self.spec.channels)
        lead = _lead(self.spec)
        parts = [
            _applied(latent[:lead], self.first, 1),
            _applied(latent[lead:], self.group, self.spec.t),
        ]
        return np.concatenate([part for part in parts if part is not None])

    def save(self, path: str | Path) -> None:
        maps = {"first": self.first, "group": self.group}
        kept = {name: value for name, value in maps.items() if value is not None}
        with replace_file(path) as file:
            np.savez(file, spec=dump_json(self.spec.to_json()), encoder=self.encoder, **kept)

    @classmethod
    def load(cls, path: str | Path, spec: LatentSpec, encoder: str = "") -> Preview:
        """Read what ``save`` wrote.

        Args:
          path: of the file.
          spec: of the latents that are to be shown.
          encoder: digest of what encoded them; '' if unknown.

        Raises:
          VidlatentError: there is none, or it was fitted to another tokenizer's latents.
        """
        if not as_path(path).is_file():
            raise VidlatentError(f"there is no preview at {path}: fit one by --mode=preview.")
        stored = read_npz(path, "fit it again by --mode=preview")
        try:
            found = LatentSpec.from_json(parse_json(str(stored["spec"])))
        except (VidlatentError, KeyError, ValueError) as error:
            raise VidlatentError(
                f"{path} is no preview ({error}): fit it again by --mode=preview."
            ) from error
        if found.hash != spec.hash:
            raise VidlatentError(
                f"{path} was fitted to latents of {found.name}, not of this {spec.name}: fit "
                "it again by --mode=preview."
            )
        maps = {name: stored[name] for name in ("first", "group") if name in stored}
        shapes = {"first": (spec.channels + 1, 3), "group": (spec.channels + 1, 3 * spec.t)}
        for name, array in maps.items():
            right = array.dtype.kind == "f" and array.shape == shapes[name]
            if not right or not np.isfinite(array).all():
                raise VidlatentError(
                    f"{path} is no preview ({name} is {array.dtype} of shape {array.shape}, or not "
                    "finite): fit it again by --mode=preview."
                )
        fitted = str(stored["encoder"]) if "encoder" in stored else ""
        if encoder and fitted and encoder != fitted:
            raise VidlatentError(
                f"{path} was fitted to latents of the encoder {fitted[:8]}, not of "
                f"{encoder[:8]}: fit it again by --mode=preview."
            )
        return cls(spec, maps.get("first"), maps.get("group"), fitted)


class PreviewSums:
    """Sums over clips that a ``Preview`` is fitted to, or scored on."""

    def __init__(self, spec: LatentSpec):
        self.spec = spec
        self._fits = {"first": LinearFit(spec.channels, 3)}
        self._fits["group"] = LinearFit(spec.channels, 3 * spec.t)

    def add(self, latent: np.ndarray, video: np.ndarray) -> None:
        """A clip's latent ``[t, h, w, c]`` and its frames uint8 ``[T, H, W, 3]``."""
        spec, lead = self.spec, _lead(self.spec)
        t, h, w, c = latent.shape
        # [T, H, W, 3] -> [T, h, w, 3]: the mean of the pixels that a latent position covers
        small = video.reshape(len(video), h, spec.h, w, spec.w, 3).mean(axis=(2, 4)) / 255.0
        self._fits["first"].add(latent[:lead].reshape(-1, c), small[:lead].reshape(-1, 3))
        # [t * spec.t, h, w, 3] -> [t, h, w, spec.t, 3]: all frames of a latent side by side
        frames = small[lead:].reshape(t - lead, spec.t, h, w, 3).transpose(0, 2, 3, 1, 4)
        self._fits["group"].add(latent[lead:].reshape(-1, c), frames.reshape(-1, 3 * spec.t))

    def fit(self) -> Preview:
        maps = {name: fit.solve() if fit.n else None for name, fit in self._fits.items()}
        return Preview(self.spec, **maps)

    def explained(self, preview: Preview) -> dict[str, float]:
        """Explained share of the variance of frame 0 and of the groups' frames."""
        maps = {"first": preview.first, "group": preview.group}
        return {
            name: fit.explained(maps[name])
            for name, fit in self._fits.items()
            if fit.n and maps[name] is not None
        }


def _lead(spec: LatentSpec) -> int:
    # Lengths 1 + step k: frame 0 has a latent of its own. Lengths step k: it has none.
    return 1 if spec.rule.first % spec.rule.step else 0


def _applied(latent: np.ndarray, weights: np.ndarray | None, frames: int) -> np.ndarray | None:
    """``[t, h, w, c]`` -> uint8 ``[t * frames, h, w, 3]``."""
    if not len(latent) or weights is None:
        return None
    y = np.asarray(latent, np.float64) @ weights[:-1] + weights[-1]
    # [t, h, w, frames * 3] -> [t, frames, h, w, 3]
    y = y.reshape(*latent.shape[:3], frames, 3).transpose(0, 3, 1, 2, 4)
    pixels = np.clip(np.round(y * 255.0), 0, 255).astype(np.uint8)
    return pixels.reshape(-1, *pixels.shape[2:])


def fit_preview(config: ConfigDict, workdir: Path, step: int) -> int:
    """Fit the preview of the checkpoint of ``workdir`` on training clips of ``config.data``.

    Writes ``<workdir>/preview.npz`` and ``preview.png``, with validation clips over their previews;
    returns the exit status.
    """
    options = CodecOptions.of()
    codec = Codec.from_workdir(workdir, None if step < 0 else step, options)
    coder = make_latent_coder(codec.model, options)  # the latents that all other modes make
    spec, loaders = codec.spec, Loaders(config, codec.spec, workdir)

    @jax.jit
    def encode(params, video):
        return coder.encode(params, from_pixels(video))[0].mode()

    def clips(batches):
        for batch in batches:
            latents = np.asarray(encode(codec.params, batch["video"]))
            # Padding would count as black clips.
            for row in np.flatnonzero(batch["mask"]):
                yield latents[row], batch["video"][row], int(batch["clip"][row])

    seen, held = PreviewSums(spec), PreviewSums(spec)
    with loaders.train(0) as loader:
        for latent, video, _ in clips(itertools.islice(loader, _BATCHES)):
            seen.add(latent, video)
    preview = seen.fit()
    preview.encoder = codec.encoder
    shown: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # the first window of each file
    with loaders.validation() as loader:
        for latent, video, clip in clips(loader):
            # Scored on clips that the map was not fitted to.
            held.add(latent, video)
            name = loader.index[clip].path
            if len(shown) < _SHOWN and name not in shown:
                shown[name] = video, enlarge_preview(preview, latent)
    if is_main():
        preview.save(workdir / FILE)
        explained = {
            name: f"{100 * share:.1f} %" for name, share in held.explained(preview).items()
        }
        for name, share in explained.items():
            logging.info("preview of %s frames: %s of the variance explained", name, share)
        if shown:
            _draw(workdir / PICTURE, spec, shown, explained)
        logging.info("wrote %s and %s", workdir / FILE, workdir / PICTURE)
    return 0


def enlarge_preview(preview: Preview, latent: np.ndarray) -> np.ndarray:
    """A latent's preview in the size of its video."""
    return enlarge(preview(latent), preview.spec.h, preview.spec.w)


def _draw(
    path: Path,
    spec: LatentSpec,
    shown: Mapping[str, tuple[np.ndarray, np.ndarray]],
    explained: Mapping[str, str],
) -> None:
    """Clips over their previews, and what a preview is."""
    shares = " and ".join(f"{share} in {name} frames" for name, share in explained.items())
    title = (
        f"Linear preview of {spec.name}: one pixel a latent position of {spec.h}x{spec.w} pixels; "
        f"explains {shares} of the variance"
    )
    rows = [row for pair in shown.values() for row in pair]
    labels = [label for name in shown for label in (name, "preview")]
    path.write_bytes(contact_sheet(rows, labels, title=title))
