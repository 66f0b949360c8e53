"""Sets are cut in time and space as the codec cuts a video, and say how."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.encode_cases import encode, write_run
from tests.helpers.tiny_tokenizers import MODELS, tokenizer
from vidlatent import config as configs
from vidlatent.codec import auto
from vidlatent.codec.auto import count_clips
from vidlatent.codec.load import load_codec
from vidlatent.codec.programs import CodecPrograms
from vidlatent.data.renderers.shapes import make_shape_scene, render_shape
from vidlatent.data.sources.latents import LatentSource
from vidlatent.encode.for_generator import tokenizer_job
from vidlatent.errors import VidlatentError
from vidlatent.models.load import abstract_params
from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.cutting import make_latent_coder

COMMON = {
    "data_synthetic.clips": 3,
    "data_synthetic.height": 40,
    "data_synthetic.width": 40,
    "encode_windows": "one",
    "encode_dtype": "float32",
    "encode_shards": 1,
    "data_fps": 0,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    files = {"ivvae": "ivvae", "promag": "promag", "reducio": "reducio_vae"}
    for name, file in files.items():
        write_run(folder / name, configs.load(f"configs/{file}.py"), MODELS[name])
    return folder


def frames_of(window, length=13):
    scene = make_shape_scene(0, int(window.clip.rpartition("-")[2]), length)
    times = window.first + np.arange(window.frames)
    return render_shape(scene, times, window.height, window.width)


def compare(run, output, exact, **codec):
    """Every window of a set against ``Codec.encode`` of its frames; returns the source."""
    source, known = LatentSource(str(output)), load_codec(run, **codec)
    for window in source.windows:
        coded = known.encode(frames_of(window))
        latent = source.read_arrays(window.name)["latent"]
        if exact:
            np.testing.assert_array_equal(latent, coded.latent)
        else:
            np.testing.assert_allclose(latent, coded.latent, atol=1e-5)
        assert source.header.cut == known.cut == coded.cut
    return source


def test_tiles_of_a_set_are_those_of_the_codec_bit_for_bit(runs, tmp_path):
    """And another way of cutting is another set, and another space."""
    tiles = {"space": "tiles", "tile_pixels": 16}
    keys = {f"codec_{key}": value for key, value in tiles.items()}
    # Of one size a single window at a time; a second size in the same set stays whole.
    changes = {**COMMON, **keys, "data_buckets": "((8, 40, 24, 1), (4, 16, 16, 1))"}
    run, output = runs / "reducio", tmp_path / "set"
    encode(run, output, **changes)
    source = compare(run, output, True, **tiles)
    assert {window.size for window in source.windows} == {(8, 40, 24), (4, 16, 16)}
    assert source.header.cut == "tiles:16+4"
    assert source.header.source["cut"] == {"time": "whole", "space": "tiles:16+4"}
    window = next(window for window in source.windows if window.height == 40)
    whole = load_codec(run, space="whole").encode(frames_of(window))
    latent = source.read_arrays(window.name)["latent"]
    assert np.abs(whole.latent - latent).max() > 1e-3 and whole.cut == ""
    with pytest.raises(
        VidlatentError, match="cut not at all, the codec decodes those cut tiles:16"
    ):
        load_codec(run, **tiles).decode(whole)
    with pytest.raises(VidlatentError, match="begun with other settings .config.codec.space"):
        encode(run, output, **{**changes, "codec_tile_pixels": 32})
    # Several windows a call, in one shape less.
    encode(run, tmp_path / "many", **{**changes, "data_buckets": "((8, 40, 24, 3),)"})
    compare(run, tmp_path / "many", False, **tiles)


def test_pieces_of_a_stream_are_those_of_the_codec_bit_for_bit(runs, tmp_path):
    keys = {"codec_groups": 1, "data_buckets": "((13, 16, 24, 1), (1, 16, 16, 1))"}
    encode(runs / "ivvae", tmp_path / "set", **COMMON, **keys)
    source = compare(runs / "ivvae", tmp_path / "set", True, groups=1)
    assert source.header.cut == "" and source.header.spec.chunks is None
    # Draws do not depend on the pieces, nor on the batch.
    drawn = {}
    for groups, batch in ((1, 3), (3, 1)):
        keys = {"codec_groups": groups, "data_buckets": f"((13, 16, 24, {batch}),)"}
        output = tmp_path / f"drawn{groups}"
        encode(runs / "ivvae", output, **COMMON, **keys, encode_draws=2)
        source = LatentSource(str(output))
        drawn[groups] = {w.name: source.read_arrays(w.name)["latent"] for w in source.windows}
    assert len(drawn[1]) == 6
    for name, latent in drawn[1].items():
        np.testing.assert_allclose(latent, drawn[3][name], atol=1e-5)


@pytest.mark.parametrize("name", ["ivvae", pytest.param("reducio", marks=pytest.mark.slow)])
def test_clips_are_spread_over_devices(runs, tmp_path, name):
    """Caches and tiles too: each device has clips of its own."""
    keys = {"codec_groups": 1, "data_synthetic.clips": 4, "data_buckets": "((13, 16, 24, 4),)"}
    codec = {"groups": 1}
    if name == "reducio":
        codec = {"space": "tiles", "tile_pixels": 16}
        keys["data_buckets"] = "((8, 16, 24, 4),)"
        keys |= {f"codec_{key}": value for key, value in codec.items()}
    assert len(jax.devices()) >= 4
    encode(runs / name, tmp_path / "set", **{**COMMON, **keys})
    assert len(compare(runs / name, tmp_path / "set", False, **codec).windows) == 4


def test_chunks_of_the_codec_are_the_set_s(runs, tmp_path):
    """A window longer than a chunk; one that is not is coded whole, as a set of its own kind."""
    chunks = {"time": "chunks", "chunk_frames": 5, "overlap_frames": 2}
    keys = {f"codec_{key}": value for key, value in chunks.items()}
    encode(runs / "promag", tmp_path / "set", **COMMON, **keys, data_buckets="((8, 16, 16, 1),)")
    source = compare(runs / "promag", tmp_path / "set", True, **chunks)
    assert source.header.spec.chunks == (5, 2)
    encode(runs / "promag", tmp_path / "short", **COMMON, **keys, data_buckets="((5, 16, 16, 1),)")
    source = LatentSource(str(tmp_path / "short"))
    assert source.header.spec.chunks is None and source.header.source["cut"]["time"] == "whole"
    with pytest.raises(VidlatentError, match="9 frames do not fit the rule 1 or 5.3k"):
        encode(runs / "promag", tmp_path / "no", **COMMON, **keys, data_buckets="((9, 16, 16, 1),)")


@pytest.mark.parametrize("config", ["promag:paper", "promag:paper,stage=III", "promag:demo"])
def test_promag_codes_long_clips_in_its_chunks(config):
    """Appendix D: chunks of 17 frames, neighbours share 4."""
    codec = configs.load(config).codec
    assert (codec.time, codec.chunk_frames, codec.overlap_frames) == ("chunks", 17, 4)


@pytest.mark.parametrize(
    ("data", "flip"), [("ucf101", "random"), ("faces", "random"), ("sky", "none")]
)
def test_latte_s_sets_are_windows_as_it_draws_them(runs, data, flip):
    """Every third frame, random windows, mirrored but for SkyTimelapse, draws of the posterior."""
    config = configs.load(f"latte:paper,data={data}")
    job, _, _ = tokenizer_job(config, runs / "ivvae", -1)
    assert (job.data.fps, job.data.frame_interval, job.data.source) == (0, 3, "folder")
    encoding = job.encode
    assert (encoding.windows, encoding.windows_per_clip, encoding.flip) == ("random", 8, flip)
    assert encoding.draws == 1 and config.data.flip == (data != "sky")


def test_reducio_s_sets_are_those_of_its_released_extraction(runs, tmp_path):
    """Draws in published tiles; the tokenizer's cut holds unless the generator names another."""
    config = configs.load("reducio_vae:paper,start=random")
    assert config.encode.draws == 1 and config.codec.space == "tiles_published"
    assert make_latent_coder(build(config.model), config.codec).cut == "tiles_published:256+64"
    write_run(tmp_path / "run", config, MODELS["reducio"])
    dit = "reducio_dit:paper,stage=2"
    job, _, _ = tokenizer_job(configs.load(dit), tmp_path / "run", -1)
    assert job.codec.space == "tiles_published" and job.encode.draws == 1
    named = configs.load(dit, {"codec.space": "whole"})
    assert tokenizer_job(named, tmp_path / "run", -1)[0].codec.space == "whole"


