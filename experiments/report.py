"""Table and plot of the runs that have finished, and a list of those that have not."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.design import Arm, Difference, Experiment, Ratio, Run, Setting
from experiments.runner import Results, choose
from vidlatent.report.tables import markdown_table

__all__ = ["summarise", "write_table_and_plot"]


def mean_and_sd(values: Sequence[float]) -> dict[str, Any]:
    """``mean``, sample standard deviation ``sd`` (0 if ``n`` is 1), ``n`` and ``values``."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "sd": sd, "n": len(values), "values": list(values)}


def summarise(experiment: Experiment, results: Results) -> dict[str, Any]:
    """Everything that the table and the plot show, as written to ``table.json``."""
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
            _difference(experiment, by_arm[d.first], by_arm[d.second], d)
            for d in experiment.differences
            if d.first in by_arm and d.second in by_arm
        ],
        "ratios": [
            _ratio(experiment, by_arm, asked)
            for asked in experiment.ratios
            if {asked.first.split()[0], asked.second.split()[0]} <= set(by_arm)
        ],
        "missing": missing,
    }
    if experiment.gate and experiment.gate[0] in by_arm:
        arm, least = experiment.gate
        metric = experiment.gate_metric or experiment.metric
        mean = by_arm[arm]["metrics"][metric]["mean"]
        summary["gate"] = {"arm": arm, "least": least, "mean": mean, "passed": mean >= least}
        summary["gate"]["metric"] = metric
    return summary


def _row(experiment, arm: Arm, setting: Setting, done: Mapping[int, Any], best: bool) -> dict:
    first = next(iter(done.values()))
    metrics: dict[str, Any] = {}
    for name, value in first["metrics"].items():
        values = [result["metrics"][name] for result in done.values()]
        if isinstance(value, (int, float)):
            if all(map(math.isfinite, values)):
                metrics[name] = mean_and_sd(values)
        else:
            metrics[name] = [mean_and_sd(each) for each in zip(*values, strict=True)]
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
        "seconds": mean_and_sd([result["seconds"] for result in done.values()]),
        **{name: first[name] for name in ("parameters", "clips_seen", "machine")},
    }


def _difference(experiment, first: Mapping, second: Mapping, asked: Difference) -> dict[str, Any]:
    metric = asked.metric
    pairs = (
        dict(zip(row["seeds"], row["metrics"][metric]["values"], strict=True))
        for row in (first, second)
    )
    a, b = pairs
    seeds = [seed for seed in a if seed in b]
    result = {"first": first["label"], "second": second["label"], "metric": metric, "seeds": seeds}
    if not seeds:
        return {**result, "n": 0}
    result |= mean_and_sd([a[s] - b[s] for s in seeds])
    if asked.least is not None:
        result["verdict"] = _judge(experiment, result["values"], asked.least)
    return result


def _ratio(experiment: Experiment, by_arm: Mapping[str, Any], asked: Ratio) -> dict[str, Any]:
    found = []
    for side in (asked.first, asked.second):
        arm, metric = side.split()
        row = by_arm[arm]
        found.append(dict(zip(row["seeds"], row["metrics"][metric]["values"], strict=True)))
    first, second = found
    seeds = [seed for seed in first if seed in second]
    result = {**dataclasses.asdict(asked), "seeds": seeds}
    if not seeds:
        return {**result, "n": 0}
    result["means"] = [statistics.fmean(side[seed] for seed in seeds) for side in found]
    result |= mean_and_sd([first[seed] / second[seed] for seed in seeds])
    if asked.below is not None:
        over = [value - asked.below for value in result["values"]]
        judged = _judge(experiment, over, asked.least)
        result["verdict"] = {"lower": "holds", "higher": "fails"}.get(judged, judged)
    return result


def _judge(experiment: Experiment, values: Sequence[float], least: float) -> str:
    """``'higher'`` or ``'lower'`` if seeds agree and the mean exceeds ``least``, else ``'tie'``."""
    if not len(values) == len(experiment.seeds) > 1:
        return "too few seeds"
    agree = all(value > 0 for value in values) or all(value < 0 for value in values)
    mean = statistics.fmean(values)
    if not agree or abs(mean) <= least:
        return "tie"
    return "higher" if mean > 0 else "lower"


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


def _cell(value: Mapping[str, Any] | None, decimals: int = 2) -> str:
    if value is None:
        return "–"
    mean = f"{value['mean']:.{decimals}f}"
    return f"{mean} ± {value['sd']:.{decimals}f}" if value["n"] > 1 and decimals else mean


