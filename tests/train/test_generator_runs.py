"""Runs of a tiny generator: latents to checkpoint to videos, resumed, examined, refused."""

import hashlib
import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers.events import read_events
from tests.helpers.generator_runs import tiny, tokenizer_run
from vidlatent import config as configs
from vidlatent.encode.run import encode_set
from vidlatent.errors import VidlatentError
from vidlatent.evaluate import generator as generate_eval
from vidlatent.evaluate.protocols.base import ProtocolMetric
from vidlatent.evaluate.protocols.generation import GENERATION_PROTOCOLS, GenerationProtocol
from vidlatent.evaluate.run import evaluate_workdir
from vidlatent.latents.space import Latents, abstract_generator, check_tokenizer, generator_of
from vidlatent.media.write import write_video
from vidlatent.models.load import open_checkpoints
from vidlatent.parallel.paths import path_name
from vidlatent.report.writers import read_metrics
from vidlatent.sample.generator import Generator
from vidlatent.sample.run import generate_videos
from vidlatent.train.init_from import load_initial_params
from vidlatent.train.loop import INTERRUPTED, train
from vidlatent.train.state import random_key
from vidlatent.train.tasks.base import make_task

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tokenizer, and its latents of rendered shapes."""
    folder = tmp_path_factory.mktemp("generator")
    tokenizer_run(folder / "tokenizer")
    encoded(folder, "latents")
    return folder


def encoded(folder, name, **keys):
    config = configs.read(folder / "tokenizer")
    with config.unlocked():
        config.data = tiny(folder / "tokenizer", "videos").data
        config.encode.pictures = 0
        config.encode.update(keys)
    assert encode_set(config, folder / "tokenizer", -1, str(folder / name)) == 0


def config_of(places, arg="latents", **keys):
    return tiny(places / "tokenizer", arg, data__path=places / "latents", **keys)


@pytest.fixture(scope="module")
def straight(places):
    """12 steps on latents, evaluated half-way."""
    config = config_of(places, eval__every=6, train__tensorboard=True)
    assert train(config, places / "straight") == 0
    return places / "straight"


def digest(workdir, step):
    config = configs.read(workdir)
    state = jax.eval_shape(make_task(config).init, random_key(0, "params"))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state
    )
    checkpoints = open_checkpoints(config, workdir)
    leaves = jax.tree_util.tree_leaves_with_path(checkpoints.restore(target, step=step).state)
    checkpoints.close()
    total = hashlib.sha256()
    for path, leaf in sorted(leaves, key=lambda item: path_name(item[0])):
        total.update(path_name(path).encode() + np.asarray(leaf).tobytes())
    return total.hexdigest()


def test_a_run_leaves_curves_samples_and_a_report(straight, places):
    curves = read_metrics(straight / "metrics.jsonl")
    assert curves["val/loss"][0] == [6, 12] and curves["train/loss"][0] == [4, 8, 12]
    assert curves["train/latent_frames_per_second"][0] == [4, 8, 12]
    for file in ("report.html", "contact_sheet.png", "scores.json"):
        assert (straight / "eval" / "step_12" / file).stat().st_size > 500
    assert (straight / "samples" / "step_6.png").is_file()
    scores = json.loads((straight / "eval" / "step_12" / "scores.json").read_text())
    assert scores["scores"]["loss"] == pytest.approx(
        np.mean([row["loss"] for row in scores["by_level"]])
    )
    shown = [(step, value.tag) for step, value in read_events(straight / "tensorboard")]
    assert {(s, f"val/samples/{n}") for s in (6, 12) for n in (0, 1)} <= set(shown)
    known = Latents.load(straight)
    assert known.label_names[0].endswith("moving left") and len(known.label_names) == 48
    assert np.ptp(known.space.std) > 0


def test_cut_and_resumed_run_is_bitwise_equal(straight, places):
    cut = places / "cut"
    assert train(config_of(places, eval__every=6, train__stop_at=5), cut) == INTERRUPTED
    assert train(config_of(places, eval__every=6), cut) == 0
    assert digest(cut, 12) == digest(straight, 12)
    ours, theirs = (read_metrics(w / "metrics.jsonl")["val/loss"][1] for w in (cut, straight))
    assert ours == theirs


def test_evaluation_is_the_same_in_a_mode_of_its_own(straight, places):
    config = configs.read(straight, {"sample.grid": "0"})
    folder = places / "evaluated"
    assert generate_eval.evaluate_generator(config, straight, 12, str(folder)) == 0
    found, before = (
        json.loads((place / "scores.json").read_text())
        for place in (folder, straight / "eval" / "step_12")
    )
    assert found["scores"] == before["scores"] and found["by_level"] == before["by_level"]
    assert not (folder / "contact_sheet.png").exists()


def test_evaluation_shows_where_layers_look_back_to(straight, places):
    keys = {"sample.grid": "0", "eval.layer_memory": "true", "diffusion.eval_levels": "1"}
    folder = places / "memory"
    config = configs.read(straight, keys)
    assert generate_eval.evaluate_generator(config, straight, 12, str(folder)) == 0
    found = json.loads((folder / "scores.json").read_text())["layer_memory"]
    for rows in found.values():
        first, second = rows
        assert first == pytest.approx([1.0], abs=1e-6) and len(second) == 2
    # Both have weight 1/2 at the start.
    means, largest = found["mean"][1], found["largest"][1]
    assert sum(means) == pytest.approx(1) and 0.2 < means[0] < 0.8
    assert all(mean <= weight < 1 for mean, weight in zip(means, largest, strict=True))
    picture = Image.open(folder / "layer_memory.png").convert("RGB")
    assert (16, 62, 124) in {
        color for _, color in picture.getcolors(1 << 20)
    }  # the colour of weight 1
    assert "mean weight over tokens" in (folder / "report.html").read_text()
    plain = configs.read(straight, {**keys, "generator.memory": "false"})
    with pytest.raises(VidlatentError, match="has no layer memory"):
        generate_eval.evaluate_generator(plain, straight, 12, str(folder))


def sampled(workdir, output, prompt="", prompts="", input="", **keys):
    keys = {key.replace("__", "."): str(value) for key, value in keys.items()}
    config = configs.read(workdir, keys)
    assert generate_videos(config, workdir, -1, str(output), prompt, prompts, input) == 0
    return json.loads((output / "samples.json").read_text())


def test_samples_are_decided_by_their_seeds(straight, tmp_path):
    """Samples do not depend on the batch size, the order or the number of videos."""
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "Red  square moving LEFT"}, {"prompt": "3", "seed": 7}]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    about = sampled(straight, tmp_path / "a", prompts=str(prompts), sample__count=2)
    named = [(row["prompt"], row["seed"], row["number"]) for row in about["videos"]]
    third = Latents.load(straight).label_names[3]
    left = "red square moving left"
    assert named == [(left, 0, 0), (left, 1, 1), (third, 7, 0), (third, 8, 1)]
    assert about["nfe"] == 8 and about["step"] == 12 and about["latent_shape"] == [2, 4, 4, 4]
    again = sampled(straight, tmp_path / "b", prompts=str(prompts), sample__count=2)
    generator = Generator.from_workdir(straight)
    requests = generator.requests([left, "3"], count=1, seed=1)
    (_, latent), (_, other) = generator.latents(requests)
    assert requests[0].seed == 1 and np.abs(latent - other).max() > 1e-3
    ((_, alone),) = generator.latents(requests[:1])
    np.testing.assert_allclose(alone, latent, atol=1e-5)
    for row, same in zip(about["videos"], again["videos"], strict=True):
        assert row == same
        files = [(tmp_path / place / row["file"]).read_bytes() for place in "ab"]
        assert files[0] == files[1]
    assert (tmp_path / "a" / "contact_sheet.png").is_file()


def test_samples_that_are_drawn_are_scored(straight, tmp_path, monkeypatch):
    """A protocol of generated videos, from a workdir and a folder of clips to scores."""
    monkeypatch.setattr(GENERATION_PROTOCOLS, "_entries", dict(GENERATION_PROTOCOLS._entries))
    protocol = GenerationProtocol(
        name="tiny",
        source="nowhere",
        frames=2,
        drop=1,
        clips=4,
        size=(8, 8),
        metrics=(ProtocolMetric("fvd_videomae_tiny", "FVD"),),
        paper_table=(),
        headline="",
        open=(),
    )
    GENERATION_PROTOCOLS.register("tiny", protocol)
    for number in range(4):
        video = np.random.default_rng(number).integers(0, 256, (2, 8, 8, 3), np.uint8)
        write_video(tmp_path / "clips" / f"{number}.mp4", video, 8.0)
    keys = {"eval.protocol": "tiny", "data.path": str(tmp_path / "clips"), "sample.seed": "5"}
    config = configs.read(straight, keys)
    out = tmp_path / "scored"
    assert evaluate_workdir(config, straight, 12, str(out)) == 0
    found = json.loads((out / "tiny.json").read_text())["measured"]
    (score,) = found["scores"].values()
    assert score > 0 and found["generated"]["clips"] == found["real"]["clips"] == 4
    assert found["generated"]["left_out"] == []
    with open(out / "requests.jsonl") as lines:
        assert [json.loads(line)["seed"] for line in lines] == [5, 6, 7, 8]
    # The same samples, given as a folder, have the same score.
    keys |= {"eval.samples": str(out / "samples")}
    assert evaluate_workdir(configs.read(straight, keys), straight, 12, str(tmp_path / "b")) == 0
    again = json.loads((tmp_path / "b" / "tiny.json").read_text())["measured"]
    assert again["scores"] == found["scores"]


def test_a_generator_starts_from_the_run_that_it_is_made_from(straight):
    model = generator_of(configs.read(straight))
    shapes = abstract_generator(model)
    fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), shapes)
    params = load_initial_params(
        str(straight), shapes, lambda: fresh, family="wan", kind="wan_memory"
    )
    want = Generator.from_workdir(straight).params
    jax.tree.map(np.testing.assert_array_equal, params, jax.tree.map(np.asarray, want))


def test_products_in_eight_bits_say_what_they_cost(straight):
    exact = Generator.from_workdir(straight)
    eighth = Generator.from_workdir(straight, {"sampler.fp8": "true"})
    requests = exact.requests(["3"])
    ((_, latent),), ((_, other),) = exact.latents(requests), eighth.latents(requests)
    assert exact.fp8_psnr is None and 15 < eighth.fp8_psnr < 80
    assert exact.compute == "float32"
    assert 0 < np.abs(latent - other).max() < np.ptp(latent) / 2


def test_large_kernels_rest_in_the_type_of_products(straight):
    whole, half = (
        Generator.from_workdir(straight, {"precision.compute": name}).params
        for name in ("float32", "bfloat16")
    )
    dtypes = set()
    for before, after in zip(*map(jax.tree.leaves, (whole, half)), strict=True):
        np.testing.assert_array_equal(after, before.astype(after.dtype))
        dtypes.add((str(before.dtype), str(after.dtype)))
    assert dtypes == {("float32", "float32"), ("float32", "bfloat16")}
    assert half["router_2"]["kernel"].dtype == whole["time_projection"]["kernel"].dtype


@pytest.mark.slow
def test_vbench_finds_its_names_and_mistakes_are_named(straight, tmp_path):
    about = sampled(
        straight,
        tmp_path,
        prompt="blue circle moving up",
        sample__count=2,
        sample__vbench="true",
        sample__size="(5, 6, 7)",
    )
    names = [f"blue circle moving up-{k}.mp4" for k in range(2)]
    assert [row["file"] for row in about["videos"]] == names
    assert all((tmp_path / name).is_file() for name in names) and about["size"] == [5, 6, 7]
    with pytest.raises(VidlatentError, match="no class 'pink square moving left'.*did you"):
        sampled(straight, tmp_path / "no", prompt="pink square moving left")
    with pytest.raises(VidlatentError, match="prompts=nowhere.txt: there is no such file"):
        sampled(straight, tmp_path / "no", prompts="nowhere.txt")
    with pytest.raises(VidlatentError, match="is a tokenizer's: --mode=sample needs"):
        sampled(straight.parent / "tokenizer", tmp_path / "no", prompt="0")
    with pytest.raises(VidlatentError, match="frames, height, width"):
        sampled(straight, tmp_path / "no", prompt="0", sample__size="(5, 6)")
    with pytest.raises(VidlatentError, match="holds samples already, which are never overwritten"):
        sampled(straight, tmp_path, prompt="0")


@pytest.mark.slow
def test_a_first_frame_is_read_from_videos_and_from_a_picture(places, tmp_path):
    """Train from videos through the frozen tokenizer, which is not part of the state."""
    run = places / "first"
    config = config_of(places, "videos,first=true", train__steps=2, sample__clamp_first="true")
    assert train(config, run) == 0
    assert Latents.load(run).space.mean == (0.0,) * 4
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)).save(picture)
    about = sampled(run, tmp_path / "out", prompt="3", input=str(picture))
    assert about["videos"][0]["image"] == "picture.png"
    generator = Generator.from_workdir(run)
    plain, told = (
        list(generator.latents(generator.requests_for(rows, 1, 0)))[0][1]
        for rows in ([{"prompt": "3"}], [{"prompt": "3", "image": str(picture)}])
    )
    assert np.abs(plain - told).max() > 1e-3
    whole = Image.open(picture).resize((10, 8), Image.Resampling.BICUBIC)
    seen = generator.codec.encode(np.asarray(whole)[None, :, 1:9]).latent[0]
    np.testing.assert_allclose(told[0], seen, atol=1e-4)
    with pytest.raises(VidlatentError, match="no picture at nowhere.png"):
        sampled(run, tmp_path, prompt="3", input="nowhere.png")


def test_latents_of_another_tokenizer_are_refused(straight, places, tmp_path):
    other = tmp_path / "other"
    tokenizer_run(other, latent_channels=8)
    with pytest.raises(VidlatentError, match="latents has latents of fsae .4.*other those of.*8"):
        make_task(tiny(other, "latents", data__path=places / "latents"))
    check_tokenizer(Latents.load(straight).space, config_of(places), "the run")
    with pytest.raises(VidlatentError, match="tokenizer.path is empty"):
        make_task(tiny("", "videos"))
    again = tokenizer_run(tmp_path / "again", seed=1)
    with pytest.raises(VidlatentError, match="generator has latents of .* those of .*encoders"):
        Generator.from_workdir(straight, {"tokenizer.path": again})
    known = Latents.load(straight)
    moved = Latents(known.space.with_moments(np.add(known.space.mean, 1), known.space.std))
    with pytest.raises(VidlatentError, match="other means and standard deviations"):
        moved.write_or_check(straight, 12)
    with pytest.raises(VidlatentError, match="holds no generator"):
        Latents.load(tmp_path)


@pytest.mark.slow
def test_without_a_tokenizer_training_shows_latent_channels(places, tmp_path):
    config = config_of(places, train__steps=1, tokenizer__path="")
    assert train(config, tmp_path) == 0
    assert (tmp_path / "samples" / "step_1.png").is_file()
    with pytest.raises(VidlatentError, match="no tokenizer is known.*config.tokenizer.path="):
        sampled(tmp_path, tmp_path / "out", prompt="0")


@pytest.mark.slow
def test_captions_are_read_through_a_text_encoder(places, tmp_path):
    stand_in = {"text": "wan", "text_network": "umt5_tiny", "tokenizer": "words"}
    encoded(places, "texts", **stand_in)
    config = config_of(places, "latents,text=true", train__steps=2, eval__every=1)
    config.data.path = str(places / "texts")
    assert config.encode.to_dict().items() >= stand_in.items()
    run = tmp_path / "run"
    assert train(config, run) == 0
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red square moving left\n\na very long tale of a blue circle that went up\n")
    negative = {"sampler__guidance__negative": "dull"}
    about = sampled(run, tmp_path / "a", prompts=str(prompts), **negative)
    assert [row["seed"] for row in about["videos"]] == [0, 1]
    plain, told = (
        next(Generator.from_workdir(run, keys).latents(requests))[1]
        for keys in ({}, {"sampler.guidance.negative": "dull"})
        for requests in [Generator.from_workdir(run).requests(["red square"])]
    )
    assert np.abs(plain - told).max() > 0
    with pytest.raises(VidlatentError, match="this generator reads texts"):
        sampled(run, tmp_path)
