"""Generated videos against real ones: which frames count, how many clips, closed-form scores."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers.tiny_tokenizers import QUICK
from vidlatent.config import get_defaults, get_generator_defaults
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.compare import draw
from vidlatent.evaluate.compare import run as compare_run
from vidlatent.evaluate.compare.run import compare_folders
from vidlatent.evaluate.compare.sides import compile_look
from vidlatent.evaluate.protocols.base import ProtocolMetric
from vidlatent.evaluate.protocols.generation import GENERATION_PROTOCOLS, GenerationProtocol
from vidlatent.evaluate.protocols.paper_tables import PaperRow
from vidlatent.evaluate.run import evaluate_workdir
from vidlatent.media.decode import read_window
from vidlatent.media.errors import Limits
from vidlatent.media.write import write_video
from vidlatent.metrics import (
    METRICS,
    MetricEntry,
    SetMetric,
    collect_networks,
    make_metrics,
)
from vidlatent.metrics.frechet import frechet_distance
from vidlatent.metrics.fvd import FrechetAccumulator
from vidlatent.models.frozen import load_frozen
from vidlatent.parallel.mesh import make_mesh
from vidlatent.sample.requests import make_requests

# Windows of 4 frames: of real clips every third, of generated ones without the first.
TINY = GenerationProtocol(
    name="tiny_generation",
    source="A paper, table 3",
    frames=4,
    real_stride=3,
    drop=1,
    clips=5,
    size=(16, 16),
    metrics=(ProtocolMetric("brightness", "FVD"),),
    paper_table=(
        PaperRow("Ours", "Nowhere", {"FVD": 31.25}, own=True),
        PaperRow("Theirs", "Nowhere", {"FVD": 61.5}),
    ),
    headline="Ours",
    open=("frames: the middle",),
)


def videos(seed, frames):
    """Frames ``[T, 16, 16, 3]`` of a grey that changes from frame to frame."""
    greys = np.random.default_rng(seed).integers(20, 230, (frames, 1, 1, 1))
    return np.broadcast_to(greys, (frames, 16, 16, 3)).astype(np.uint8)


def write_clips(folder, count, frames, seed=0):
    for number in range(count):
        write_video(folder / f"{number}.mp4", videos(seed + number, frames), 24.0)
    return folder


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The tiny protocol, and the mean of each frame as a clip's features."""
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    monkeypatch.setattr(GENERATION_PROTOCOLS, "_entries", dict(GENERATION_PROTOCOLS._entries))

    def make(request):
        def means(network, clips):
            return jnp.mean(clips.astype(jnp.float32), (2, 3, 4))

        return SetMetric(request, "brightness", means, FrechetAccumulator)

    METRICS.register("brightness", MetricEntry(make, "means of frames", network="videomae_tiny"))
    GENERATION_PROTOCOLS.register("tiny_generation", TINY)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    real, made = (tmp_path_factory.mktemp(name) for name in ("real", "made"))
    write_clips(real, 6, 12)
    write_clips(made, 5, 5, seed=50)
    Image.new("RGB", (8, 8)).save(made / "contact_sheet.png")
    return real, made


def config_of(real, made, **keys):
    config = get_defaults("stub", "demo")
    config.data.path, config.eval.samples = str(real), str(made)
    config.eval.protocol, config.eval.random_networks = "tiny_generation", True
    for key, value in keys.items():
        config.eval[key] = value
    return config


def compare(tmp_path, *folders, **keys):
    config = config_of(*folders, **keys)
    assert evaluate_workdir(config, tmp_path, -1, str(tmp_path / "out")) == 0
    return json.loads((tmp_path / "out" / f"{config.eval.protocol}.json").read_text())


def window(path, first, frames):
    video = read_window(str(path), first / 24, frames, 0.0, (16, 16), (0.5, 0.5), Limits(10**8, 9))
    return video.astype(np.float64)


def test_frames_are_those_that_the_protocol_names(folders, tmp_path):
    real, made = folders
    found = compare(tmp_path, real, made)
    # Five of six real clips, evenly spread; of 12 frames the middle 10, every third of them.
    seen = [window(real / f"{n}.mp4", 1, 10)[::3].mean((1, 2, 3)) for n in (0, 1, 2, 3, 4)]
    drawn = [window(made / f"{n}.mp4", 0, 5)[1:].mean((1, 2, 3)) for n in range(5)]
    expected = frechet_distance(np.stack(seen), np.stack(drawn))
    measured = found["measured"]
    assert measured["scores"] == {"brightness": pytest.approx(expected, rel=1e-4)}
    about = measured["definitions"]["brightness"]
    assert (about["n"], about["real_clips"], about["generated_clips"]) == (5, 5, 5)
    assert measured["real"]["clips_found"] == 6 and measured["generated"]["left_out"] == []
    # With the first frame the score is another.
    other = [window(made / f"{n}.mp4", 0, 5)[:4].mean((1, 2, 3)) for n in range(5)]
    assert abs(frechet_distance(np.stack(seen), np.stack(other)) / expected - 1) > 0.01

    out = tmp_path / "out"
    table = (out / "tiny_generation.md").read_text()
    assert "paper: Ours, Nowhere" in table and "| 31.25 |" in table and "paper: Theirs" not in table
    page = (out / "report.html").read_text()
    for words in ("real", "generated", "How each score is defined", "5 generated clips of"):
        assert words in page, words
    assert page.count("data:video/mp4") == 4 == len(list(out.glob("side_by_side_*.mp4")))
    assert Image.open(out / "contact_sheet.png").width > 200


