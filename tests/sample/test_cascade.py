"""The cascade of a tiny base model, upsampler and refiner."""

import dataclasses
import json
from concurrent.futures import Future
from unittest.mock import patch

import jax
import numpy as np
import pytest
from absl import logging
from PIL import Image

import vidlatent
from tests.helpers.generator_runs import generator_run
from tests.helpers.second_half import make_parts, refiner_config
from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.latents.refiner_inputs import abstract_upsampler, upsampler_of
from vidlatent.latents.space import Latents, generator_of
from vidlatent.models.load import abstract_params, model_of
from vidlatent.sample import residency
from vidlatent.sample.cascade import Cascade, cover_sizes, cut_middle
from vidlatent.sample.generator import Generator
from vidlatent.sample.progress import VideoProgress
from vidlatent.sample.run import generate_videos

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The refiner's workdir beside its parts, a picture, and a file that names all."""
    folder = tmp_path_factory.mktemp("cascade")
    make_parts(folder)
    generator_run(refiner_config(folder), folder / "refiner")
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "picture.png")
    parts = {name: name for name in ("base", "upsampler", "refiner", "tokenizer")}
    (folder / "cascade.json").write_text(json.dumps(parts))
    return folder


@pytest.fixture(scope="module")
def cascade(runs):
    return vidlatent.load_generator(runs / "cascade.json")


def test_a_picture_becomes_a_video_in_one_call(runs, cascade):
    """Any size, deterministic by its seed, and decoded as the refiner's latent says."""
    assert isinstance(cascade, Cascade)
    picture = runs / "picture.png"
    video = cascade(3, image=picture, seed=1)
    assert video.shape == (5, 16, 16, 3) and video.dtype == np.uint8
    np.testing.assert_array_equal(video, cascade(3, image=picture, seed=1))
    assert (video != cascade(3, image=picture, seed=2)).any()
    other = cascade(3, image=picture, size=(14, 18))
    assert other.shape == (5, 14, 18, 3)
    assert cascade.nfe == {"base": 4, "refiner": 2}
    assert set(cascade.seconds) == {"encoding", "base", "upsampler", "refiner"}


def test_the_base_draws_as_it_does_alone(runs, cascade):
    """The small latents are those of the base model by itself on the halved picture."""
    (request,) = cascade.requests_for([{"prompt": 3, "image": str(runs / "picture.png")}], 1, 5)
    seen = {}
    draw = cascade._base.draw

    def watched(*given):
        seen["low"] = draw(*given)
        return seen["low"]

    cascade._base.draw = watched
    try:
        list(cascade.latents([request]))
    finally:
        cascade._base.draw = draw
    alone = Generator.from_workdir(runs / "base")
    ((_, latent),) = alone.latents([cascade._halve(request)])
    expected = np.asarray(alone.known.standardise(latent))
    np.testing.assert_allclose(seen["low"][0], expected, atol=1e-5)


def test_the_refiner_is_given_what_training_gives(runs, cascade):
    """Mask 1 and the encoded picture in frame 0; the upsampled sample behind it."""
    (request,) = cascade.requests_for([{"prompt": 3, "image": str(runs / "picture.png")}], 1, 5)
    seen = {}
    draw = cascade.refiner.draw

    def watched(batch, size, conditions, watch):
        seen.update(conditions)
        return draw(batch, size, conditions, watch)

    cascade.refiner.draw = watched
    try:
        list(cascade.latents([request]))
    finally:
        cascade.refiner.draw = draw
    mask, condition = seen["given"][..., :1], seen["given"][..., 1:]
    assert (mask[:, 0] == 1).all() and (mask[:, 1:] < 1).all() and (mask[:, 1:] > 0).all()
    np.testing.assert_allclose(condition[:, :1], seen["first"], atol=1e-6)


def test_the_command_names_all_parts(runs, tmp_path):
    config = configs.read(runs / "base", {"sample.refine": str(runs / "refiner")})
    folder = tmp_path / "out"
    picture = str(runs / "picture.png")
    assert generate_videos(config, runs / "base", -1, str(folder), "3", "", picture) == 0
    stored = json.loads((folder / "samples.json").read_text())
    assert stored["nfe"] == {"base": 4, "refiner": 2}
    assert set(stored["checkpoints"]) == {"base", "upsampler", "refiner", "tokenizer"}
    assert {part["step"] for part in stored["checkpoints"].values()} == {1}
    assert stored["sampler"]["steps"] == stored["base"]["sampler"]["steps"] == 2
    assert stored["base"]["sample"]["refine"] and not stored["sampler"]["guidance"]["scales"]
    assert stored["base"]["sampler"]["guidance"]["scales"]
    assert {"encoding", "base", "upsampler", "refiner", "decoding"} <= set(stored["seconds"])
    assert (folder / "index.html").is_file() and list(folder.glob("*.mp4"))


