"""Latents of clips coded in chunks: encoded, trained on, drawn and decoded (ProMAG, appendix D)."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.helpers.chunks import latent_span
from tests.helpers.encode_cases import encode, write_run
from tests.helpers.tiny_tokenizers import MODELS
from vidlatent import config as configs
from vidlatent.codec.load import load_codec
from vidlatent.data.latent_set import HEADER, read_header
from vidlatent.data.renderers.shapes import make_shape_scene, render_shape
from vidlatent.data.sources.latents import LatentSource
from vidlatent.errors import VidlatentError
from vidlatent.latents.inputs import Inputs
from vidlatent.latents.space import generator_of, load_latents
from vidlatent.layers.positions import chunk_places
from vidlatent.models.frozen import load_frozen
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.sharding import batch_sharding
from vidlatent.sample.decoding import load_tokenizer_codec
from vidlatent.sample.generator import Generator
from vidlatent.train import loop
from vidlatent.train.tasks.base import make_task

CHUNKS = (5, 2)  # of 3 latents each; 8 frames are 2 of them
DATA = {
    "data.source": "synthetic",
    "data.synthetic.kind": "shapes",
    "data.synthetic.clips": "12",
    "data.synthetic.frames": "8",
    "data.synthetic.height": "8",
    "data.synthetic.width": "8",
    "data.flip": "false",
    "data.fps": "0",
    "data.buckets": "((8, 8, 8, 4), (1, 8, 8, 4))",
}
DIT = {
    "generator.latent_channels": "4",
    "generator.width": "16",
    "generator.heads": "1",
    "generator.depth": "1",
    "generator.hidden": "16",
    "generator.time_dim": "8",
    "generator.label_tokens": "1",
    "generator.time_places": "(3, 3, 2)",
    "data.buckets": "((8, 8, 8, 4),)",
    "data.validation_clips": "4",
    "train.steps": "2",
    "train.log_every": "1",
    "train.tensorboard": "false",
    "checkpoint.every": "2",
    "eval.every": "0",
    "diffusion.eval_levels": "1",
    "sample.grid": "0",
    "sample.batch": "1",
    "sample.size": "(8, 7, 8)",
    "sampler.steps": "2",
    "sampler.guidance.scales": "()",
}


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A small ProMAG and the set that it makes in chunks."""
    folder = tmp_path_factory.mktemp("chunks")
    write_run(folder / "run", configs.load("configs/promag.py"), MODELS["promag"])
    keys = {"encode_chunks": CHUNKS, "encode_dtype": "float32", "encode_pictures": 2}
    assert encode(folder / "run", folder / "set", **DATA, **keys) == 0
    return folder


def config_of(places, **changes):
    keys = {"tokenizer.path": str(places / "run"), "data.path": str(places / "set")}
    changes = {key.replace("__", "."): str(value) for key, value in changes.items()}
    return configs.load("promag_dit:demo", {**DIT, **keys, **changes})


def frames_of(window):
    scene = make_shape_scene(0, int(window.clip.rpartition("-")[2]), 8)
    return render_shape(scene, window.first + np.arange(window.frames), 8, 8)