def test_too_few_clips(folders, tmp_path, caplog):
    real, made = folders
    few = write_clips(tmp_path / "few", 3, 5)
    with pytest.raises(VidlatentError, match="few has 3 clips of 5 frames or more, tiny_gene.*5"):
        compare(tmp_path, real, few)
    with pytest.raises(VidlatentError, match="few has 3 clips of 10 frames or more") as error:
        compare(tmp_path, write_clips(tmp_path / "a" / "few", 3, 12), made)
    assert "\n" not in str(error.value) and "--config.eval.fewer_clips=true" in str(error.value)
    found = compare(tmp_path, real, few, fewer_clips=True)
    assert found["measured"]["generated"]["clips"] == 3 and "going on with 3" in caplog.text
    # Of fewer clips, no figure of the paper stands beside the score.
    assert "31.25" not in (tmp_path / "out" / "tiny_generation.md").read_text().split("## ")[0]
    with pytest.raises(VidlatentError, match="short"):  # 9 frames are no window of 10
        compare(tmp_path, write_clips(tmp_path / "short", 5, 9), made)


def test_a_folder_against_itself(tmp_path):
    """Without a protocol: by the keys of the config."""
    clips = write_clips(tmp_path / "clips", 4, 16)
    config = config_of(clips, clips, protocol="")
    config.data.buckets = ((16, 16, 16, 4),)
    asked = [metric.name for metric in compare_run._find_protocol(config).metrics]
    assert asked == ["fvd_i3d", "fvd_videomae", "is_c3d"]
    config.eval.metrics = ("fvd_videomae", "fvd_videomae_crop", "is_c3d")
    compiled = jax.jit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            jax, "jit", lambda f, **keys: compiled(f, **{"compiler_options": QUICK, **keys})
        )
        assert compare_folders(config, tmp_path, -1, str(tmp_path)) == 0
    found = json.loads((tmp_path / "folders.json").read_text())["measured"]["scores"]
    fvd = [value for name, value in found.items() if name.startswith("fvd_")]
    assert len(fvd) == 2 and fvd == pytest.approx([0, 0], abs=1e-6)
    score = found["is_c3d_tiny_random0_splits1"]
    assert score == found["is_c3d_tiny_random0_splits1_of_originals"] and 1 <= score <= 5


def test_networks_are_sharded_and_see_the_same():
    (metric,) = make_metrics(("fvd_videomae_tiny",), get_defaults("any", "any").networks.to_dict())
    clips = np.stack([videos(seed, 4) for seed in range(2)])
    batch = {"video": clips, "mask": np.ones(2, np.float32), "clip": np.arange(2, dtype=np.int32)}
    batch["start"] = np.zeros(2, np.float32)
    seen = []
    for fsdp in (1, 2):
        sizes = {"data": 1, "fsdp": fsdp, "context": 1, "tensor": 1}
        mesh = make_mesh(sizes, jax.devices()[:fsdp])
        placed = load_frozen(collect_networks([metric]), mesh)["videomae_tiny"]
        kernel = placed["blocks_0"]["mlp"]["fc1"]["kernel"]
        assert kernel.addressable_shards[0].data.size * fsdp == kernel.size
        with jax.set_mesh(mesh):
            seen.append(compile_look([metric], mesh)(batch)[metric.name])
    np.testing.assert_allclose(seen[1], seen[0], rtol=1e-4, atol=1e-5)


def test_mistakes_are_told(folders, tmp_path):
    real, made = folders
    for keys, words in (
        ({"metrics": ("lpips_vgg",)}, "lpips_vgg compares a clip with its reconstruction"),
        ({"is_splits": 3}, "inception scores in 10 parts"),
        ({"leave_out": ("fvd",)}, "tiny_generation has no metric 'fvd'"),
        ({"protocol": "ivae_ucf101"}, "did you mean 'ivvae_ucf101'"),
        ({"protocol": "fsae_table2"}, "scores reconstructions.*ivvae_faces"),
        ({"samples": str(tmp_path / "nowhere")}, "nowhere' is no folder"),
        ({"samples": ""}, "name a folder of them, --config.eval.samples"),
        ({"protocol": "ivvae_ucf101", "random_networks": False}, "i3d_kinetics400 is empty"),
    ):
        with pytest.raises(VidlatentError, match=words):
            compare(tmp_path, real, made, **keys)
    config = config_of(real, made)
    config.data.source, config.data.path = "latents", ""
    with pytest.raises(VidlatentError, match="name the folder of real clips"):
        evaluate_workdir(config, tmp_path, -1, "")


