"""Files of a release agree: version, licence, bounds, what a wheel and an sdist hold."""

import re
from pathlib import Path

import yaml
from packaging.requirements import Requirement

import vidlatent

ROOT = Path(__file__).parent.parent


def setup_arguments(monkeypatch):
    """What ``setup.py`` hands to setuptools."""
    import setuptools

    found = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: found.update(arguments))
    monkeypatch.chdir(ROOT)
    path = ROOT / "setup.py"
    exec(compile(path.read_text(), str(path), "exec"), {"__file__": str(path)})
    return found


def test_the_citation_is_that_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == vidlatent.__version__
    assert citation["license"] == "Apache-2.0"
    papers = {entry["url"] for entry in citation["references"]}
    readme = (ROOT / "README.md").read_text()
    assert len(papers) == 4 and all(f"]({paper})" in readme for paper in papers)


def test_a_package_page_links_to_the_repository(monkeypatch):
    arguments = setup_arguments(monkeypatch)
    targets = re.findall(r"\]\(([^)\s]+)\)", arguments["long_description"])
    assert f"{arguments['url']}/blob/main/docs/data.md" in targets
    assert all(target.startswith(("https://", "#")) for target in targets)


def test_every_requirement_has_bounds_and_every_extra_a_purpose(monkeypatch):
    arguments = setup_arguments(monkeypatch)
    assert arguments["version"] == vidlatent.__version__
    lines = [*arguments["install_requires"], *sum(arguments["extras_require"].values(), [])]
    for line in lines:
        operators = {bound.operator for bound in Requirement(line).specifier}
        assert ">=" in operators, f"{line} has no lower bound"
    readme = (ROOT / "README.md").read_text()
    for extra in arguments["extras_require"]:
        assert f"`{extra}`" in readme or f"[{extra}]" in readme, f"the README has no {extra}"


def test_the_readme_speaks_of_the_pythons_that_are_claimed(monkeypatch):
    claimed = setup_arguments(monkeypatch)["classifiers"]
    claimed = {c.rpartition(" ")[2] for c in claimed if re.search(r":: 3\.\d+$", c)}
    spoken = set(re.findall(r"3\.\d\d", (ROOT / "README.md").read_text()))
    assert claimed and claimed <= spoken