def test_a_size_that_is_asked_for_is_the_result(runs, tmp_path):
    """That of the base model's run is not meant, another one is."""
    keys = {"sample.refine": str(runs / "refiner"), "sample.size": "(5,14,18)"}
    config, folder = configs.read(runs / "base", keys), tmp_path / "out"
    picture = str(runs / "picture.png")
    assert generate_videos(config, runs / "base", -1, str(folder), "3", "", picture) == 0
    assert json.loads((folder / "samples.json").read_text())["size"] == [5, 14, 18]


@pytest.mark.parametrize(("part", "done", "left"), [("base", 3, 0), ("refiner", 3, 1)])
def test_it_can_be_stopped_within_each_part(runs, tmp_path, monkeypatch, part, done, left):
    """What was refined and written before is described."""

    def step(self, number, steps, name=""):
        if (name, number) == (part, done):
            raise KeyboardInterrupt

    monkeypatch.setattr(VideoProgress, "step", step)
    keys = {"sample.refine": str(runs / "refiner"), "sample.count": "2"}
    config, folder = configs.read(runs / "base", keys), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        picture = str(runs / "picture.png")
        generate_videos(config, runs / "base", -1, str(folder), "3", "", picture)
    assert len(list(folder.glob("*.mp4"))) == left and folder.exists() == bool(left)
    if left:
        assert len(json.loads((folder / "samples.json").read_text())["videos"]) == left


def test_the_log_says_how_much_of_a_picture_is_lost(runs, cascade):
    """20x24 for a square video: a sixth; one that is no picture is refused by its name."""
    with patch.object(logging, "info") as told:
        cascade.check(
            cascade.requests_for([{"prompt": 3, "image": str(runs / "picture.png")}], 1, 0)
        )
    (message, *values), _ = told.call_args
    assert "picture.png is 20x24 and the video 16x16: 17 % of" in message % tuple(values)
    (runs / "broken.png").write_text("no picture")
    with pytest.raises(VidlatentError, match="broken.png cannot be read: Pillow does not know"):
        cascade(3, image=runs / "broken.png")


def test_one_network_after_another_is_held(runs):
    """With swap no two transformers are in memory together."""
    cascade = vidlatent.load_generator(runs / "cascade.json", residency="swap")
    held = []
    take = cascade.residency.__class__.__getitem__

    class Watched(cascade.residency.__class__):
        def __getitem__(self, name):
            found = take(self, name)
            held.append(set(self.held))
            return found

    cascade.residency.__class__ = Watched
    cascade(3, image=runs / "picture.png")
    assert {"base"} <= set.union(*held) and {"refiner"} <= set.union(*held)
    assert not any({"base", "refiner"} <= names for names in held)
    assert not any({"base", "upsampler"} <= names for names in held)


class AtOnce:
    """An executor without threads, so that the order of events is certain."""

    def __init__(self, *_, **__):
        pass

    def submit(self, call):
        done = Future()
        done.set_result(call())
        return done


@pytest.fixture
def roomy(monkeypatch):
    """Networks go by way of the host's memory, as where an accelerator has room for both."""
    monkeypatch.setattr(residency, "_has_host_room", lambda size: True)
    monkeypatch.setattr(residency, "find_free_memory", lambda: (1e12, ""))


def test_a_refiner_that_a_thread_reads_draws_the_same(runs, cascade, roomy):
    """Its file is read while that of the base model is, and the base model draws."""
    swap = vidlatent.load_generator(runs / "cascade.json", residency="swap")
    pictures = {"image": runs / "picture.png", "seed": 4}
    for _ in range(2):  # the second time from the host's memory
        np.testing.assert_array_equal(swap(3, **pictures), cascade(3, **pictures))
    assert set(swap.residency._hosted) == {"refiner"}


def test_the_refiner_is_copied_once_while_the_base_draws(runs, cascade, roomy, monkeypatch):
    """The same latents, in this order of events."""
    monkeypatch.setattr(residency, "ThreadPoolExecutor", AtOnce)
    swap = vidlatent.load_generator(runs / "cascade.json", residency="swap")
    events = []

    def note(event):
        events.append((event, swap.residency.held))

    def noting(event, call):
        def noted(*given):
            note(event)
            return call(*given)

        return noted

    networks = swap.residency._networks
    for name, network in networks.items():
        calls = {key: getattr(network, key) for key in ("load", "read", "place")}
        noted = {key: noting(f"{key} {name}", call) for key, call in calls.items() if call}
        networks[name] = dataclasses.replace(network, **noted)
    row = {"prompt": 3, "image": str(runs / "picture.png")}
    requests = swap.requests_for([row], 2, 5)
    swap.config.sample.batch = 1
    drawn = [
        latent
        for _, latent in swap.latents(
            requests,
            lambda done, steps, part: events.append(
                (f"{part} {done}/{steps}", swap.residency.held)
            ),
        )
    ]
    assert events == [
        ("load tokenizer", ()),
        ("read refiner", ()),  # the encoder has been released
        ("load base", ()),
        *((f"base {done}/4", ("base",)) for done in (1, 2, 3)),
        ("place refiner", ("base",)),  # before the last step of the last batch
        ("base 4/4", ("base", "refiner")),
        ("load upsampler", ("refiner",)),
        # No base model is there any more (specification J56).
        *((f"refiner {done}/4", ("refiner",)) for done in (1, 2, 3, 4)),
    ]
    expected = [latent for _, latent in cascade.latents(requests)]
    np.testing.assert_allclose(np.stack(drawn), np.stack(expected), atol=1e-5)


