"""The chains of docs/chains.md, command by command, from captioned clips to scored videos.

Every command of the page runs with its own config, recipe, start and conditions. Only sizes are
other ones: tiny models, two steps a stage, small random networks in place of published ones.
"""

import json
import re
import shlex
from pathlib import Path

import av
import pytest

from tests.helpers.chains import shrink_generator, shrink_tokenizer, write_start, write_videos
from vidlatent import config as configs
from vidlatent.config import split_overrides
from vidlatent.data.latent_set import read_header
from vidlatent.encode.run import encode_set
from vidlatent.encode.statistics import measure_latents
from vidlatent.evaluate.run import evaluate_workdir
from vidlatent.sample.run import generate_videos
from vidlatent.train.loop import train

ROOT = Path(__file__).resolve().parents[1]
CHAINS = ("FSVideo", "Reducio", "Latte on IV-VAE", "ProMAG")


def commands(chapter):
    """``(flags, keys)`` of the commands of one chapter, in order."""
    page = (ROOT / "docs" / "chains.md").read_text().split(f"\n## {chapter}\n")[1]
    text = re.sub(r"\\\n\s*", " ", page.split("\n## ")[0])
    for line in re.findall(r"^python -m vidlatent\.main (.*)$", text, re.MULTILINE):
        rest, keys = split_overrides(["main", *shlex.split(line)])
        flags = dict(word.lstrip("-").partition("=")[::2] for word in rest[1:])
        # Networks are small random ones here.
        keys = {k: v for k, v in keys.items() if "$W/" not in v or k == "train.init_from"}
        yield flags, keys


class Chain:
    """Runs commands in the current folder; ``videos`` stands for the folders of the page."""

    def __init__(self, videos):
        self.videos, self.runs, self.sets, self.score = str(videos), {}, {}, {}

    def train(self, flags, keys):
        config = configs.load(flags["config"], keys)
        workdir = f"runs/{config.name}-{config.preset}"
        if configs.is_generator(config):
            tokenizer = self.runs[self.sets[config.data.path]]
            shrink_generator(config, tokenizer)
        else:
            shrink_tokenizer(config)
            config.data.path = self.videos
        if config.train.init_from.startswith("$W/"):
            config.train.init_from = str(write_start(config, Path()))
        assert train(config, Path(workdir)) == 0
        self.runs[workdir] = config

    def for_generator(self, flags, keys):
        config = configs.load(flags["config"], keys)
        shrink_generator(config, self.runs[flags["workdir"]])
        config.data.path = self.videos
        return config

    def latents(self, flags, keys):
        assert measure_latents(self.for_generator(flags, keys), Path(flags["workdir"]), -1) == 0

    def encode(self, flags, keys):
        config = self.for_generator(flags, keys)
        assert encode_set(config, Path(flags["workdir"]), -1, flags["output"]) == 0
        header = read_header(flags["output"])
        # Presets without pictures set those aside.
        assert header.windows >= 12
        assert {(name[-4:], reason) for name, reason, _ in header.bad} <= {(".png", "too_short")}
        # Clips are wide and tall; each shape is stored at its own size.
        assert {(row["height"], row["width"]) for row in header.sizes} == {(24, 32), (32, 24)}
        self.sets[flags["output"]] = flags["workdir"]

    def sample(self, flags, keys):
        keys["sample.count"] = "1"
        workdir, prompts = Path(flags["workdir"]), flags.get("prompts", "")
        config = configs.read(workdir, keys)
        picture = str(next(Path(self.videos).rglob("*.png")))
        lines = [{"prompt": f"a bird, {number}", "image": picture} for number in range(2)]
        if prompts.endswith(".txt"):
            Path(prompts).write_text("\n".join(line["prompt"] for line in lines))
        elif prompts:
            Path(prompts).write_text("\n".join(map(json.dumps, lines)))
        assert generate_videos(config, workdir, -1, flags["output"], "", prompts, "") == 0
        made = json.loads((Path(flags["output"]) / "samples.json").read_text())
        for video in made["videos"]:
            with av.open(str(Path(flags["output"]) / video["file"])) as file:
                frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
            assert (len(frames), *frames[0].shape[:2]) == tuple(config.sample.size)

    def eval(self, flags, keys):
        workdir = Path(flags["workdir"])
        size = configs.read(workdir).sample.size
        # No protocol takes so small clips.
        keys |= {"eval.protocol": "", "eval.metrics": "('fvd_i3d',)", "data.path": self.videos}
        keys |= {"data.buckets": str(((*size, 1),)), "eval.random_networks": "true"}
        config = configs.read(workdir, keys)
        assert evaluate_workdir(config, workdir, -1, flags["output"]) == 0
        found = json.loads((Path(flags["output"]) / "folders.json").read_text())
        self.score = found["measured"]["scores"]


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAINS)
def test_a_chain_runs_to_its_samples(chapter, tmp_path, monkeypatch, one_device):
    monkeypatch.chdir(tmp_path)
    chain = Chain(write_videos(tmp_path / "videos"))
    for flags, keys in commands(chapter):
        getattr(chain, flags.get("mode", "train"))(flags, keys)
    (distance,) = (value for name, value in chain.score.items() if name.startswith("fvd"))
    assert distance > 0
