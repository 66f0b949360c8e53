"""A generator with random weights, from Python and from the command line: arguments and files."""

import json
import logging as std_logging

import numpy as np
import pytest
from PIL import Image

from tests.helpers.generator_runs import generator_run, tiny, tokenizer_run
from vidlatent import VidlatentError, load_generator
from vidlatent import config as configs
from vidlatent.sample import run as sample_run
from vidlatent.sample.generator import Generator
from vidlatent.sample.residency import Loadable
from vidlatent.sample.run import generate_videos

pytestmark = pytest.mark.usefixtures("one_device")
RED = "red square moving left"
LABELS = (RED, "green square moving left", "blue square moving left")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    tokenizer_run(folder / "tokenizer")
    config = tiny(folder / "tokenizer", "videos,first=true", sampler__steps=2)
    generator_run(config, folder / "run", LABELS)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder


@pytest.fixture(scope="module")
def generator(places):
    return load_generator(places / "run")


def test_a_call_gives_frames(places, generator):
    video = generator(RED, image=places / "picture.png", seed=3)
    assert video.dtype == np.uint8 and video.shape == (3, 8, 8, 3)
    # A file, its pixels and a Pillow picture are the same, in any number of calls.
    picture = Image.open(places / "picture.png")
    for same in (np.asarray(picture), picture, str(places / "picture.png")):
        np.testing.assert_array_equal(generator(RED, same, seed=3), video)
    assert np.any(generator(RED, image=picture, seed=4) != video)
    assert np.any(generator(RED, seed=3) != video)  # without the picture
    pieces = list(generator.stream("0", picture, seed=3))  # the class by its number
    np.testing.assert_array_equal(np.concatenate(pieces), video)
    assert repr(generator).startswith("<Generator tiny_generator (videos) of ")


def test_settings_of_a_call(places, generator):
    video = generator(RED, size=(7, 10), frames=5, guidance=1.0)
    assert video.shape == (5, 7, 10, 3)
    # Settings share their networks, and come back with their compiled programs.
    held = generator.params
    other = generator.with_settings(size=(7, 10), frames=5, guidance=(1.0,))
    assert other is generator.with_settings((7, 10), 5, None, (1.0,))
    assert other.params is held and other.sampler.nfe == 2 and generator.sampler.nfe == 4
    assert generator.with_settings() is generator
    assert generator.memory()["working"] > 0 and generator.memory()["measured"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "pink square"}, "no class 'pink square'"),
        ({"prompt": None}, "prompt=None: give a text"),
        ({"image": "nowhere.png"}, "image='nowhere.png': there is no such picture"),
        ({"image": np.zeros((4, 4), np.uint8)}, r"image is uint8 \[4, 4\]: give the path"),
        ({"image": np.zeros((4, 4, 3))}, r"image is float64 \[4, 4, 3\]"),
        ({"size": 64}, r"size=64: give \(height, width\)"),
        ({"size": (0, 8)}, r"size=\(0, 8\): give"),
        ({"frames": 0}, "frames=0: give a whole number of at least 1"),
        ({"steps": 2.5}, "steps=2.5: give a whole number of at least 1"),
        ({"seed": -1}, "seed=-1: give a whole number of at least 0"),
        ({"guidance": "much"}, "guidance='much': give a number"),
        ({"guidance": (1.0, 2.0)}, r"guidance=\(1.0, 2.0\): give a number"),
        ({"image": np.zeros((4, 4, 3), np.uint8), "frames": 1}, "would be the first frame, and"),
    ],
)
def test_mistakes_are_named_as_arguments(generator, arguments, message):
    with pytest.raises(VidlatentError, match=message) as raised:
        generator.stream(**{"prompt": RED, **arguments})
    assert "--" not in str(raised.value) and "config." not in str(raised.value)


def test_runs_and_keys_that_are_not_there(places):
    for arguments, message in (
        ({"path": "runs/nope"}, "path='runs/nope' holds no run: give the folder of a trained"),
        ({"path": places / "tokenizer"}, "is the run of a tokenizer: read it by vidlatent.load_c"),
        ({"path": places / "run", "stepz": 3}, "load_generator takes no 'stepz': did you mean 'st"),
        ({"path": places / "run", "steps": 0}, "^steps=0: give a whole number"),
        ({"path": places / "run", "step": 7}, "holds no checkpoint of step 7: it has 1"),
        ({"path": places / "run", "residency": "kep"}, "residency='kep': give one of swap, keep"),
    ):
        with pytest.raises(VidlatentError, match=message) as raised:
            load_generator(**arguments)
        assert "--" not in str(raised.value) and "config.s" not in str(raised.value)
    with pytest.raises(VidlatentError, match="tokenizer='elsewhere' is no run with checkpoints"):
        load_generator(places / "run", tokenizer="elsewhere")