def to_markdown(experiment: Experiment, summary: Mapping[str, Any]) -> str:
    """The summary as Markdown: chosen settings, differences, all settings, missing runs."""
    columns = experiment.columns
    lines = [f"# {experiment.title}", ""]
    if "gate" in summary:
        g = summary["gate"]
        verdict = "passed" if g["passed"] else "FAILED: the rest says nothing"
        lines += [
            f"Gate, {g['metric']} of {g['arm']} at least {g['least']:g}: "
            f"{g['mean']:.2f}, {verdict}.",
            "",
        ]
    lines += ["Mean ± standard deviation over the seeds, at the best setting of those tried.", ""]
    rows = [
        {
            "arm": row["label"],
            "setting": _setting_text(row["setting"]),
            "steps": f"{row['steps']:,}",
            "steps in all": f"{row['steps_in_all']:,}",
            "parameters trained": f"{row['parameters']['trained']:,}",
            "seeds": len(row["seeds"]),
            **{
                title: _cell(row["metrics"].get(name), _decimals(experiment, name))
                for name, title in columns.items()
            },
        }
        for row in summary["arms"]
        if row["chosen"]
    ]
    lines += [markdown_table(rows), ""]
    lines += _ratios(summary)
    lines += _differences(experiment, summary)
    lines += _tried(experiment, summary)
    lines += [f"* {note}" for note in experiment.notes]
    if summary["missing"]:
        lines += ["", f"Missing ({len(summary['missing'])}):", ""]
        lines += [f"* {name}" for name in summary["missing"]]
    return "\n".join(lines).rstrip() + "\n"


def _decimals(experiment: Experiment, metric: str) -> int:
    return experiment.decimals[metric] if metric in experiment.decimals else 2


def _differences(experiment: Experiment, summary: Mapping[str, Any]) -> list[str]:
    found = [d for d in summary["differences"] if d["n"]]
    if not found:
        return []
    judged = any("verdict" in d for d in found)
    failed = "gate" in summary and not summary["gate"]["passed"]
    rows = []
    for d in found:
        decimals = _decimals(experiment, d["metric"])
        row = {
            "difference": f"{d['first']} − {d['second']}",
            "metric": experiment.columns.get(d["metric"], d["metric"]),
            "mean ± sd": _cell(d, decimals),
            "each seed": ", ".join(f"{value:+.{decimals}f}" for value in d["values"]),
        }
        if judged:
            row["verdict"] = "gate failed" if failed else d.get("verdict", "")
        rows.append(row)
    return ["Differences, seed by seed:", "", markdown_table(rows), ""]


def _ratios(summary: Mapping[str, Any]) -> list[str]:
    rows = [
        {
            "ratio": found["text"],
            "means": " / ".join(f"{mean:.4g}" for mean in found["means"]),
            "mean ± sd": _cell(found, 3),
            "each seed": ", ".join(f"{value:.3f}" for value in found["values"]),
            "to be below": "" if found["below"] is None else f"{found['below']:.3f}",
            "verdict": found.get("verdict", ""),
        }
        for found in summary["ratios"]
        if found["n"]
    ]
    return ["Ratios, seed by seed:", "", markdown_table(rows), ""] if rows else []


def _tried(experiment: Experiment, summary: Mapping[str, Any]) -> list[str]:
    """Every setting of the arms that chose among several."""
    swept = {arm.name for arm in experiment.arms if not arm.leader and len(arm.settings) > 1}
    metric, more = experiment.metric, experiment.tried_metrics
    decimals = _decimals(experiment, metric)
    rows = [
        {
            "arm": row["label"],
            "setting": _setting_text(row["setting"]),
            "steps": f"{row['steps']:,}",
            experiment.columns.get(metric, metric): _cell(row["metrics"][metric], decimals),
            "each seed": ", ".join(f"{v:.{decimals}f}" for v in row["metrics"][metric]["values"]),
            **{
                experiment.columns.get(name, name): _cell(
                    row["metrics"].get(name), _decimals(experiment, name)
                )
                for name in more
            },
            "chosen": "yes" if row["chosen"] else "",
        }
        for row in summary["arms"]
        if row["arm"] in swept
    ]
    return ["Every setting tried:", "", markdown_table(rows), ""] if rows else []


def _plot(experiment: Experiment, summary: Mapping[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(11, 4.5), layout="constrained")
    (experiment.draw or _make_bars(experiment))(figure, summary)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _make_bars(experiment: Experiment):
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
