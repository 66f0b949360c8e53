"""One latent space from tokenizer to samples: found, inherited, interchangeable, or refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers.generator_runs import QUICK, generator_run, save_step, tiny, tokenizer_run
from vidlatent import config as configs
from vidlatent.codec.codec import Codec
from vidlatent.codec.preview import Preview
from vidlatent.convert.run import convert
from vidlatent.data.latent_set import HEADER, read_header
from vidlatent.data.renderers.shapes import make_shape_scene, render_shape
from vidlatent.data.sources.latents import LatentSource
from vidlatent.encode.run import encode_set
from vidlatent.encode.statistics import measure_latents
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.generator import evaluate_generator
from vidlatent.latents.inputs import Inputs
from vidlatent.latents.space import FILE, Latents, generator_of, load_latents
from vidlatent.latents.statistics import FOLDER, find_digests, find_statistics
from vidlatent.models.load import abstract_params, model_of
from vidlatent.sample.decoding import load_tokenizer_codec
from vidlatent.sample.run import Generator
from vidlatent.train.loop import train
from vidlatent.train.tasks.base import make_task
from vidlatent.weights.files import load_params

pytestmark = pytest.mark.usefixtures("one_device")

STANDARD = {"cross_stages": (1,), "cross_head_dim": 4, "decoder_time": "centred"}
LITE = {**STANDARD, "decoder_time": "group", "decoder_widths": (2, 8)}
# Sizes of the sets of three stages: pictures, videos, larger videos.
SETS = {"image": (1, 8, 8, 8), "video": (3, 8, 8, 8), "target": (3, 16, 16, 8)}


def encoded(tokenizer, output, bucket=SETS["video"], **keys):
    """A set of rendered shapes, written by ``--mode=encode`` of a tokenizer's workdir."""
    config = configs.read(tokenizer)
    with config.unlocked():
        config.data = tiny(tokenizer, "videos").data
        config.data.synthetic.clips = 6
        config.data.synthetic.height, config.data.synthetic.width = bucket[1:3]
        config.data.buckets = (bucket,)
        config.encode.pictures, config.encode.dtype = 0, "float32"
        config.encode.update(keys)
    assert encode_set(config, tokenizer, -1, str(output)) == 0


def measured(tokenizer, generator=None):
    """``--mode=latents``, with a tokenizer's config or a generator's."""
    if generator is not None:
        return measure_latents(generator, tokenizer, -1)
    config = configs.read(tokenizer)
    with config.unlocked():
        config.data = tiny(tokenizer, "videos").data
        config.encode.measure_batches = 2
    return measure_latents(config, tokenizer, -1)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tokenizer, two fine-tuned from it, one of other weights, and sets."""
    folder = tmp_path_factory.mktemp("space")
    base = tokenizer_run(folder / "base")
    tokenizer_run(folder / "standard", 3, base, **STANDARD)
    tokenizer_run(folder / "lite", 4, folder / "standard", **LITE)
    tokenizer_run(folder / "other", 1)
    for name, bucket in SETS.items():
        encoded(folder / "base", folder / name, bucket)
    encoded(folder / "other", folder / "foreign")
    return folder


def config_of(places, name="video", tokenizer="base", arg="latents", **keys):
    keys = {"data__path": places / name, "data__buckets": (SETS.get(name, SETS["video"]),), **keys}
    return tiny(places / tokenizer, arg, **keys)


@pytest.fixture(scope="module")
def generator(places):
    """A generator on the base's latents, which reads a first frame."""
    config = config_of(places, arg="latents,first=true")
    return generator_run(config, places / "generator")


def test_decoders_of_one_encoder_have_one_digest(places):
    digests = [find_digests(places / name) for name in ("base", "standard", "lite", "other")]
    assert len({digest.encoder for digest in digests}) == 2
    assert len({digest.weights for digest in digests}) == 4
    assert digests[0].encoder == digests[1].encoder == digests[2].encoder
    assert find_digests(places / "base") == digests[0]
    (stored,) = (places / "base" / FOLDER).glob("digests-1-*.json")
    assert json.loads(stored.read_text()) == digests[0]._asdict()
    stored.write_text("{}")
    with pytest.raises(VidlatentError, match="is damaged .no encoder.: delete it"):
        find_digests(places / "base")
    stored.unlink()
    assert find_digests(places / "base") == digests[0]


