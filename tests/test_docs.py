"""The pages tell the truth where a program can check it: links, paths, commands, lengths."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from docs import make_configs, make_modes
from tests.test_structure import ROOMS
from vidlatent import config as configs
from vidlatent.config import split_overrides
from vidlatent.data.text.rules import RULES
from vidlatent.evaluate.protocols.definitions import PROTOCOLS
from vidlatent.evaluate.protocols.generation import GENERATION_PROTOCOLS
from vidlatent.metrics import METRICS
from vidlatent.train.loss_terms import LossTerms

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], key=lambda p: str(p.relative_to(ROOT))
)
# The change log names what is gone, too.
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
FOLDERS = (
    r"(?:vidlatent|configs|tests|docs|benchmarks|experiments|launch|notebooks|\.ci)"  # of the root
)
PATH = re.compile(rf"`({FOLDERS}/[\w./-]*)`")
NAME = re.compile(r"`(vidlatent(?:\.\w+)+)(?:\(.*?\))?`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"python -m ((?:vidlatent|experiments|benchmarks)[\w.]*)([^`\n]*)")


def page_id(page):
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {text.replace(" ", "-") for text in words}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        if "://" in target:
            assert target.startswith("https://"), target
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name} links to {target}"
        assert ROOT in (there, *there.parents), f"{page.name} links outside: {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PRESENT, ids=page_id)
def test_files_that_are_named_exist(page):
    for name in PATH.findall(page.read_text()):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PRESENT, ids=page_id)
def test_names_of_the_package_exist(page):
    for name in NAME.findall(page.read_text()):
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            break
        for part in parts[length:]:
            assert hasattr(found, part), f"{page.name} names {name}"
            found = getattr(found, part)


def commands(page: Path):
    """Commands of a page: ``(module, words)``; lines that end in a backslash are joined."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    for module, rest in COMMAND.findall(text):
        yield module, shlex.split(rest.split(" #")[0].split(" | ")[0])


@pytest.mark.parametrize("page", PRESENT, ids=page_id)
def test_commands_name_what_there_is(page):
    for module, words in commands(page):
        assert importlib.util.find_spec(module), f"{page.name} runs {module}"
        if module == "vidlatent.main":
            check_job(page, words)


def check_job(page: Path, words: list[str]) -> None:
    """Config, mode and keys of a command exist; values with '...' are left to the reader."""
    rest, overrides = split_overrides(["main", *words])
    flags = dict(word.lstrip("-").partition("=")[::2] for word in rest[1:])
    known = (ROOT / "vidlatent" / "main.py").read_text()
    for name in flags:
        assert f'"{name}"' in known or name == "help", f"{page.name}: flag --{name}"
    if "mode" in flags:
        assert f'"{flags["mode"]}"' in known, f"{page.name}: --mode={flags['mode']}"
    overrides = {key: value for key, value in overrides.items() if "..." not in value}
    own = f"# {flags.get('config')}\n" in page.read_text()  # a file that the page itself gives
    if "config" in flags and "..." not in flags["config"] and not own:
        configs.load(flags["config"], overrides)
    elif overrides:
        for base in ("fsae", "fsvideo_dit"):  # of a workdir: a tokenizer's or a generator's keys
            try:
                configs.load(base, overrides)
                return
            except configs.VidlatentError as error:
                reason = error
        raise AssertionError(f"{page.name}: {words}: {reason}")


def check_scores(config, keys, videos):
    """Samples that are scored were drawn, at this size, and networks of scores are named."""
    if "eval.samples" in keys:
        assert keys["eval.samples"] in videos
    if "eval.protocol" in keys:
        of = GENERATION_PROTOCOLS if configs.is_generator(config) else PROTOCOLS
        scores = {metric.name for metric in of.get(keys["eval.protocol"]).metrics}
    else:
        scores = set(ast.literal_eval(keys["eval.metrics"]))
        assert ast.literal_eval(keys["data.buckets"])[0][:3] == config.sample.size
    for name in scores & set(METRICS.names()):
        assert f"networks.{METRICS.get(name).network}" in keys, keys


