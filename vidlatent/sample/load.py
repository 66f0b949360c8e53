"""``load_generator``: a trained generator for Python, by the folder of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.paths import as_path
from vidlatent.registry import did_you_mean
from vidlatent.sample.cascade import CASCADE_FILE, Cascade, read_cascade
from vidlatent.sample.generator import Generator, check_makes_videos
from vidlatent.weights.files import is_workdir

__all__ = ["load_generator"]


def load_generator(
    path: str | Path,
    *,
    step: int | None = None,
    tokenizer: str | Path | None = None,
    residency: str = "auto",
    **keys: Any,
) -> Generator | Cascade:
    """A generator ready to make videos: ``generator(prompt, image=..., seed=...)``.

    Networks are loaded when they are needed, so this returns at once.

    Args:
      path: folder of its run, such as ``runs/fsvideo_dit-demo``; or a ``cascade.json`` that names
        the runs ``base``, ``upsampler`` and ``refiner``, or its folder.
      step: checkpoint; None for the newest sound one.
      tokenizer: folder of the tokenizer's run, if it has moved since training.
      residency: networks in memory, see ``config.sample.residency``; ``'auto'`` keeps all that
        were loaded if they fit at once.
      keys: keys of ``config.sampler`` to change, such as ``steps=20``.

    Raises:
      VidlatentError: there is no run of a generator, or it has no such key.
    """
    if as_path(path).suffix == ".json" or (as_path(path) / CASCADE_FILE).is_file():
        return _load_cascade(path, step, residency, keys)
    if not (as_path(path) / "config.json").is_file():
        raise VidlatentError(
            f"path={str(path)!r} holds no run: give the folder of a trained generator, such as "
            "'runs/fsvideo_dit-demo'."
        )
    stored = configs.read(as_path(path))
    if not configs.is_generator(stored):
        raise VidlatentError(
            f"path={str(path)!r} is the run of a tokenizer: read it by vidlatent.load_codec."
        )
    check_makes_videos(stored, as_path(path))
    place = stored.tokenizer.path if tokenizer is None else str(tokenizer)
    if place and not is_workdir(place):
        raise VidlatentError(
            f"tokenizer={place!r} is no run with checkpoints: give the folder of the tokenizer "
            "that made this generator's latents."
        )
    known = [name for name, value in stored.sampler.items() if not hasattr(value, "items")]
    for key in keys:
        if key not in known:
            hint = did_you_mean(key, ["step", "tokenizer", "residency", *known])
            raise VidlatentError(f"load_generator takes no {key!r}: {hint}")
    overrides = {f"sampler.{key}": str(value) for key, value in keys.items()}
    overrides |= {"sample.residency": residency, "tokenizer.path": place}
    try:
        return Generator.from_workdir(path, overrides, -1 if step is None else step)
    except VidlatentError as error:
        # The caller gave arguments, not keys of a config.
        text = str(error).replace("config.sampler.", "").replace("config.sample.", "")
        raise VidlatentError(text) from error


def _load_cascade(
    path: str | Path, step: int | None, residency: str, keys: dict[str, Any]
) -> Cascade:
    """The cascade that a file names; ``step`` and ``keys`` are those of its base model."""
    parts = read_cascade(path)
    base = load_generator(
        parts["base"],
        step=step,
        tokenizer=parts.get("tokenizer"),
        residency=residency,
        **keys,
    )
    assert isinstance(base, Generator)
    return Cascade.of(base, parts["refiner"], upsampler=parts["upsampler"])