def test_a_set_of_chunks_is_what_the_codec_makes(places):
    source = LatentSource(str(places / "set"))
    assert source.header.spec.chunks == CHUNKS and source.header.source["chunks"] == [*CHUNKS]
    codec = load_tokenizer_codec(config_of(places), load_latents(config_of(places)))
    assert codec.time == "chunks" and load_codec(places / "run").time == "chunks"
    seen = {}
    for window in source.windows:
        if len(seen.setdefault(window.frames, [])) < 2:
            seen[window.frames].append(window)
    assert len(seen[8]) == len(seen[1]) == 2
    for window in seen[8] + seen[1]:
        latent, video = source.read_arrays(window.name)["latent"], frames_of(window)
        assert latent.shape == (6 if window.frames == 8 else 1, 4, 4, 4)
        coded = codec.encode(video)
        np.testing.assert_allclose(latent, coded.latent, atol=1e-5)
        restored = np.concatenate([made for _, made in codec.reconstruct_stream(video)])
        assert len(restored) == window.frames
        apart = codec.decode(latent).astype(int) - restored
        assert np.abs(apart).max() <= 1  # a rounding of pixels
    assert (places / "set" / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_each_latent_frame_of_a_chunk_may_have_moments_of_its_own(places):
    """Pictures are first latent frames; the pooled moments are those of all frames."""
    source = LatentSource(str(places / "set"))
    frames = [[], [], []]
    for window in source.windows:
        for t, frame in enumerate(source.read_arrays(window.name)["latent"]):
            frames[t % 3].append(frame.reshape(-1, 4))
    values = [np.concatenate(some).astype(np.float64) for some in frames]
    apart = load_latents(config_of(places, latents__chunk_positions=True)).space
    np.testing.assert_allclose(apart.mean, [v.mean(0) for v in values], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(apart.std, [v.std(0) for v in values], rtol=1e-9)
    pooled = load_latents(config_of(places)).space
    np.testing.assert_allclose(pooled.mean, np.concatenate(values).mean(0), rtol=1e-9, atol=1e-12)
    # A first latent frame holds one frame, the others several: that is what the option is for.
    assert np.abs(np.diff(apart.std, axis=0)).max() > 1e-3
    keys = {"data__source": "synthetic", "tokenizer__chunks": CHUNKS}
    videos = config_of(places, latents__chunk_positions=True, **keys)
    assert load_latents(videos).space == apart
    keys |= {"tokenizer__chunks": (5, 0)}
    with pytest.raises(VidlatentError, match="of each latent frame of chunks .5, 0.: measure"):
        load_latents(config_of(places, latents__chunk_positions=True, **keys))


@pytest.mark.slow
def test_a_generator_learns_and_draws_them(places):
    run = places / "generator"
    assert loop.train(config_of(places), run) == 0
    generator = Generator.from_workdir(run)
    assert generator.known.spec.chunks == CHUNKS and generator.shape == (6, 4, 4, 4)
    ((request, latent),) = generator.latents(generator.requests(["3"]))
    video = np.concatenate(list(generator.decode(request, latent)))
    codec = load_codec(places / "run", time="chunks", chunk_frames=5, overlap_frames=2)
    np.testing.assert_array_equal(video, codec.decode(latent)[:, :7])
    # Any length: as many whole chunks as hold it, cut off.
    longer = Generator.from_workdir(run, {"sample.size": "(10, 8, 8)"})
    assert longer.shape[0] == 9
    some = np.random.default_rng(0).standard_normal(longer.shape).astype(np.float32)
    assert len(np.concatenate(list(longer.decode(request, some)))) == 10
    assert Generator.from_workdir(run, {"sample.size": "(1, 8, 8)"}).shape[0] == 1


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1), pytest.param((1, 2, 2, 2), marks=pytest.mark.slow)]
)
def test_videos_are_coded_in_the_same_chunks(places, sizes):
    """Also on a mesh that spreads clips and rows."""
    config = config_of(places, data__source="synthetic", tokenizer__chunks=CHUNKS)
    known, set_known = load_latents(config), load_latents(config_of(places))
    assert known.spec.hash == read_header(places / "set").spec.hash
    assert known.space == set_known.space and known.space.normalisation == "statistics"
    inputs = Inputs(config, generator_of(config), known)
    source = LatentSource(str(places / "set"))
    windows = [window for window in source.windows if window.frames == 8][:2]
    batch = {
        "video": np.stack([frames_of(window) for window in windows]),
        "mask": np.ones(2, np.float32),
        "label": np.zeros(2, np.int32),
    }
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), devices)
    with jax.set_mesh(mesh):
        frozen = load_frozen(inputs.frozen, mesh)
        places = jax.tree.map(lambda leaf: leaf.sharding, frozen)
        run = jax.jit(inputs, in_shardings=(batch_sharding(mesh), places, None))
        latent, _ = run(batch, frozen, jax.random.key(0))
    arrays = [source.read_arrays(window.name)["latent"] for window in windows]
    np.testing.assert_allclose(latent, set_known.standardise(np.stack(arrays)), atol=1e-5)


def test_what_does_not_fit_is_refused(places, tmp_path):
    with pytest.raises(VidlatentError, match="9 frames do not fit the rule 1 or 5.3k: use 8 or 11"):
        loop.train(config_of(places, data__buckets="((9, 8, 8, 4),)"), tmp_path / "a")
    with pytest.raises(VidlatentError, match=r"chunks is \(5, 0\), but .* in chunks \(5, 2\)"):
        make_task(config_of(places, tokenizer__chunks="(5, 0)"))
    header = read_header(places / "set")
    whole = dataclasses.replace(header, spec=header.spec.whole)
    (tmp_path / HEADER).write_text(json.dumps(whole.to_json()))
    with pytest.raises(VidlatentError, match=r"chunks is \(5, 2\), but .* were coded whole"):
        make_task(config_of(places, data__path=tmp_path, tokenizer__chunks=CHUNKS))
    with pytest.raises(VidlatentError, match="begun with other settings .tokenizer, windows"):
        encode(places / "run", places / "set", **{**DATA, "data.buckets": "((5, 8, 8, 4),)"})
    write_run(tmp_path / "run", configs.load("configs/fsae.py"), MODELS["fsae_standard"])
    with pytest.raises(VidlatentError, match="looks at frames of the whole clip"):
        encode(tmp_path / "run", tmp_path / "set", **DATA, encode_chunks=CHUNKS)


def test_places_in_time_are_last_frames():
    found = chunk_places(10, 5, 13, 4)
    assert found.tolist() == [*range(0, 17, 4), *range(13, 30, 4)]
    assert found[:5].tolist() == [latent_span(i, 4)[1] for i in range(5)]


def test_the_paper_preset_trains_on_chunks():
    for arg, size, latents in (
        ("stage=2", 56, 20),
        ("stage=2,k=16", 56, 8),
        ("stage=3,k=16", 264, 40),
        ("stage=3,k=16,overlap=0", 340, 40),
        ("stage=2,k=8,overlap=0", 68, 12),
    ):
        config = configs.load(f"promag_dit:paper,{arg}")
        overlap = 0 if "overlap" in arg else 4
        assert config.tokenizer.chunks == (17, overlap)
        assert config.data.buckets[-1][:3] == (size, 192, 320) == config.sample.size
        count = 1 + (size - 17) // (17 - overlap)
        per_chunk = {"16": 2, "8": 3}[arg.partition("k=")[2].split(",")[0]] if "k=" in arg else 5
        assert count * per_chunk == latents
    assert configs.load("promag_dit:paper").tokenizer.chunks == ()
    with_places = configs.load("promag_dit:paper,stage=2,k=16,places=frame")
    assert with_places.generator.time_places == (2, 13, 16)
