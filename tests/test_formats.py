"""docs/formats.md names the fields that the code writes."""

import dataclasses
import re
from pathlib import Path

import pytest

from vidlatent.checkpoint import meta
from vidlatent.codec.coded import Coded
from vidlatent.data.latent_set import Header, Shard, Window
from vidlatent.data.text.rules import RULES
from vidlatent.latents.contract import LatentSpace
from vidlatent.latents.distilled import Distilled
from vidlatent.latents.pairs import LOW
from vidlatent.latents.statistics import Statistics
from vidlatent.sample import cascade, requests
from vidlatent.sample.outputs import Sample
from vidlatent.spec import FrameRule, LatentSpec
from vidlatent.train import goodput

PAGE = Path(__file__).resolve().parents[1] / "docs" / "formats.md"


def fields(kind):
    return {field.name for field in dataclasses.fields(kind)}


def section(title):
    """A section of the page, up to the next one."""
    return PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("Workdir", {*goodput._PARTS, "share", "starts"} | fields(Distilled)),
        ("Checkpoints", meta._FIELDS | meta._OPTIONAL | {"iterator", "fingerprint", "workers"}),
        ("Latent specs", fields(LatentSpec) | fields(FrameRule)),
        ("latents.json", fields(LatentSpace) | fields(Statistics) | {"label_names", "fps"}),
        ("Latent sets", fields(Header) | fields(Shard) | fields(Window) | {LOW, "format"}),
        ("Coded videos (.npz)", fields(Coded)),
        (
            "Samples",
            {field for field in ("file", "prompt", "label", "seed", "number", "image")}
            | {"system", "preset", "config", "generator", "schedule", "sampler", "sample"}
            | {"step", "latents", "size", "latent_shape", "fps", "checkpoints", "nfe", "nfe_is"}
            | {"compute", "fp8_psnr", "memory", "seconds", "videos", "all_keys"},
        ),
        ("Lists that you write", {*requests._KEYS, *cascade._KEYS}),
    ],
)
def test_every_field_is_named(title, names):
    text = section(title)
    told = set(re.findall(r'[`"](\w+)[`"]', text))
    assert not names - told, f"docs/formats.md, {title}"


def test_rows_of_samples_are_those_of_the_page():
    request = requests.Request("a boat", 3)
    row = Sample(request, "a.mp4", None).describe()
    assert list(row) == re.findall(
        r"`(\w+)`", section("Samples").partition("`videos`, each with")[2]
    )


def test_captions_are_cleaned_and_cut_as_the_page_says():
    page = (PAGE.parent / "data.md").read_text()
    for name, rule in RULES.items():
        row = rf"\| `{name}` \| [\w. -]+\(`{rule.network}`\) \| {rule.length} \|"
        assert re.search(row, page), name
