"""What each config key means: the comments beside its default, in ``config/defaults/``.

A key's meaning is the comment behind its default or above it. Both the page ``docs/configs.md`` and
``--help-config`` are made from here.
"""

from __future__ import annotations

import ast
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import vidlatent.config.defaults as defaults
from vidlatent.config.defaults.optim import get_lora, get_optim
from vidlatent.config.ranges import RULES
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = [
    "FOLDER",
    "describe_keys",
    "find_meanings",
    "function_doc",
    "leaves",
    "root_meanings",
    "section_docs",
]

FOLDER = Path(defaults.__file__).parent
_WIDTH = 96  # of a line of ``describe_keys``
# Of keys without a comment of their own: each network's, and those that a model brings.
_OTHERS = {
    "networks.": "weights file of this pretrained network; docs/configs.md says where it is from",
    "model.": "of this tokenizer; the comments in its config file say more",
    "generator.": "of this generator; the comments in its config file say more",
    "discriminator.model.": "of this discriminator; the comments in its config file say more",
    "diffusion.schedule.": "of this schedule; the comments in its config file say more",
    "conditions.": "of this condition, by its name",
    "loss.": "weight of this term, or its options; docs/extending.md",
}


def comments_of(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by line number: those behind code, and those with a line of their own."""
    behind: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            own_line = not token.line[: token.start[1]].strip()
            (alone if own_line else behind)[token.start[0]] = token.string.lstrip("# ").strip()
    return behind, alone


def meaning_of(node: ast.stmt, behind: dict[int, str], alone: dict[int, str]) -> str:
    """The comment lines directly above an assignment, and those behind it."""
    above: list[str] = []
    line = node.lineno - 1
    while line in alone:
        above.insert(0, alone[line])
        line -= 1
    lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
    inside = [text for n in lines if (text := behind.get(n) or alone.get(n))]
    return " ".join([*above, *inside])


def dotted(node: ast.expr) -> list[str]:
    """``['sampler', 'guidance', 'scales']`` for ``sampler.guidance.scales``; [] for others."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [*dotted(node.value), node.attr]
    return []


def meanings_in(function: ast.FunctionDef, comments: Any) -> Iterator[tuple[str, str]]:
    """Keys that a function sets, relative to what it returns, with their meanings."""
    names: dict[str, list[str]] = {}  # local name -> path of the group that it stands for
    for node in function.body:
        if not isinstance(node, ast.Assign):
            continue
        paths = [dotted(target) for target in node.targets]
        groups = [path for path in paths if len(path) > 1]
        inner = [*names.get(groups[0][0], []), *groups[0][1:]] if groups else []
        for path in paths:
            if len(path) == 1:
                names[path[0]] = inner
        if groups:
            yield ".".join(inner), meaning_of(node, *comments)


def section_docs(path: Path) -> tuple[str, dict[str, str]]:
    """A section's description, and its keys' meanings."""
    source = path.read_text()
    tree, comments = ast.parse(source), comments_of(source)
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    main = functions.pop(f"get_{path.stem}")
    found = dict(meanings_in(main, comments))
    texts = [ast.get_docstring(tree) or "", ast.get_docstring(main) or ""]
    for name, function in functions.items():  # a group with a function of its own
        group = name.removeprefix("get_")
        found.update((f"{group}.{k}", text) for k, text in meanings_in(function, comments))
        found[group] = ast.get_docstring(function) or ""
    texts[0] = re.sub(r"^``config\.\w+``: (\w)", lambda m: m[1].upper(), texts[0])
    return "\n\n".join(filter(None, texts)), found


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; an empty group is a value."""
    for key, value in config.items():
        if isinstance(value, ConfigDict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def root_meanings() -> Iterator[tuple[str, str]]:
    """Keys that the package's ``get_*defaults`` set themselves."""
    path = FOLDER / "__init__.py"
    tree, comments = ast.parse(path.read_text()), comments_of(path.read_text())
    for function in tree.body:
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and len(dotted(node.targets[0])) > 1:
                    key = ".".join(dotted(node.targets[0])[1:])
                    if meaning := meaning_of(node, *comments):
                        yield key, meaning


def function_doc(path: Path, name: str) -> str:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node) or ""
    return ""


def find_meanings() -> dict[str, str]:
    """Meanings of all keys of the defaults that have one, by dotted key."""
    found = dict(root_meanings())
    for file in sorted(FOLDER.glob("*.py")):
        if file.stem not in ("__init__", "model"):
            _, known = section_docs(file)
            found |= {f"{file.stem}.{k}": text for k, text in known.items() if text}
    usual = [k for k, _ in leaves(ConfigDict({**get_optim(), "lora": get_lora()}))]
    for group in ("discriminator.optim", "distill.optim"):  # have the keys of the model's
        found |= {f"{group}.{k}": t for k in usual if (t := found.get(f"optim.{k}"))}
    return found


def describe_keys(config: ConfigDict, wanted: str = "") -> str:
    """Keys of a config with their values, meanings, and what they may be, as text.

    Args:
      config: whose values are shown.
      wanted: a section or key, such as ``optim`` or ``data.buckets``, any part of a key, or else
        words of a meaning; empty for all.

    Raises:
      VidlatentError: no key is called so.
    """
    lines: list[str] = []
    meanings, values = find_meanings(), dict(leaves(config))
    chosen = {key: value for key, value in values.items() if wanted in key}
    chosen = chosen or {k: v for k, v in values.items() if wanted in meanings.get(k, "")}
    # A section's name is often part of other keys, too.
    own = {k: v for k, v in chosen.items() if k == wanted or k.startswith(f"{wanted}.")}
    for key, value in (own or chosen).items():
        if isinstance(value, ConfigDict):  # an empty group has no key that could be set
            continue
        lines.append(f"--config.{key}={value!r}")
        other = next((text for group, text in _OTHERS.items() if key.startswith(group)), "")
        text = " ".join(meanings.get(key, other).replace("``", "").split())
        rule = str(RULES[key]) if key in RULES else ""
        # Meanings often list the choices already.
        if rule and " | " not in text:
            text = f"{text} ({rule})" if text else rule
        indent = " " * 6
        lines += textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    if not lines:
        names = {part for key in values for part in (key, *key.split("."))}
        hint = did_you_mean(wanted, names)
        if not hint.startswith("did you mean"):
            hint = f"no key or meaning has it; sections are {', '.join(sorted(config))}."
        raise VidlatentError(f"--help-config={wanted}: {hint}")
    return "\n".join(lines)
