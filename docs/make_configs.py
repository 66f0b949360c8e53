"""Writes docs/configs.md, the list of all config keys, from the files of their defaults.

    python -m docs.make_configs

Keys and default values come from the configs themselves, meanings from
``vidlatent.config.meanings``.
"""

from __future__ import annotations

import re
from pathlib import Path

from ml_collections import ConfigDict

from vidlatent.config import get_defaults, get_generator_defaults
from vidlatent.config.defaults.optim import get_lora, get_optim
from vidlatent.config.meanings import FOLDER, function_doc, leaves, root_meanings, section_docs
from vidlatent.models.pretrained import NETWORKS

PAGE = Path(__file__).with_name("configs.md")
HEAD = """# Config keys

Made by `python -m docs.make_configs` from `vidlatent/config/defaults/`; change the comments there.

Any key is set on the command line: `--config.optim.lr=5e-5`. Values are written as in Python, and
quoted for the shell where they have blanks or brackets: `--config.data.buckets='((9,64,64,4),)'`.
These are the values that every config starts from; the files in `configs/` and their presets change
what differs.
"""


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


if __name__ == "__main__":
    PAGE.write_text(make_page())