def test_chains_follow_on_each_other():
    """What a command of the page reads, one before it wrote: runs of the right stage, and sets."""
    runs, sets, used, videos = {}, {}, set(), set()
    for module, words in commands(ROOT / "docs" / "chains.md"):
        if module != "vidlatent.main":
            continue
        rest, keys = split_overrides(["main", *words])
        flags = dict(word.lstrip("-").partition("=")[::2] for word in rest[1:])
        mode = flags.get("mode", "train")
        if mode in ("sample", "eval"):
            config = runs[flags["workdir"]]
            used.add(flags["workdir"])
            if mode == "sample":
                assert configs.is_generator(config)
                videos.add(flags["output"])
            else:
                check_scores(config, keys, videos)
            continue
        config = configs.load(flags["config"], keys)
        needed = set(LossTerms(config.loss.to_dict()).networks) if config.loss else set()
        if mode == "train":
            before = config.train.init_from
            if config.train.init_recipes:
                assert runs[before].recipe in config.train.init_recipes, words
            else:
                assert bool(before) == bool(config.train.init_kind), words
            used.add(before)
            runs[f"runs/{config.name}-{config.preset}"] = config
        if configs.is_generator(config) and mode == "train":
            tokenizer, encoded = sets[config.data.path]
            assert config.tokenizer.path == tokenizer
            assert encoded == (config.data.buckets, config.data.fps, config.tokenizer.chunks)
            assert config.generator.latent_channels == runs[tokenizer].model.latent_channels
        elif mode == "encode":
            assert flags["workdir"] in runs, words
            used.add(flags["workdir"])
            encoded = config.data.buckets, config.data.fps, config.tokenizer.chunks
            sets[flags["output"]] = flags["workdir"], encoded
            needed |= {config.encode.image, config.encode.content} - {""}
            if config.encode.text:
                needed.add(RULES[config.encode.text].network)
        assert all(config.networks[name] for name in needed), words
    generators = {config.name for config in runs.values() if configs.is_generator(config)}
    assert generators == {"fsvideo_dit", "reducio_dit", "latte", "promag_dit"}
    assert set(runs) - used == {"runs/fsae-paper-lite"}  # only decodes


def texts_of_the_package() -> str:
    """All texts in the code, with ``...`` where values are filled in."""
    texts = []
    for path in (ROOT / "vidlatent").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "..." for p in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_messages_are_those_of_the_code():
    """What troubleshooting quotes in its left column is what users see."""
    said = texts_of_the_package()
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    for row in re.findall(r"^\| (.*?) \|", page, re.MULTILINE):
        for message in re.findall(r"`([^`]+)`", row):
            if message.startswith("python "):
                continue
            pieces = [piece.strip() for piece in message.split("...")]
            assert all(piece in said for piece in pieces), f"nobody says {message!r}"


def test_rooms_are_those_of_the_package():
    """The table of rooms has their order, which ``tests/test_structure.py`` holds."""
    page = (ROOT / "docs" / "architecture.md").read_text().split("## Rooms")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    named = re.findall(r"`(\w+)(?:\.py|/)`", " ".join(cells))
    assert named == ROOMS


def test_ways_are_short():
    """At most five files from a key to its use, which has its name; at most four for a change."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    keys, changes = page.split("## From a config key")[1].split("## Ten changes")
    rows = re.findall(r"^\| `[a-z]+\.(\w+)` \| (.*) \|$", keys, re.MULTILINE)
    assert len(rows) == 6
    for leaf, cell in rows:
        files = PATH.findall(re.sub(r"\(.*?\)", "", cell))
        assert 0 < len(files) <= 5, leaf
        assert re.search(rf"\b{leaf}\b", (ROOT / files[-1]).read_text()), leaf
    rows = re.findall(r"^\| (.*?) \| (.*`.*) \|$", changes, re.MULTILINE)
    assert len(rows) == 10
    for change, cell in rows:
        assert 0 < len(PATH.findall(cell)) <= 4, change


def test_config_keys_are_up_to_date():
    page = make_configs.make_page()
    assert page == make_configs.PAGE.read_text(), "run python -m docs.make_configs"
    assert "|  |" not in page, "a key has no comment beside its default"


def test_modes_and_flags_are_up_to_date():
    page = make_modes.make_page()
    assert page == make_modes.PAGE.read_text(), "run python -m docs.make_modes"
    assert "|  |" not in page, "a flag has no help"


def test_pages_are_linked():
    """Every page under docs/ can be reached from the README."""
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        for target in LINK.findall(page.read_text()):
            if "://" not in target and target.partition("#")[0]:
                todo.append((page.parent / target.partition("#")[0]).resolve())
    assert not {page for page in PAGES if page not in seen}