def test_encoders_of_texts_are_gone_before_the_generator_comes(places, tmp_path, monkeypatch):
    stand_in = {"encode__text": "wan", "encode__text_network": "umt5_tiny"}
    stand_in |= {"encode__tokenizer": "words", "networks__umt5_tiny": "random"}
    config = tiny(places / "tokenizer", "videos,text=true", sampler__steps=1, **stand_in)
    run = generator_run(config, tmp_path / "run")
    generator = Generator.from_workdir(run, {"sample.batch": "2", "sample.residency": "swap"})
    held = []
    load = generator._load_params
    networks = generator.residency._networks
    networks["generator"] = Loadable(
        lambda: (held.append(generator.residency.held), load())[1], networks["generator"].size
    )
    prompts = ["a red square", "a blue circle", "a red square"]
    found = [latent for _, latent in generator.latents(generator.requests(prompts))]
    assert held == [()] and "text" not in generator.residency.held and len(found) == 3
    # Alone, the text gives the same latent, whatever was encoded beside it.
    ((_, alone),) = generator.latents(generator.requests(prompts[1:2], seed=1))
    np.testing.assert_allclose(found[1], alone, atol=1e-5)
    with pytest.raises(VidlatentError, match=r"reads texts: give prompt='\.\.\.'"):
        load_generator(run)()


def sample(places, caplog, output="", prompt="", prompts="", input="", **keys):
    config = configs.read(places / "run", {k.replace("__", "."): str(v) for k, v in keys.items()})
    caplog.clear()
    with caplog.at_level(std_logging.INFO, logger="absl"):
        assert generate_videos(config, places / "run", -1, output, prompt, prompts, input) == 0
    return caplog.text


def test_each_request_has_a_folder_with_a_page(places, caplog):
    """Old samples stay as they are, and described."""
    told = sample(places, caplog, prompt=RED, input=str(places / "picture.png"))
    first = places / "run" / "samples" / "step_1" / "0001-red_square_moving_left"
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    video = "red_square_moving_left-0.mp4"
    pages = {"index.html", "contact_sheet.png", "samples.json", "captions.jsonl"}
    assert {*before} == {video, *pages}
    assert json.loads(before["captions.jsonl"]) == {"file": video, "caption": RED}
    assert f"wrote {first / video}" in told and f"look at {first / 'index.html'}" in told
    assert "memory of a device: 0.1 MiB estimated (tokenizer" in told and "does not say" in told
    page = before["index.html"].decode()
    assert f'<video src="{video}" controls loop muted playsinline autoplay>' in page
    assert 'title="given picture"' in page and "seed 0" in page and RED in page
    about = json.loads(before["samples.json"])
    assert about["videos"][0]["image"] == "picture.png"
    assert {*about["memory"]["parameters"]} == {"generator", "tokenizer"}
    told = sample(places, caplog, prompt=RED, sample__seed=5)
    second = first.with_name("0002-red_square_moving_left")
    assert json.loads((second / "samples.json").read_text())["videos"][0]["seed"] == 5
    assert 'title="given picture"' not in (second / "index.html").read_text()
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    with pytest.raises(VidlatentError, match=f"--output={second} holds samples already"):
        sample(places, caplog, output=str(second), prompt=RED)


def test_the_given_picture_is_the_first_column(places, caplog, tmp_path):
    picture = str(places / "picture.png")
    sample(places, caplog, output=str(tmp_path / "a"), prompt=RED, input=picture)
    sample(places, caplog, output=str(tmp_path / "b"), prompt=RED)
    with_it, without = (Image.open(tmp_path / name / "contact_sheet.png") for name in "ab")
    generator = load_generator(places / "run")
    (request,) = generator.requests_for([{"prompt": RED, "image": picture}], 1, 0)
    given = generator.picture(request)
    cell = Image.fromarray(given).resize((160, 160), Image.Resampling.NEAREST)
    cells = np.asarray(with_it.convert("RGB"))
    wide = with_it.width - without.width
    assert wide > 160  # one column more
    rows = [
        (y, x)
        for y in range(cells.shape[0] - 160)
        for x in range(0, 260)
        if np.array_equal(cells[y, x : x + 160], np.asarray(cell)[0])
        and np.array_equal(cells[y : y + 160, x : x + 160], np.asarray(cell))
    ]
    assert len(rows) == 1 and rows[0][1] < 200


def test_without_a_prompt_the_number_of_videos_is_told(places, caplog):
    told = sample(places, caplog, sample__count=2, sampler__guidance__scales="()")
    assert "no --prompt: 2 of each of the 3 classes, 6 videos" in told
    folder = places / "run" / "samples" / "step_1"
    assert [path.name for path in sorted(folder.glob("*3_prompts"))] == ["0003-3_prompts"]


def test_an_interrupted_request_describes_what_is_done(places, caplog, tmp_path, monkeypatch):
    write, made = sample_run._write_video, []

    def write_two(*arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(arguments)
        return write(*arguments)

    monkeypatch.setattr(sample_run, "_write_video", write_two)
    with pytest.raises(KeyboardInterrupt):
        sample(places, caplog, output=str(tmp_path / "a"), sampler__guidance__scales="()")
    assert "interrupted: 2 of 3 videos are done" in caplog.text
    about = json.loads((tmp_path / "a" / "samples.json").read_text())
    files = {path.name for path in (tmp_path / "a").glob("*.mp4")}
    assert {row["file"] for row in about["videos"]} == files and len(files) == 2
    assert (tmp_path / "a" / "index.html").is_file()