def test_as_many_clips_at_a_time_as_fit(monkeypatch):
    model, params = tokenizer("ivvae")
    programs, shape = CodecPrograms(model.make_frame_coder()), (9, 64, 64)
    assert count_clips(programs, params, shape, (8, 2), 1000.0) == 8
    monkeypatch.setattr(auto, "_most", lambda *_: 1e30)
    need = auto.estimate_bytes(programs.coder, "encode", params, shape) / auto._SHARE / 2**30
    assert count_clips(programs, params, shape, (8, 2), 4.1 * need) == 8
    assert count_clips(programs, params, shape, (8, 2), 3.9 * need) == 4
    assert count_clips(programs, params, shape, (8, 2), 0.1 * need) == 2
    assert count_clips(programs, params, shape, (6, 1), 5.0 * need) == 3


def test_a_window_of_1024_pixels_takes_the_memory_of_a_tile():
    """Reducio at its published size, by the codec's own estimate; nothing is computed."""
    fields = configs.load("reducio_vae:paper").model
    model = build(fields, jnp.bfloat16)
    params = abstract_params(model)
    way = next(way for way in model.list_space_ways() if way.rule)
    tiled = way.make(configs.load("reducio_vae:demo").codec)
    whole, tiles = (
        auto.estimate_bytes(coder, "encode", params, (16, 1024, 1024)) / 2**30
        for coder in (model.make_frame_coder(), tiled)
    )
    print(f"whole {whole:.1f} GiB, tiles {tiles:.1f} GiB")
    assert tiles < whole / 6