@pytest.mark.parametrize("name", ["base", "standard", "lite"])
def test_every_decoder_of_the_encoder_decodes_the_generator(places, generator, name, tmp_path):
    """What is sampled is the same, and each decoder shows it in its own way."""
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(tmp_path / "grey.png")
    made = Generator.from_workdir(generator, {"tokenizer.path": str(places / name)})
    requests = made.requests_for([{"prompt": "3", "image": str(tmp_path / "grey.png")}], 1, 0)
    ((request, latent),) = made.latents(requests)
    video = np.concatenate(list(made.decode(request, latent)))
    own = Codec.from_workdir(places / name)
    reads = own.model.condition_kind == "first"
    content = np.full((1, 8, 8, 3), 99, np.uint8) if reads else None
    np.testing.assert_array_equal(video, own.decode(latent, 3, (8, 8), content))
    base = Generator.from_workdir(generator)
    ((_, same),) = base.latents(requests)
    np.testing.assert_allclose(latent, same, atol=1e-5)
    assert made.known.space == base.known.space


def test_a_coded_video_and_a_preview_know_their_encoder(places, tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    coded = Codec.from_workdir(places / "base").encode(video)
    coded.save(tmp_path / "coded.npz")
    again = coded.load(tmp_path / "coded.npz")
    assert again.encoder == find_digests(places / "base").encoder
    standard = Codec.from_workdir(places / "standard")
    assert standard.decode(dataclasses.replace(again, content=video[:1])).shape == video.shape
    with pytest.raises(VidlatentError, match="with the encoder .* this codec's encoder is"):
        Codec.from_workdir(places / "other").decode(again)
    spec, digests = coded.spec, [find_digests(places / name).encoder for name in ("base", "other")]
    Preview(spec, np.ones((5, 3)), None, digests[0]).save(tmp_path / "map.npz")
    Preview.load(tmp_path / "map.npz", spec, digests[0])
    with pytest.raises(VidlatentError, match="fitted to latents of the encoder .* not of"):
        Preview.load(tmp_path / "map.npz", spec, digests[1])


def test_moments_are_inherited_over_stages_of_different_sizes(places, tmp_path):
    """Image, video, target and SFT: each set has moments of its own, none of which is used."""
    headers = [read_header(places / name) for name in SETS]
    assert np.ptp([header.std[0] for header in headers]) > 1e-2
    measured = find_statistics(places / "base", headers[0].encoder)
    np.testing.assert_array_equal(measured.mean, headers[0].mean)
    start = ""
    for name in (*SETS, "video"):
        config = config_of(places, name, train__init_from=start)
        space = load_latents(config).space
        assert space.normalisation == "statistics" and space.encoder == headers[0].encoder
        np.testing.assert_array_equal(space.mean, measured.mean)
        np.testing.assert_array_equal(
            space.std, np.where(measured.std > np.float64(0), measured.std, 1)
        )
        start = generator_run(config, tmp_path / f"run{start.count('run')}-{name}-{len(start)}")


def test_a_start_has_the_last_word_about_moments(places, tmp_path):
    """A tokenizer that was measured on other clips since, or a set of an older version."""
    start = generator_run(config_of(places), tmp_path / "start")
    first = Latents.load(tmp_path / "start").space
    header = json.loads((places / "target" / HEADER).read_text())
    for name in ("encoder", "cut", "moments"):
        del header[name]
    old = tmp_path / "old"
    old.mkdir()
    (old / HEADER).write_text(json.dumps(header))
    alone = config_of(places, "target", data__path=old)
    assert load_latents(alone).space.mean == tuple(header["mean"]) != first.mean
    # The digest of all weights tells that the base made it.
    assert load_latents(alone).space.encoder == first.encoder
    both = config_of(places, "target", data__path=old, train__init_from=start)
    assert load_latents(both).space.mean == first.mean


@pytest.mark.parametrize("kind", ["statistics", "spec", "none"])
def test_videos_give_the_inputs_that_their_set_gives(places, kind):
    source = LatentSource(str(places / "video"))
    windows = source.windows[:3]
    frames = [
        render_shape(
            make_shape_scene(0, int(window.clip.rpartition("-")[2]), 3),
            window.first + np.arange(window.frames),
            8,
            8,
        )
        for window in windows
    ]
    latents = np.stack([source.read_arrays(window.name)["latent"] for window in windows])
    batches = {"latents": {"latent": latents}, "videos": {"video": np.stack(frames)}}
    found = {}
    for arg, batch in batches.items():
        config = config_of(places, arg=arg, latents__normalisation=kind)
        known = load_latents(config)
        inputs = Inputs(config, generator_of(config), known)
        frozen = {}
        if arg == "videos":
            shapes = abstract_params(model_of(configs.read(places / "base")))
            frozen["tokenizer"] = load_params(places / "base", shapes, family="fsae")
        batch |= {"mask": np.ones(3, np.float32), "label": np.zeros(3, np.int32)}
        run = jax.jit(inputs, compiler_options=QUICK)
        found[arg] = known.space, np.asarray(run(batch, frozen, jax.random.key(0))[0])
    (space, stored), (other, coded) = found["latents"], found["videos"]
    assert (space.mean, space.std, space.encoder) == (other.mean, other.std, other.encoder)
    np.testing.assert_allclose(coded, stored, atol=1e-6, rtol=1e-6)
    assert (np.abs(stored - latents).max() > 1e-2) == (kind == "statistics")


def test_moments_are_measured_once_for_each_encoder(tmp_path, caplog):
    tokenizer = tmp_path / "tokenizer"
    tokenizer_run(tokenizer)
    videos = tiny(tokenizer, "videos", latents__normalisation="statistics")
    with pytest.raises(
        VidlatentError, match=rf"measure them once by .* --mode=latents --workdir={tokenizer}"
    ):
        make_task(videos)
    with videos.unlocked():
        videos.encode.measure_batches = 2
    assert measured(tokenizer, videos) == 0
    encoder = find_digests(tokenizer).encoder
    found = find_statistics(tokenizer, encoder)
    assert found.n and load_latents(videos).space.mean == tuple(found.mean)
    # A set that is encoded afterwards carries these, whatever its own are.
    encoded(tokenizer, tmp_path / "set")
    header = read_header(tmp_path / "set")
    assert header.moments[0]["mean"] == found.mean and header.mean.tolist() != found.mean
    assert find_statistics(tokenizer, encoder) == found
    # Neither does a second measurement replace them.
    assert measured(tokenizer) == 0 and find_statistics(tokenizer, encoder) == found
    # A copy of the weights has them, too.
    flags = {"from": "", "from_table": "auto", "to_table": "auto", "start": "", "verify": ""}
    config = configs.read(tokenizer)
    assert convert(config, tokenizer, step=-1, to=str(tmp_path / "copy"), **flags) == 0
    assert find_digests(tmp_path / "copy").encoder == encoder
    assert find_statistics(tmp_path / "copy", encoder) == found
    # A decoder that was fine-tuned from it finds them; an encoder that trained on has none.
    tokenizer_run(tmp_path / "standard", 3, tokenizer, **STANDARD)
    assert find_statistics(tmp_path / "standard", encoder) == found
    tokenizer_run(tmp_path / "further", 3, tokenizer, frozen=False)
    assert find_statistics(tmp_path / "further", find_digests(tmp_path / "further").encoder) is None
    params = load_params(tokenizer, abstract_params(model_of(config)), family="fsae")
    params["encoder"] = jax.tree.map(lambda x: 1.1 * x, params["encoder"])
    save_step(config, tokenizer, params, model_of(config).latent_spec, step=2)
    assert find_digests(tokenizer).encoder != encoder == find_digests(tokenizer, 1).encoder
    with pytest.raises(VidlatentError, match="no mean and deviation of its latents"):
        make_task(videos)


def from_other(places, **keys):
    run = places / "other-generator"
    if not run.exists():
        generator_run(config_of(places, "foreign", "other"), run)
    return config_of(places, train__init_from=run, **keys)


def of_kind(places, kind):
    run = places / f"generator-{kind}"
    if not run.exists():
        generator_run(config_of(places, latents__normalisation=kind), run)
    return run


MISMATCHES = {
    "a start of another encoder": (
        lambda p, g: make_task(from_other(p)),
        r"^config.data has latents of fsae .*, config.train.init_from=\S*other-generator those of",
    ),
    "a set of another encoder": (
        lambda p, g: make_task(config_of(p, "foreign")),
        r"^the latent set \S*foreign has latents of .*, config.tokenizer.path=\S*base those of",
    ),
    "a start normalised in another way": (
        lambda p, g: make_task(config_of(p, train__init_from=of_kind(p, "none"))),
        r"^config.latents has .*generator-none those of .*normalisation=none",
    ),
    "a start that was measured, and a config that does not": (
        lambda p, g: make_task(
            config_of(
                p, train__init_from=g, latents__normalisation="none", generator__mask_channels=4
            )
        ),
        r"^config.latents has .*generator those of .* of none and of statistics.*=statistics",
    ),
    "a decoder of another encoder": (
        lambda p, g: load_tokenizer_codec(
            config_of(p, tokenizer="other"), Latents.load(p / "generator")
        ),
        r"^this generator has latents of .*, config.tokenizer.path=\S*other those .*frozen",
    ),
    "a generator that is opened with another tokenizer": (
        lambda p, g: Generator.from_workdir(g, {"tokenizer.path": str(p / "other")}),
        r"^this generator has latents of .*, config.tokenizer.path=\S*other those of",
    ),
    "a run that is resumed on another set": (
        lambda p, g: make_task(config_of(p, "foreign", "other")).begin(p / "generator", 5, ()),
        r"^the data has latents of .*, the run in \S*generator those of .*another --workdir",
    ),
    "a run that is resumed with another normalisation": (
        lambda p, g: make_task(config_of(p, latents__normalisation="spec")).begin(
            p / "generator", 5, ()
        ),
        r"^the data has .* deviations, of spec and of statistics",
    ),
    "an evaluation on a set of another encoder": (
        lambda p, g: evaluate_generator(config_of(p, "foreign", "other"), p / "generator", -1, ""),
        r"^\S*generator has latents of .*, config.data those of .*--config.data.path",
    ),
    "a generator of an older version and other weights": (
        lambda p, g: old_generator(p, "standard"),
        r"^this generator has latents of .*weights \S+ and \S+\): name the tokenizer",
    ),
    "moments of chunks of clips that are coded whole": (
        lambda p, g: make_task(config_of(p, latents__chunk_positions=True)),
        r"chunk_positions asks for .* coded whole: name the chunks",
    ),
}


def old_generator(places, tokenizer):
    """A generator whose ``latents.json`` has the digest of all weights alone."""
    stored = json.loads((places / "generator" / FILE).read_text())
    old = {name: stored[name] for name in stored if name not in ("encoder", "cut", "normalisation")}
    space = places / "old-generator"
    space.mkdir(exist_ok=True)
    (space / FILE).write_text(json.dumps(old))
    return load_tokenizer_codec(config_of(places, tokenizer=tokenizer), Latents.load(space))


@pytest.mark.parametrize("what", list(MISMATCHES))
def test_every_mismatch_is_refused_by_one_sentence_that_names_both(places, generator, what):
    meet, message = MISMATCHES[what]
    with pytest.raises(VidlatentError, match=message) as raised:
        meet(places, generator)
    assert str(raised.value).count(". ") == 0 and str(raised.value).endswith(".")


def test_a_generator_of_an_older_version_is_decoded_by_its_own_tokenizer(places, generator):
    assert old_generator(places, "base").spec.name == "fsae"


@pytest.mark.slow
def test_a_trained_generator_meets_every_decoder(places, tmp_path):
    """Trained on the base's set beside Standard, on pictures and on to videos; decoded by all."""
    picture = tmp_path / "grey.png"
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(picture)
    runs, keys = [], {"train__steps": 2, "train__log_every": 1, "tokenizer": "standard"}
    for name in ("image", "video"):
        start = runs[-1] if runs else ""
        config = config_of(places, name, arg="latents,first=true", train__init_from=start, **keys)
        runs.append(tmp_path / name)
        assert train(config, runs[-1]) == 0
        # The base's set has no first frames for Standard's decoder: channels are shown.
        assert (runs[-1] / "samples" / "step_2.png").stat().st_size > 100
    spaces = [Latents.load(run).space for run in runs]
    assert spaces[0] == spaces[1] and spaces[0].encoder == find_digests(places / "base").encoder
    videos = {}
    for name in ("base", "standard", "lite"):
        made = Generator.from_workdir(runs[-1], {"tokenizer.path": str(places / name)})
        requests = made.requests_for([{"prompt": "3", "image": str(picture)}], 1, 0)
        ((request, latent),) = made.latents(requests)
        videos[name] = np.concatenate(list(made.decode(request, latent)))
        assert videos[name].shape == (3, 8, 8, 3)
    assert len({video.tobytes() for video in videos.values()}) == 3
