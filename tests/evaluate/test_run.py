"""Scores and protocols: from the command line on a model trained for a moment, and each protocol
from a checkpoint to its files on a tiny model of its system."""

import dataclasses
import functools
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers.generator_runs import tokenizer_run
from tests.helpers.tiny_tokenizers import MODELS, QUICK, tokenizer
from vidlatent.codec.codec import Codec
from vidlatent.codec.preview import Preview
from vidlatent.config import get_defaults
from vidlatent.convert.run import _write_workdir
from vidlatent.errors import VidlatentError
from vidlatent.evaluate import tokenizer as evaluate
from vidlatent.evaluate.protocols import run as protocols_run
from vidlatent.evaluate.protocols.definitions import BUILT_IN, PROTOCOLS
from vidlatent.evaluate.run import evaluate_workdir
from vidlatent.media.write import write_video
from vidlatent.parallel.mesh import make_mesh

ROOT = Path(__file__).parent.parent.parent


def run(*args, fails=False, processes=1):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    several = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "vidlatent.main", *map(str, args)],
            cwd=ROOT,
            env=os.environ | (several | {"JAX_PROCESS_ID": str(i)} if processes > 1 else {}),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    try:
        texts = [process.communicate(timeout=600)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [p.returncode != 0 for p in started] == [fails] * processes, texts[0][-3000:]
    return texts[0]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    run(
        f"--config={ROOT / 'tests' / 'tiny.py'}",
        f"--workdir={path}",
        "--config.train.steps=2",
        "--config.data.synthetic.frames=20",
        "--config.data.synthetic.clips=6",
        "--config.data.buckets=((5, 16, 16, 2),)",
        "--config.eval.training_metrics=('lpips_tiny',)",
    )
    return path


@pytest.mark.slow
def test_scores_while_training_and_after(workdir, tmp_path):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    found = [line["val/lpips_tiny_random0"] for line in lines if "val/lpips_tiny_random0" in line]
    assert found and found[-1] > 0
    metrics = "('lpips_tiny', 'fvd_videomae_tiny')"
    run(
        "--mode=eval",
        f"--workdir={workdir}",
        f"--output={tmp_path}",
        f"--config.eval.metrics={metrics}",
    )
    about = json.loads((tmp_path / "scores.json").read_text())
    assert about["scores"]["lpips_tiny_random0"] == pytest.approx(found[-1], rel=1e-4)
    name = "fvd_videomae_tiny_random0_biased_bilinear32"
    assert about["scores"][name] > 0 and about["definitions"][name]["n"] == about["scores"]["clips"]
    assert name in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_a_preview_is_fitted_and_kept_beside_the_run(workdir):
    said = run("--mode=preview", f"--workdir={workdir}")
    assert "preview of first frames" in said and "preview of group frames" in said
    preview = Preview.load(workdir / "preview.npz", Codec.from_workdir(workdir).spec)
    channels = preview.spec.channels
    assert preview.first.shape == (channels + 1, 3)
    assert preview.group.shape == (channels + 1, 3 * preview.spec.t)
    assert preview(np.zeros((2, 4, 4, channels), np.float32)).shape == (5, 4, 4, 3)
    assert Image.open(workdir / "preview.png").width > 100


@pytest.mark.slow
def test_a_protocol_on_one_process_and_on_two(workdir, tmp_path):
    arguments = ("--mode=eval", f"--workdir={workdir}", "--config.eval.protocol=fsae_table2")
    said = run(*arguments, fails=True)
    assert "error: config.networks.lpips_vgg is empty" in said and "Traceback" not in said
    arguments += (
        "--config.eval.random_networks=true",
        "--config.eval.leave_out=('fvd_i3d',)",
        "--config.eval.metrics=('fvd_videomae_tiny',)",
        "--config.eval.clips=3",
    )
    run(*arguments)
    folder = workdir / "eval" / "step_2_fsae_table2"
    about = json.loads((folder / "fsae_table2.json").read_text())
    assert about["measured"]["clips"] == 3 and about["measured"]["clips_found"] == 6
    assert {row["size"] for row in about["by_clip"]} == {"17x256x256"}
    for file in ("fsae_table2.md", "report.html", "best.png", "worst.mp4"):
        assert (folder / file).stat().st_size > 0

    run(*arguments, f"--output={tmp_path}", processes=2)
    other = json.loads((tmp_path / "fsae_table2.json").read_text())
    assert other["measured"]["scores"] == pytest.approx(about["measured"]["scores"], rel=1e-5)
    assert other["measured"]["definitions"] == about["measured"]["definitions"]
    assert {row["clip"] for row in other["by_clip"]} == {row["clip"] for row in about["by_clip"]}


@pytest.mark.slow
def test_folders_are_compared_on_one_process_and_on_two(tmp_path):
    for name, count, frames in (("real", 5, 16), ("made", 4, 17)):
        for number in range(count):
            rng = np.random.default_rng([number, frames])
            video = np.kron(rng.integers(0, 256, (frames, 4, 4, 3)), np.ones((1, 8, 8, 1), int))
            write_video(tmp_path / name / f"{number}.mp4", video.astype(np.uint8), 24.0)
    arguments = (
        "--mode=eval",
        f"--config={ROOT / 'tests' / 'tiny.py'}",
        "--config.eval.random_networks=true",
        "--config.eval.metrics=('fvd_videomae', 'is_c3d')",
        "--config.data.buckets=((16, 32, 32, 2),)",
        f"--config.data.path={tmp_path / 'real'}",
        f"--config.eval.samples={tmp_path / 'made'}",
    )
    found = []
    for processes in (1, 2):
        out = tmp_path / f"out{processes}"
        said = run(*arguments, f"--output={out}", processes=processes)
        assert "fvd_videomae_tiny_random0" in said
        found.append(json.loads((out / "folders.json").read_text())["measured"])
    one, two = found
    assert two["scores"] == pytest.approx(one["scores"], rel=1e-5) and len(one["scores"]) == 3
    about = two["definitions"]["is_c3d_tiny_random0_splits1"]
    assert (about["n"], about["n_of_originals"]) == (4, 5)
    assert all(two[side] == one[side] for side in ("real", "generated"))


OWN_PROTOCOL = """
from vidlatent.evaluate.protocols.base import ProtocolMetric
from vidlatent.evaluate.protocols.generation import GENERATION_PROTOCOLS, GenerationProtocol

GENERATION_PROTOCOLS.register(
    "mine",
    GenerationProtocol(
        name="mine", source="nowhere", frames=2, drop=1, clips=4, size=(8, 8),
        metrics=(ProtocolMetric("fvd_videomae_tiny", "FVD"),), paper_table=(), headline="", open=(),
    ),
)
"""


@pytest.mark.slow
def test_drawn_samples_score_alike_on_one_process_and_on_two(tmp_path, monkeypatch):
    """By a protocol of the user's own."""
    (tmp_path / "my_protocol.py").write_text(OWN_PROTOCOL)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    for number in range(4):
        video = np.random.default_rng(number).integers(0, 256, (2, 8, 8, 3), np.uint8)
        write_video(tmp_path / "clips" / f"{number}.mp4", video, 8.0)
    run(
        f"--config={ROOT / 'tests' / 'generator_tiny.py'}:videos",
        f"--workdir={tmp_path / 'run'}",
        f"--config.tokenizer.path={tokenizer_run(tmp_path / 'tokenizer')}",
        "--config.train.steps=2",
    )
    scores = []
    for processes in (1, 2):
        run(
            "--mode=eval",
            "--import=my_protocol",
            f"--workdir={tmp_path / 'run'}",
            f"--output={tmp_path / str(processes)}",
            "--config.eval.protocol=mine",
            "--config.data.source=folder",
            f"--config.data.path={tmp_path / 'clips'}",
            processes=processes,
        )
        found = json.loads((tmp_path / str(processes) / "mine.json").read_text())["measured"]
        assert found["generated"]["clips"] == 4
        scores.append(found["scores"])
    assert scores[1] == pytest.approx(scores[0], rel=1e-2) and len(scores[0]) == 1


# Protocol -> system and its fields, frames of the clips, which are as long as it wants them.
SYSTEMS = {
    "fsae_table2": ("fsae", {}, 18),
    "ivvae_s1": ("ivvae", {}, 17),
    "ivvae_256": ("ivvae", {}, 17),
    "fsvideo_table1": ("fsae", {}, 18),
    "reducio_main": ("reducio", {"frames": 16}, 24),
    "reducio_512": ("reducio", {"frames": 16}, 24),
    "promag_table1": ("promag", {}, 36),  # two chunks
    "promag_table1_360": ("promag", {}, 20),
}
FAST = "reducio_main"


class Quick:
    """jax, whose programs compile in a fraction of the time."""

    jit = staticmethod(functools.partial(jax.jit, compiler_options=QUICK))

    def __getattr__(self, name):
        return getattr(jax, name)


@pytest.fixture
def cheaply(monkeypatch):
    """``cheaply(name)``: the protocol at a quarter of its height and width, on one device."""
    one = jax.devices()[:1]
    monkeypatch.setattr(protocols_run, "make_mesh", lambda sizes: make_mesh(sizes, one))
    monkeypatch.setattr(evaluate, "jax", Quick())

    def smaller(name):
        whole = PROTOCOLS.get(name)
        protocol = dataclasses.replace(whole, size=tuple(side // 4 for side in whole.size))
        monkeypatch.setattr(PROTOCOLS, "get", lambda asked: {name: protocol}[asked])
        return protocol

    return smaller


def a_run(folder, name, fields):
    """The config of a workdir with random parameters of a tiny tokenizer."""
    config = get_defaults(name, "tiny")
    config.model.update({**MODELS[name], **fields})
    _, params = tokenizer(name, **fields)
    _write_workdir(config, folder / "run", params)
    return config


def small_clips(folder, frames):
    folder.mkdir()
    for number, shades in enumerate((256, 128, 32)):  # no two scored alike
        rng = np.random.default_rng(number)
        video = np.kron(rng.integers(0, shades, (frames, 4, 7, 3)), np.ones((1, 12, 12, 1), int))
        write_video(folder / f"clip{number}.mp4", video.astype(np.uint8), 24.0)
    return str(folder)


def check_markdown(text, protocol, spec):
    """Measured and printed figures in columns of their own, all of the paper's lines."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    headings = {metric.heading for metric in protocol.metrics}
    beside = [
        f"paper: {row.model}, {row.data}"
        for row in protocol.find_comparable(spec)
        if headings & set(row.values)
    ]
    assert lines[0][1:] == ["measured here (3 clips)", "paper's column", *beside]
    first = next(number for number, line in enumerate(lines) if line[0] == "paper: model")
    assert len(lines) == first + 2 + len(protocol.paper_table)
    for row, line in zip(protocol.paper_table, lines[first + 2 :], strict=True):
        assert line[:2] == [row.model, row.data]
        assert [cell for cell in line[2:] if cell][: len(row.values)] == [
            f"{value:g}" for value in row.values.values()
        ]
    assert f"The paper's own table, as printed: {protocol.source}" in text
    assert all(f"- {line}" in text for line in protocol.open)
    assert ("mean nothing" in text) == ("_random0" in text)


@pytest.mark.parametrize(
    "name", [n if n == FAST else pytest.param(n, marks=pytest.mark.slow) for n in SYSTEMS]
)
def test_each_protocol_from_a_checkpoint_to_its_files(name, cheaply, tmp_path):
    protocol, (system, fields, frames) = cheaply(name), SYSTEMS[name]
    config = a_run(tmp_path, system, fields)
    config.data.path = small_clips(tmp_path / "clips", frames)
    config.eval.protocol = name
    wanted = {m.name for m in protocol.metrics if m.name not in BUILT_IN}
    if any(name.startswith(("lpips", "fvd")) for name in wanted):
        words = r"^config.networks.(lpips|i3d)_\w+ is empty: [^\n]*$"
        with pytest.raises(VidlatentError, match=words):
            evaluate_workdir(config, tmp_path / "run", -1, "")
    config.eval.random_networks = True
    assert evaluate_workdir(config, tmp_path / "run", -1, "") == 0

    folder = tmp_path / "run" / "eval" / f"step_0_{name}"
    about = json.loads((folder / f"{name}.json").read_text())
    measured = about["measured"]
    assert measured["clips"] == measured["clips_found"] == 3
    assert all(map(math.isfinite, measured["scores"].values()))
    assert about["left_out"] == {"scores": [], "clips": []}
    # Stand-ins make scores alike, of which one is kept.
    asked = {d["asked_as"] for d in measured["definitions"].values() if "asked_as" in d}
    assert asked <= wanted and {n[:6] for n in asked} == {n[:6] for n in wanted}
    longest = max(f for f in protocol.frames if f <= frames)
    size = "x".join(map(str, (longest, *protocol.size)))
    assert {row["size"] for row in about["by_clip"]} == {size}
    assert len(about["paper"]["rows"]) == len(protocol.paper_table)

    model, _ = tokenizer(system, **fields)
    check_markdown((folder / f"{name}.md").read_text(), protocol, model.latent_spec)
    page = (folder / "report.html").read_text()
    for word in ("best", "median", "worst"):
        assert f"{word.capitalize()} clip by PSNR" in page and "paper: " in page
    if protocol.gride:  # three clips have neighbours at two scales
        rows = about["intrinsic_dimension"]
        assert [row["n"] for row in rows] == [3] * len(rows) and rows[0]["points"][:7] == "videos "
        assert any(row["points"].startswith("first frames") for row in rows)
    for word in ("best", "median", "worst"):
        assert (folder / f"{word}.png").stat().st_size and (folder / f"{word}.mp4").stat().st_size
    assert page.count("data:image/png;base64,") == page.count("data:video/mp4;base64,") == 3


def test_every_protocol_is_carried_out_here_and_fits_its_system():
    # Those of interpolated frames need a folder of them (test_interpolated.py); those of other
    # tests are called tiny.
    apart = ("tiny_", "promag_table3_")
    assert set(SYSTEMS) == {name for name in PROTOCOLS.names() if not name.startswith(apart)}
    for name, (system, fields, _) in SYSTEMS.items():
        PROTOCOLS.get(name).check(tokenizer(system, **fields)[0].latent_spec)
