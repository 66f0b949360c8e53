"""The page of ``benchmarks.discriminator_demos``: table, curves and contact sheets."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidlatent.report.curves import run_curves, write_curves
from vidlatent.report.tables import markdown_table

__all__ = ["write_page"]

_SCORES = ("psnr", "ssim", "lpips")
_NOT_DRAWN = ("val/psnr_constant_colour", "train/data_wait_share")  # neither terms nor scores


def write_page(results: Sequence[Mapping[str, Any]], page: Path) -> None:
    """Write the page (Markdown) and, beside it, the pictures that it shows.

    Args:
      results: of ``discriminator_demos.carry_out``, whose workdirs are still there.
      page: the file; pictures are called after it.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    parts = [_head(results), markdown_table([_row(result) for result in results])]
    names = {name for result in results for name in _lpips(result)}
    if any("random" in name for name in names):
        parts.append(
            "LPIPS is that of a small network with random weights (`"
            + "`, `".join(sorted(names))
            + "`), which stands in for the published one: its figures mean nothing."
        )
    parts += [_section(result, page) for result in results]
    page.write_text("\n\n".join(parts) + "\n")


def _head(results: Sequence[Mapping[str, Any]]) -> str:
    toy = any(result["plan"]["size"] == "small" for result in results)
    lines = [
        "# The demos' recipes with a discriminator",
        "",
        "`python -m benchmarks.discriminator_demos`:",
    ]
    lines.append(
        "training on the sample clips (two for training, one held out), one run with seed 0 each. "
        "Minutes count from the first log entry with the discriminator, validation included; "
        "frames a second are the median of training with the discriminator, without validation. "
        "Scores are those of the EMA weights on windows of the held-out clip. Recipes differ in "
        "size and start, so do not compare rows with each other."
    )
    if toy:
        lines.append("\n**Run at toy size: these figures and pictures show nothing.**")
    machines = {", ".join(f"{k} {v}" for k, v in r["machine"].items()) for r in results}
    lines += ["", *(f"{machine[0].upper()}{machine[1:]}." for machine in sorted(machines))]
    return "\n".join(lines)


def _lpips(result: Mapping[str, Any]) -> list[str]:
    return [name for name in result["after"] if name.startswith("lpips")]


def _row(result: Mapping[str, Any]) -> dict[str, Any]:
    plan, recipe = result["plan"], result["recipe"]
    row = {
        "recipe": recipe["config"],
        "clips": f"{recipe['frames']}x{plan['side']}x{plan['side']}, {plan['batch']} a step",
        "minutes": f"{result['minutes']:.1f}",
        "steps": f"{result['steps']:,}",
        "frames/s": f"{result['frames_per_second']:.1f}",
    }
    for kind in _SCORES:
        for when in ("before", "after"):
            found = result[when]
            names = sorted((n for n in found if n.split("_")[0] == kind), key=len)
            value = found[names[0]] if names else None  # plain PSNR before its variants
            digits = 2 if kind == "psnr" else 3
            row[f"{kind.upper()} {when}"] = None if value is None else f"{value:.{digits}f}"
    return row


def _section(result: Mapping[str, Any], page: Path) -> str:
    recipe, before = result["recipe"], result["before"]
    name = recipe["name"]
    at = f"validation at step {before['step']}" if before else "nothing: none was scored"
    if recipe["former"]:
        told = (
            f"Starts from `{recipe['former']}`, trained first at the same size; before: its last "
            f"{at}."
        )
    else:
        told = (
            f"From random weights; the discriminator joins at step {result['start_step']}; "
            f"before: the "
            f"{at}."
        )
    curves = f"{page.stem}_{name}_curves.png"
    drawn = run_curves(Path(result["workdir"]))
    drawn = {name: curve for name, curve in drawn.items() if name not in _NOT_DRAWN}
    write_curves(drawn, page.parent / curves, title=recipe["config"])
    parts = [f"## {recipe['config']}", told, f"![every term, by step]({curves})"]
    whens = ("before", "after") if len(result["sheets"]) > 1 else ("after",)
    for sheet, when in zip(result["sheets"], whens, strict=True):
        copied = f"{page.stem}_{name}_{when}.png"
        shutil.copyfile(sheet, page.parent / copied)
        parts.append(
            f"Windows of the held-out clip, reconstruction under original, {when}:\n\n"
            f"![{when}]({copied})"
        )
    commands = "\n".join(f"python -m vidlatent.main {flags}" for flags in result["commands"])
    parts.append(f"```sh\n{commands}\n```")
    return "\n\n".join(parts)
