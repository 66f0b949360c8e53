"""Writes docs/configs.md, the list of all config keys, from the files of their defaults.

    python -m docs.make_configs

Keys and default values come from the configs themselves. A key's meaning is the comment behind its
default or above it, in ``vidlatent/config/defaults/<section>.py``.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import vidlatent.config.defaults as defaults
from vidlatent.config import get_defaults, get_generator_defaults
from vidlatent.config.defaults.optim import get_lora, get_optim
from vidlatent.models.pretrained import NETWORKS

FOLDER = Path(defaults.__file__).parent
PAGE = Path(__file__).with_name("configs.md")
HEAD = """# Config keys

Made by `python -m docs.make_configs` from `vidlatent/config/defaults/`; change the comments there.

Any key is set on the command line: `--config.optim.lr=5e-5`. Values are written as in Python, and
quoted for the shell where they have blanks or brackets: `--config.data.buckets='((9,64,64,4),)'`.
These are the values that every config starts from; the files in `configs/` and their presets change
what differs.
"""


def comments_of(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by line number: those behind code, and those with a line of their own."""
    behind, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            own_line = not token.line[: token.start[1]].strip()
            (alone if own_line else behind)[token.start[0]] = token.string.lstrip("# ").strip()
    return behind, alone


def meaning_of(node: ast.stmt, behind: dict[int, str], alone: dict[int, str]) -> str:
    """The comment lines directly above an assignment, and those behind it."""
    above, line = [], node.lineno - 1
    while line in alone:
        above.insert(0, alone[line])
        line -= 1
    lines = range(node.lineno, node.end_lineno + 1)
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


def table(rows: list[tuple[str, str, str]]) -> str:
    lines = ["| key | default | meaning |", "|---|---|---|"]
    lines += [f"| `{key}` | {value} | {markdown(meaning)} |" for key, value, meaning in rows]
    return "\n".join(lines)


def shown(key: str, tokenizer: ConfigDict, generator: ConfigDict) -> str:
    """A default value; both where generators have another one."""
    values = [dict(leaves(config)).get(key, ...) for config in (tokenizer, generator)]
    texts = ["(group)" if isinstance(v, ConfigDict) else f"`{v!r}`" for v in values if v is not ...]
    if len(texts) == 2 and texts[0] != texts[1]:
        return f"{texts[0]}, of generators {texts[1]}"
    return texts[0]


def markdown(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split())).replace("|", "\\|")


def paragraphs(text: str) -> str:
    """A docstring as Markdown paragraphs."""
    return "\n\n".join(
        re.sub(r"``(.+?)``", r"`\1`", " ".join(part.split())) for part in text.split("\n\n")
    )


def make_page() -> str:
    """The text of docs/configs.md."""
    tokenizer, generator = get_defaults("", ""), get_generator_defaults("", "")
    both = ConfigDict({**generator, **tokenizer})
    root = dict(root_meanings())
    names = [key for key in root if key in both]
    rows = [(key, shown(key, tokenizer, generator), root[key]) for key in names]
    parts = [HEAD, "## The run\n\n" + table(rows)]
    parts += [
        section_page(name, group, root, tokenizer, generator)
        for name, group in sorted(both.items())
        if isinstance(group, ConfigDict)
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


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


def section_page(
    name: str,
    group: ConfigDict,
    root: dict[str, str],
    tokenizer: ConfigDict,
    generator: ConfigDict,
) -> str:
    file = FOLDER / f"{name}.py"
    if not file.is_file():  # two sections that systems fill share a file
        file = FOLDER / "model.py"
        about, known = function_doc(file, f"get_{name}"), {}
    else:
        about, known = section_docs(file)
    values = {key: value for key, value in leaves(group) if not key.startswith("optim.")}
    order = [*known, *values]
    rows = []
    for key in sorted(values, key=order.index):
        meaning = root.get(f"{name}.{key}") or known.get(key) or ""
        meaning = meaning or (source_of(key) if name == "networks" else "")
        rows.append((f"{name}.{key}", shown(f"{name}.{key}", tokenizer, generator), meaning))
    text = f"## {name}\n\n{paragraphs(about)}"
    if name not in tokenizer:
        text += "\n\nIn configs of generators only."
    if "optim" in group:
        usual = dict(leaves(ConfigDict({**get_optim(), "lora": get_lora()})))
        changed = [f"`{k}={v!r}`" for k, v in leaves(group.optim) if v != usual[k]]
        text += f"\n\n`{name}.optim` has the keys of [optim](#optim)"
        text += f", with {' and '.join(changed)}." if changed else "."
    return f"{text}\n\n{table(rows)}" if rows else text


def source_of(network: str) -> str:
    """Which published files a pretrained network is made from, and where they are."""
    about = NETWORKS.get(network)
    if not about.source:
        return "a small stand-in with random weights"
    return f"{', '.join(f'`{file}`' for file in about.files)} of {about.source}"


def function_doc(path: Path, name: str) -> str:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node) or ""
    return ""


if __name__ == "__main__":
    PAGE.write_text(make_page())
