"""Writes docs/modes.md, all modes and flags, from the programs' own help.

    python -m docs.make_modes

Modes, flags and examples are those of ``vidlatent.main``; the arguments of the other programs are
read from their parsers.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from vidlatent import main

PAGE = Path(__file__).with_name("modes.md")
HEAD = """# Modes and flags

Made by `python -m docs.make_modes` from what `--help` prints; change the texts in
`vidlatent/main.py` and in the programs below.

`python -m vidlatent.main` does everything that needs a config; `--mode` says what. After
`pip install`, `vidlatent` is the same command. `--help` prints this page's first part,
`--mode=plan --help` one mode of it, `--help-config` the [config keys](configs.md). A mistake in
flags, config or files ends with status 2 and one sentence on standard error; 75 means "start me
again" ([reliability](reliability.md)).
"""
# Module → where its arguments are parsed.
PROGRAMS = {
    "vidlatent.app": ("vidlatent.app.run", "_parse"),
    "vidlatent.weights": ("vidlatent.weights.listing", "main"),
    "vidlatent.convert.networks": ("vidlatent.convert.networks", "main"),
    "vidlatent.selftest": ("vidlatent.selftest.run", "main"),
    "vidlatent.evaluate.vbench_prompts": ("vidlatent.evaluate.vbench_prompts", "main"),
    "vidlatent.evaluate.vbench": ("vidlatent.evaluate.vbench", "main"),
    "launch.sweep": ("launch.sweep", "_parse"),
    "launch.gke": ("launch.gke", "_parse"),
}
ABOUT = {
    "vidlatent.app": "Serves [a page](tutorials.md#a-page-to-try-runs-on) to try runs on.",
    "vidlatent.weights": "Lists [released weights](weights.md), or says what a file holds.",
    "vidlatent.convert.networks": "Turns published weights of a "
    "[frozen network](recipes.md#pretrained-networks) into one file.",
    "vidlatent.selftest": "Theory against what this machine computes.",
    "vidlatent.evaluate.vbench_prompts": "Turns VBench's prompts into files for `--prompts`.",
    "vidlatent.evaluate.vbench": "Turns VBench's results into its totals.",
    "launch.sweep": "Trains several runs, whose keys differ: `--config.optim.lr=1e-4,3e-4`.",
    "launch.gke": "Writes a JobSet for [GKE](clusters.md).",
}


def make_page() -> str:
    """The text of docs/modes.md."""
    parts = [HEAD, "## Flags of every mode", common_flags(), "## Modes", table_of_modes()]
    for name in main.MODES:
        parts += [f"### {name}", mode_section(name)]
    parts += [
        "## Other programs",
        "Each has `--help`. Config keys go with `launch.sweep` and `launch.gke`, too.",
    ]
    for module in PROGRAMS:
        parts += [f"### {module}", ABOUT[module], program_section(module)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def common_flags() -> str:
    rows = [(f"`--{name}`", about) for name, about in main._COMMON.items()]
    return table(("flag", "meaning"), rows)


def table_of_modes() -> str:
    rows = [(f"[{name}](#{name})", mode.about) for name, mode in main.MODES.items()]
    return table(("mode", "what it does"), rows)


def mode_section(name: str) -> str:
    """What a mode does, its flags and its examples."""
    mode = main.MODES[name]
    needed = {need.partition("=")[0] for need in mode.needs}
    rows = []
    for flag in mode.flags:
        default = main._DEFAULTS.get(flag, "")
        shown = "needed" if flag in needed else f"`{default}`" if default != "" else "empty"
        rows.append((f"`--{flag}`", shown, main._ABOUT[flag]))
    flags = table(("flag", "default", "meaning"), rows) if rows else "Only the flags of every mode."
    lines = [main.wrap_example(example, 4) for example in mode.examples]
    about = f"{mode.about[0].upper()}{mode.about[1:]}."
    return f"{about}\n\n{flags}\n\n```sh\n" + "\n".join(lines) + "\n```"


class _Found(Exception):
    """Carries a parser out of the function that made it."""


def find_parser(module: str) -> argparse.ArgumentParser:
    """The parser of a program."""
    place, name = PROGRAMS[module]
    function = getattr(importlib.import_module(place), name)

    def catch(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _Found(parser)

    real = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = catch  # type: ignore[method-assign, assignment]
    try:
        function([])
    except _Found as found:
        return found.args[0]
    finally:
        argparse.ArgumentParser.parse_args = real  # type: ignore[method-assign]
    raise AssertionError(f"{module} makes no parser")


def program_section(module: str) -> str:
    """The arguments of a program."""
    rows = []
    for action in find_parser(module)._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = action.option_strings[0] if action.option_strings else action.dest.upper()
        if action.required:
            default = "needed"
        elif action.nargs == 0:
            default = "off"
        else:
            default = f"`{action.default}`" if action.default not in ("", None) else "empty"
        choices = f"; one of {', '.join(action.choices)}" if action.choices else ""
        rows.append((f"`{name}`", default, (action.help or "") + choices))
    return table(("argument", "default", "meaning"), rows)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(make_page())
