"""File names of generated videos, and the settings written next to them."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from vidlatent.config import config_hash

__all__ = ["collect_settings", "name_video"]

# File systems allow 255 bytes; the rest is for the number and the ending.
_LONGEST, _VBENCH_LONGEST = 200, 240  # bytes of a file name, its ending excluded


def name_video(prompt: str, number: int, taken: set[str], *, vbench: bool = False) -> str:
    """A file name for video ``number`` of a prompt; adds it to ``taken``.

    With ``vbench`` it is ``<prompt>-<number>.mp4`` with the prompt unchanged, as VBench's scripts
    expect (slashes become blanks); otherwise lower case with letters, digits and underscores.
    """
    text = prompt.replace("/", " ").replace("\0", " ")
    if not vbench:
        kept = "".join(c if c.isalnum() else "_" for c in text.casefold())
        text = "_".join(filter(None, kept.split("_"))) or "sample"
    longest = _VBENCH_LONGEST if vbench else _LONGEST
    # Cut in bytes, as file systems count; half a character at the end is dropped.
    text = text.encode()[:longest].decode(errors="ignore")
    name, again = f"{text}-{number}.mp4", 0
    while name in taken:  # two prompts may become the same name
        again += 1
        name = f"{text}-{number}.{again}.mp4"
    taken.add(name)
    return name


def collect_settings(config: ConfigDict, **more: Any) -> dict[str, Any]:
    """Everything that determines what was generated, ready for JSON."""
    return {
        "system": config.name,
        "preset": config.preset,
        "config": config_hash(config),
        "generator": config.generator.to_dict(),
        "schedule": config.diffusion.schedule.to_dict(),
        "sampler": config.sampler.to_dict(),
        "sample": config.sample.to_dict(),
        **more,
        "all_keys": config.to_dict(),
    }