@pytest.mark.parametrize("name", GENERATION_PROTOCOLS.names())
def test_the_papers_protocols_are_whole(name):
    protocol = GENERATION_PROTOCOLS.get(name)
    assert protocol.name == name and protocol.clips == 2048 and protocol.splits == 10
    assert protocol.frames == 16  # C3D reads no other number
    ivvae = name.startswith("ivvae")
    assert (protocol.real_frames, protocol.generated_frames) == ((46, 17) if ivvae else (16, 16))
    headings = {heading for row in protocol.paper_table for heading in row.values}
    assert all(": " in line for line in protocol.open)
    if protocol.paper_table:
        assert {metric.heading for metric in protocol.metrics} <= headings
        assert protocol.find_comparable()


class Draws:
    """A generator that reads so much and remembers what it was asked for."""

    step = 3

    def __init__(self, config, *reads):
        self.config, self.reads, self.size = config, reads, tuple(config.sample.size)
        self.model, self.known = (
            types.SimpleNamespace(label_classes=7),
            types.SimpleNamespace(fps=8),
        )
        self.asked, self.stop_at = [], None

    def requests_for(self, rows, count, seed, wording):
        return make_requests(rows, count=count, seed=seed)

    def check(self, requests, wording):
        pass

    def latents(self, requests):
        for number, request in enumerate(requests):
            if number == self.stop_at:
                raise KeyboardInterrupt
            self.asked.append(request)
            yield request, np.uint8(request.seed)

    def decode(self, request, latent):
        yield np.full(self.size + (3,), latent)


def draw_once(monkeypatch, folder, real, reads, stop_at=None, **sample):
    """The generator, after ``draw_samples`` has asked it."""
    config = get_generator_defaults("stub", "demo")
    config.data.path, config.data.source, config.data.labels = str(real), "folder", "folders"
    for key, value in {"size": (5, 16, 16), "seed": 30, **sample}.items():
        config.sample[key] = value
    generator = Draws(config, *reads)
    generator.stop_at = stop_at
    monkeypatch.setattr(draw.Generator, "of", lambda *given: generator)
    clips = compare_run._open_clips(config, TINY, compare_run.make_mesh(config.mesh), 5, "")
    assert draw.draw_samples(config, folder, 3, folder, TINY, clips) == folder / "samples"
    return generator


def drawn_requests(monkeypatch, folder, *given, **sample):
    draw_once(monkeypatch, folder, *given, **sample)
    with open(folder / "requests.jsonl") as lines:
        return [json.loads(line) for line in lines]


def test_requests_for_samples(folders, tmp_path, monkeypatch):
    real, _ = folders
    rows = drawn_requests(monkeypatch, tmp_path / "a", real, ("label",))
    assert [row["seed"] for row in rows] == [30, 31, 32, 33, 34]
    assert all(0 <= row["prompt"] < 7 for row in rows)
    rows = drawn_requests(monkeypatch, tmp_path / "b", real, ("text",), prompts=("a", "b"))
    assert [row["prompt"] for row in rows] == ["a", "b", "a", "b", "a"]
    for name in ("walk", "run"):
        write_clips(tmp_path / "classes" / name, 2, 12)
    rows = drawn_requests(monkeypatch, tmp_path / "g", tmp_path / "classes", ("text",))
    assert [row["prompt"] for row in rows] == ["run", "run", "walk", "walk", "run"]
    with pytest.raises(VidlatentError, match="have no captions: set config.sample.prompts"):
        drawn_requests(monkeypatch, tmp_path / "c", real, ("text",))
    with pytest.raises(VidlatentError, match="of 5 frames, and this generator's have 4"):
        drawn_requests(monkeypatch, tmp_path / "d", real, (), size=(4, 16, 16))
    rows = drawn_requests(monkeypatch, tmp_path / "e", real, ("content",))
    for number, row in enumerate(rows):
        picture = np.asarray(Image.open(row["image"]), np.float64)
        expected = window(real / f"{number}.mp4", 1, 10)[::3][1]  # frame (4 - 1) // 2
        np.testing.assert_array_equal(picture, expected)


def test_drawing_goes_on_where_it_was(folders, tmp_path, monkeypatch):
    real, _ = folders
    with pytest.raises(KeyboardInterrupt):
        draw_once(monkeypatch, tmp_path, real, ("label",), stop_at=2)
    names = [f"{number:06}.mp4" for number in range(5)]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == names[:2]
    again = draw_once(monkeypatch, tmp_path, real, ("label",))
    assert [request.seed for request in again.asked] == [32, 33, 34]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == names
    for number, name in enumerate(names):
        frames = read_window(
            str(tmp_path / "samples" / name), 0, 5, 0.0, (16, 16), (0.5, 0.5), Limits(10**8, 9)
        )
        assert abs(frames.astype(int) - 30 - number).max() <= 1
    assert not draw_once(monkeypatch, tmp_path, real, ("label",)).asked
    for other in ({"seed": 31}, {"size": (6, 16, 16)}):
        with pytest.raises(VidlatentError, match="holds samples of other settings"):
            draw_once(monkeypatch, tmp_path, real, ("label",), **other)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(VidlatentError, match="--config.eval.samples=.*another --output"):
        draw_once(monkeypatch, tmp_path, real, ("label",))
