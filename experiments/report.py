"""Table and plot of whatever has finished, and what is missing."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.design import Arm, Experiment, Run, Setting
from experiments.runner import Results, choose

__all__ = ["summarise", "write_table_and_plot"]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (0 of a single value, with n to say so)."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "sd": sd, "n": len(values), "values": list(values)}


def summarise(experiment: Experiment, results: Results) -> dict[str, Any]:
    """Everything the table and the plot show."""
    chosen = choose(experiment, results)
    rows, missing = [], []
    for arm in experiment.arms:
        settings = experiment.tried(arm, chosen)
        if not settings:
            decider = experiment.decider(arm).name
            missing.append(f"{arm.name}: takes the setting of {decider}, which is not complete")
        for setting in settings:
            found = {s: results.read(Run(arm, setting, s)) for s in experiment.seeds}
            missing += [str(Run(arm, setting, s)) for s, result in found.items() if result is None]
            done = {s: result for s, result in found.items() if result is not None}
            if done:
                best = chosen.get(experiment.decider(arm).name) == setting
                rows.append(_row(experiment, arm, setting, done, best))
    by_arm = {row["arm"]: row for row in rows if row["chosen"]}
    summary = {
        "title": experiment.title,
        "arms": rows,
        "differences": [
            _difference(by_arm[d.first], by_arm[d.second], d.metric)
            for d in experiment.differences
            if d.first in by_arm and d.second in by_arm
        ],
        "missing": missing,
    }
    if experiment.gate and experiment.gate[0] in by_arm:
        arm, least = experiment.gate
        mean = by_arm[arm]["metrics"][experiment.metric]["mean"]
        summary["gate"] = {"arm": arm, "least": least, "mean": mean, "passed": mean >= least}
    return summary


def _row(experiment, arm: Arm, setting: Setting, done: Mapping[int, Any], best: bool) -> dict:
    first = next(iter(done.values()))
    metrics: dict[str, Any] = {}
    for name, value in first["metrics"].items():
        values = [result["metrics"][name] for result in done.values()]
        if isinstance(value, (int, float)):
            if all(map(math.isfinite, values)):
                metrics[name] = spread(values)
        else:
            metrics[name] = [spread(each) for each in zip(*values, strict=True)]
    return {
        "arm": arm.name,
        "label": arm.label or arm.name,
        "setting": dict(setting),
        "chosen": best,
        "complete": len(done) == len(experiment.seeds),
        "seeds": list(done),
        "steps": arm.steps,
        "steps_in_all": arm.steps + arm.more_steps,
        "metrics": metrics,
        "seconds": spread([result["seconds"] for result in done.values()]),
        **{name: first[name] for name in ("parameters", "clips_seen", "machine")},
    }


def _difference(first: Mapping, second: Mapping, metric: str) -> dict[str, Any]:
    pairs = (
        dict(zip(row["seeds"], row["metrics"][metric]["values"], strict=True))
        for row in (first, second)
    )
    a, b = pairs
    seeds = [seed for seed in a if seed in b]
    result = {"first": first["label"], "second": second["label"], "metric": metric, "seeds": seeds}
    return {**result, **spread([a[s] - b[s] for s in seeds])} if seeds else {**result, "n": 0}


def write_table_and_plot(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Write ``table.md``, ``table.json`` and ``plot.png``; returns the summary."""
    summary = summarise(experiment, Results(folder / "results"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.json").write_text(json.dumps(summary, indent=1) + "\n")
    (folder / "table.md").write_text(to_markdown(experiment, summary))
    if summary["arms"]:
        _plot(experiment, summary, folder / "plot.png")
    return summary


def _setting_text(setting: Setting) -> str:
    return ", ".join(f"{key} {text}" for key, text in sorted(setting.items())) or "–"


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "–"
    return f"{value['mean']:.2f} ± {value['sd']:.2f}" if value["n"] > 1 else f"{value['mean']:.2f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def to_markdown(experiment: Experiment, summary: Mapping[str, Any]) -> str:
    """The summary as text: the chosen settings, differences, everything tried, what is missing."""
    columns = experiment.columns
    lines = [f"# {experiment.title}", ""]
    if "gate" in summary:
        g = summary["gate"]
        verdict = "passed" if g["passed"] else "FAILED: the rest says nothing"
        lines += [
            f"Gate, {experiment.metric} of {g['arm']} at least {g['least']:g}: "
            f"{g['mean']:.2f}, {verdict}.",
            "",
        ]
    lines += ["Mean ± standard deviation over the seeds, at the best setting of those tried.", ""]
    rows = [
        [
            row["label"],
            _setting_text(row["setting"]),
            f"{row['steps']:,}",
            f"{row['steps_in_all']:,}",
            f"{row['parameters']['trained']:,}",
            str(len(row["seeds"])),
            *(_cell(row["metrics"].get(name)) for name in columns),
        ]
        for row in summary["arms"]
        if row["chosen"]
    ]
    heads = ["arm", "setting", "steps", "steps in all", "parameters trained", "seeds"]
    lines += _table([*heads, *columns.values()], rows)
    if summary["differences"]:
        lines += ["Differences, seed by seed:", ""]
        rows = [
            [
                f"{d['first']} − {d['second']}",
                columns.get(d["metric"], d["metric"]),
                _cell(d),
                ", ".join(f"{value:+.2f}" for value in d["values"]),
            ]
            for d in summary["differences"]
            if d["n"]
        ]
        lines += _table(["difference", "metric", "mean ± sd", "each seed"], rows)
    lines += _tried(experiment, summary)
    lines += [f"* {note}" for note in experiment.notes]
    if summary["missing"]:
        lines += ["", f"Missing ({len(summary['missing'])}):", ""]
        lines += [f"* {name}" for name in summary["missing"]]
    return "\n".join(lines).rstrip() + "\n"


def _tried(experiment: Experiment, summary: Mapping[str, Any]) -> list[str]:
    """Every setting of the arms that tried several."""
    swept = {arm.name for arm in experiment.arms if not arm.leader and len(arm.settings) > 1}
    rows = [
        [
            row["label"],
            _setting_text(row["setting"]),
            f"{row['steps']:,}",
            _cell(row["metrics"][experiment.metric]),
            ", ".join(f"{v:.2f}" for v in row["metrics"][experiment.metric]["values"]),
            "yes" if row["chosen"] else "",
        ]
        for row in summary["arms"]
        if row["arm"] in swept
    ]
    if not rows:
        return []
    name = experiment.columns.get(experiment.metric, experiment.metric)
    heads = ["arm", "setting", "steps", name, "each seed", "chosen"]
    return ["Every setting tried:", "", *_table(heads, rows)]


def _plot(experiment: Experiment, summary: Mapping[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(11, 4.5), layout="constrained")
    (experiment.draw or _bars(experiment))(figure, summary)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _bars(experiment: Experiment):
    def draw(figure: Any, summary: Mapping[str, Any]) -> None:
        axes = figure.subplots()
        rows = [row for row in summary["arms"] if row["chosen"]] or summary["arms"]
        values = [row["metrics"][experiment.metric] for row in rows]
        axes.errorbar(
            range(len(rows)),
            [value["mean"] for value in values],
            [value["sd"] for value in values],
            fmt="o",
            capsize=4,
        )
        axes.set_xticks(range(len(rows)), [row["label"] for row in rows], rotation=30, ha="right")
        axes.set_ylabel(experiment.columns.get(experiment.metric, experiment.metric))
        axes.set_title(experiment.title)
        axes.grid(axis="y", alpha=0.3)

    return draw
