"""What ``benchmarks.long_video`` found, as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidlatent.report.tables import markdown_table

__all__ = ["draw_memory", "format_table"]

_MEMORY = {
    "first third MiB": "first_third_mib",
    "last third MiB": "last_third_mib",
    "grown MiB": "grown_mib",
    "most MiB": "most_mib",
}


def list_runs(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], float | None]]:
    """``(name, Watched as JSON, frames or None)`` of each process that was watched."""
    settings, listed = found["settings"], []
    if found["encode"]:
        frames = found["video"]["frames"]
        for number, run in enumerate(found["encode"]["runs"], 1):
            state = "killed" if run["killed"] else "to the end"
            share = run["new_shards"] / settings["shards"]
            listed.append((f"encode {number}, {state}", run, share * frames))
    if found["reconstruct"]:
        run = found["reconstruct"]
        state = "broken off" if run["killed"] else "to the end"
        listed.append((f"reconstruct, {state}", run, run["frames"]))
    return listed


def format_table(found: Mapping[str, Any]) -> str:
    """Markdown: the video, the processes, and the result of the check."""
    settings, video, codec = found["settings"], found["video"], found["codec"]
    lines = []
    if video:
        lines.append(
            f"{settings['minutes']:g} minutes of {video['size']} at {video['fps']} frames/s: "
            f"{video['frames']:,} frames, {video['bytes'] / 2**20:.0f} MiB of H.264."
        )
    if codec:
        lines.append(f"Codec: weights {codec['weights']}.")
    shown = []
    for name, run, frames in list_runs(found):
        row = {"run": name, "wall s": f"{run['seconds']:.0f}"}
        row["processor s"] = f"{run['processor_s']:.0f}"
        row["frames"] = f"{frames:,.0f}" if frames else None
        cost = 1000 * run["processor_s"] / frames if frames else 0
        row["processor ms a frame"] = f"{cost:.1f}" if frames else None
        grown = run["growth"]
        row |= {title: f"{grown[key]:.0f}" if grown else None for title, key in _MEMORY.items()}
        shown.append(row)
    lines += ["", markdown_table(shown)]
    check = found["check"]
    if check:
        size = found["encode"]["bytes"] / 2**20
        lines += [
            "",
            f"Every one of {check['windows']:,} windows is there exactly once "
            f"({check['different_latents']:,} different latents {check['latent_shape']}, "
            f"{size:.0f} MiB); {check['unchanged_shards']} shards that were finished at the kill "
            f"are unchanged, and {len(check['equal_shards'])} that was being written then equals "
            "that of an undisturbed process byte by byte.",
        ]
    scores = found["reconstruct"] and found["reconstruct"]["scores"]
    if scores:
        kept = scores["values_per_kept_value"]
        lines += ["", f"Reconstruction: {scores['frames']} frames, {kept:.1f} values to 1."]
    return "\n".join(lines) + "\n"


def draw_memory(found: Mapping[str, Any], file: Path) -> None:
    """Plot resident memory over time: encoding above, reconstruction below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    listed = list_runs(found)
    groups = [[row for row in listed if row[0].startswith(what)] for what in ("encode", "recon")]
    groups = [group for group in groups if group]
    figure, axes = plt.subplots(len(groups), 1, figsize=(8, 2.9 * len(groups)), squeeze=False)
    for axis, group in zip(axes[:, 0], groups, strict=True):
        offset, top = 0.0, 0.0
        for number, (name, run, _) in enumerate(group):
            times = [(offset + sample[0]) / 60 for sample in run["samples"]]
            sizes = [sample[1] / 2**30 for sample in run["samples"]]
            top = max(top, *sizes)
            axis.plot(times, sizes, linewidth=1, color=f"C{number}", label=name)
            if run["growth"]:
                begin, end = offset + run["steady_s"], offset + run["samples"][-1][0]
                third = (end - begin) / 3
                for left, key in ((begin, "first_third_mib"), (end - third, "last_third_mib")):
                    level = run["growth"][key] / 1024
                    span = [left / 60, (left + third) / 60]
                    axis.plot(span, [level, level], color="black", linewidth=1.5)
            offset += run["seconds"]
            if run["killed"]:
                axis.axvline(offset / 60, color="grey", linestyle=":", linewidth=1)
                axis.annotate(" SIGKILL", (offset / 60, 0), color="grey", va="bottom")
        axis.set_ylim(0, 1.15 * top)
        axis.set_ylabel("resident GiB")
        axis.set_xlabel("minutes")
        axis.legend(loc="lower right", frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    video = found["video"]
    axes[0, 0].set_title(
        f"{video['frames']:,} frames of {video['size']}; black: medians of the first and last "
        "third of the time at work",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