def test_other_settings_share_the_networks(runs):
    """One residency for all of them, which is chosen and told once."""
    cascade = vidlatent.load_generator(runs / "cascade.json")
    with patch.object(logging, "info") as told:
        other = cascade.with_settings(size=(14, 18), steps=3)
    assert other.residency is cascade.residency and not told.called
    assert other.size == (5, 14, 18) and other.nfe == {"base": 6, "refiner": 2}
    assert cascade.nfe == {"base": 4, "refiner": 2}


def test_what_does_not_fit_is_refused(runs, cascade, tmp_path):
    with pytest.raises(VidlatentError, match="no picture, and a cascade starts from one"):
        cascade(3)
    broken = tmp_path / "cascade.json"
    broken.write_text(json.dumps({"base": str(runs / "base")}))
    with pytest.raises(VidlatentError, match="no description of a cascade.*upsampler"):
        vidlatent.load_generator(broken)
    parts = {name: str(runs / name) for name in ("base", "upsampler", "refiner")}
    broken.write_text(json.dumps({**parts, "refiner": "nowhere"}))
    with pytest.raises(VidlatentError, match="refiner 'nowhere' is no run"):
        vidlatent.load_generator(broken)
    broken.write_text(json.dumps({**parts, "refiner": str(runs / "base")}))
    with pytest.raises(VidlatentError, match="task 'generator': a cascade ends with a refiner"):
        vidlatent.load_generator(broken)
    for part in ("refiner", "upsampler"):
        with pytest.raises(VidlatentError, match="load_generator\\('cascade.json'\\)"):
            vidlatent.load_generator(runs / part)
        broken.write_text(json.dumps({**parts, "base": str(runs / part)}))
        with pytest.raises(VidlatentError, match=f"{part} is a"):
            vidlatent.load_generator(broken)
    broken.write_text(json.dumps({**parts, "refiner": str(runs / "tokenizer")}))
    with pytest.raises(VidlatentError, match="task 'tokenizer': a cascade ends with a refiner"):
        vidlatent.load_generator(broken)
    base = vidlatent.load_generator(runs / "base")
    known = base.known
    space = known.space.with_moments([0.5] * 4, [2.0] * 4)
    base.known = Latents(space, known.label_names, known.fps)
    with pytest.raises(VidlatentError, match="the refiner.*the base model.*means and standard"):
        Cascade.of(base, runs / "refiner")


def test_published_sizes_by_shapes_alone():
    """720x1280 is cut from 768x1280, for which the base draws 384x640; 31 latents, 121 frames."""
    tokenizer = model_of(configs.load("fsae:paper"), "float32")
    spec = tokenizer.latent_spec
    models = (
        generator_of(configs.load(name))
        for name in ("fsvideo_dit:paper,stage=target", "fsvideo_refiner:paper,stage=target")
    )
    sizes = cover_sizes((121, 720, 1280), spec, *models)
    assert sizes == {"high": (768, 1280), "low": (384, 640)}
    low, high = (spec.latent_shape((121, *sizes[name])) for name in ("low", "high"))
    assert (low, high) == ((31, 6, 10, 128), (31, 12, 20, 128))
    upsampler = upsampler_of(configs.load("fsvideo_upsampler:paper"))
    given = {"params": abstract_upsampler(upsampler)}
    latent = jax.eval_shape(upsampler.apply, given, jax.ShapeDtypeStruct((1, *low), "float32"))
    assert latent.shape == (1, *high)

    def decode(params, latent):
        return tokenizer.apply({"params": params}, latent, method="decode")[0]

    video = jax.eval_shape(decode, abstract_params(tokenizer), latent)
    assert video.shape == (1, 121, 768, 1280, 3)
    frames = np.broadcast_to(np.arange(768)[:, None, None], (121, 768, 1280, 3))
    cut = cut_middle(frames, (720, 1280))
    assert cut.shape == (121, 720, 1280, 3) and cut[0, 0, 0, 0] == 24 and cut[0, -1, 0, 0] == 743
