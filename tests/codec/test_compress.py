"""Compressed files: what goes in comes out, and what none can hold is refused before it costs."""

import dataclasses
import functools
import io
import json
import lzma
import pickle
import tracemalloc
from fractions import Fraction

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import vidlatent
from tests.helpers.clips import pictures, write_clip
from tests.helpers.odd_files import ODD
from tests.helpers.tiny_tokenizers import MODELS, clip, tokenizer
from vidlatent import config as configs
from vidlatent.codec.carried import Carried, carry, unfold
from vidlatent.codec.codec import Codec
from vidlatent.codec.coded import Coded
from vidlatent.codec.latent_files import compress_video, decompress_video
from vidlatent.codec.load import open_codec
from vidlatent.codec.options import CodecOptions
from vidlatent.codec.packed import CODERS, DTYPES, PackedVideo, pack, unpack
from vidlatent.codec.progress import FrameProgress
from vidlatent.convert.run import _write_workdir
from vidlatent.errors import VidlatentError
from vidlatent.media.decode import iter_timed_frames
from vidlatent.models.load import abstract_params, model_of, smallest_video
from vidlatent.spec import FrameRule, LatentSpec
from vidlatent.weights.files import save_params

pytestmark = pytest.mark.usefixtures("quick")
SPEC = LatentSpec("toy", 3, 4, 8, 8, FrameRule(1, 4))
TIMES = (0.0, 0.1, 0.3, 0.4, 1.0)


def make_run(folder, seed):
    changes = {"model.width": "4", "model.multipliers": "(1, 1, 2)"}
    config = configs.load("configs/ivvae.py", changes)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: (rng.normal(size=x.shape) / 10).astype(x.dtype), abstract_params(model_of(config))
    )
    _write_workdir(config, folder, params)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with a tiny tokenizer that nobody trained."""
    return make_run(tmp_path_factory.mktemp("run"), 0)


@pytest.fixture(scope="module")
def codec(run):
    return vidlatent.load_codec(run)


def some_video(**changes):
    latent = np.random.default_rng(0).normal(size=(2, 2, 3, 3)).astype(np.float32)
    content = np.arange(13 * 20 * 3, dtype=np.uint8).reshape(1, 13, 20, 3)
    coded = Coded(latent, SPEC, 5, (13, 20), content, (5, 1), "ab" * 32, TIMES, "")
    return PackedVideo(dataclasses.replace(coded, **changes), Fraction(30000, 1001))


@pytest.fixture
def opened(codec, monkeypatch):
    """Both modes work with one codec, which is compiled once."""
    monkeypatch.setattr("vidlatent.codec.latent_files.open_codec", lambda *arguments: codec)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_latent_is_the_rounded_one_bit_by_bit(dtype, coder):
    video = some_video()
    again = unpack(pack(video, dtype, coder))
    wanted = video.coded.latent.astype(DTYPES[dtype]).astype(np.float32)
    assert again.coded.latent.dtype == np.float32
    np.testing.assert_array_equal(again.coded.latent, wanted)
    assert again.fps == video.fps
    for field in dataclasses.fields(Coded):
        if field.name != "latent":
            np.testing.assert_array_equal(
                getattr(again.coded, field.name), getattr(video.coded, field.name)
            )


def test_planes_of_bytes_pack_smooth_latents_smaller():
    smooth = np.cumsum(np.random.default_rng(0).normal(size=(16, 8, 8, 3)) / 50, axis=0)
    video = some_video(
        latent=smooth.astype(np.float32), frames=61, size=(64, 64), content=None, times=None
    )
    raw, packed = (unpack(pack(video, coder=coder)).parts["latent"] for coder in ("none", "lzma"))
    assert raw == 2 * smooth.size
    plain = lzma.compress(smooth.astype(np.float16).tobytes(), preset=6)
    assert packed < len(plain) < raw


def test_numbers_that_do_not_fit_the_dtype_are_named():
    large = some_video(latent=np.full((2, 2, 3, 3), 1e5, np.float32))
    with pytest.raises(VidlatentError, match=r"float16 cannot hold .* 1e\+05: take bfloat16"):
        pack(large)
    assert np.isfinite(unpack(pack(large, "bfloat16")).coded.latent).all()
    with pytest.raises(VidlatentError, match="did you mean 'bfloat16'"):
        pack(large, "bfloat61")


def change(data, **changes):
    """The bytes of a file with other fields, or other parts where bytes are given."""
    with np.load(io.BytesIO(data)) as stored:
        parts = dict(stored)
    about = json.loads(parts["about"].tobytes())
    for name, value in changes.items():
        if isinstance(value, bytes):
            parts[name] = np.frombuffer(value, np.uint8)
        else:
            about[name] = value
    if "about" not in changes:
        parts["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, **parts)
    return file.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "x"}, {"space": {}}, {"space": None}, {"shape": [2, 2, 3]}, {"shape": "abcd"},
        {"shape": [2, 2, 3, -3]}, {"shape": [3, 2, 3, 3]}, {"shape": [2, 2, 3, True]},
        {"shape": [1 << 40, 1 << 40, 3, 3]}, {"dtype": "float64"}, {"dtype": []},
        {"coder": "none"}, {"coder": "zlib"}, {"coder": "gzip"}, {"coder": None}, {"frames": 0},
        {"frames": 9}, {"frames": "x"}, {"size": [13]}, {"size": [13, 40]}, {"size": [1 << 20] * 2},
        {"chunks": [5]}, {"content": 2}, {"content": -1}, {"content": 10**12}, {"timed": None},
        {"fps": [0, 1]}, {"fps": [1, 0]}, {"fps": [1.5, 1]}, {"fps": 25}, {"origin": "x"},
        {"origin": 1e999}, {"sound": b"RIFF"}, {"latent": b""}, {"latent": b"junk"},
        {"content": b""}, {"times": b"\xfd7zXZ\0"}, {"about": b""}, {"about": b"[" * 100_000},
        {"about": b"[]"}, {"about": b"\xff"},
    ],
    ids=lambda changes: "-".join(f"{k}={v}"[:24] for k, v in changes.items()),
)  # fmt: skip
def test_what_no_compressed_video_holds_is_refused(changes):
    data = pack(some_video())
    if changes == {"timed": None}:  # times that are left out are none
        assert unpack(change(data, **changes)).coded.times is None
        return
    with pytest.raises(VidlatentError, match="<bytes> is no compressed video.*write it again by"):
        unpack(change(data, **changes))


def test_damaged_and_foreign_files_are_refused(tmp_path):
    data = pack(some_video())
    path = tmp_path / "a.vlat"
    for content in (b"", b"junk", data[:100], data[: len(data) // 2], data[:-1]):
        path.write_bytes(content)
        with pytest.raises(VidlatentError, match=r"a\.vlat is damaged or no"):
            unpack(path)
    with pytest.raises(VidlatentError, match="there is no file"):
        unpack(tmp_path / "none.vlat")
    some_video().coded.save(tmp_path / "saved.npz")
    with pytest.raises(VidlatentError, match="is no compressed video"):
        unpack(tmp_path / "saved.npz")
    with pytest.raises(VidlatentError, match="holds no coded video"):
        path.write_bytes(data)
        Coded.load(path)


def test_a_small_file_takes_little_memory():
    bomb = lzma.compress(bytes(96 << 20), preset=0)
    assert len(bomb) < 1 << 16
    data = pack(some_video())
    tracemalloc.start()
    try:
        for shape in ([1 << 12, 1 << 6, 64, 3], [2, 2, 3, 3]):
            with pytest.raises(VidlatentError, match="bytes for|bytes of the"):
                unpack(change(data, latent=bomb, shape=shape))
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_a_video_through_both_modes(run, codec, tmp_path, caplog):
    config = configs.read(run)
    source = write_clip(tmp_path / "in.mp4", pictures(11, 32, 48), rate=Fraction(30000, 1001))
    packed, restored = str(tmp_path / "new" / "a.vlat"), str(tmp_path / "out.mp4")
    with caplog.at_level("INFO", "absl"):
        assert compress_video(config, run, -1, source, packed) == 0
        assert decompress_video(config, run, -1, packed, restored) == 0
    size = (tmp_path / "new" / "a.vlat").stat().st_size
    assert f"bytes in, {size:,} bytes out" in caplog.text
    assert "bits a pixel" in caplog.text and "raw RGB" in caplog.text
    with av.open(restored) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)
    info, frames = iter_timed_frames(restored)
    assert (len(list(frames)), info.size) == (11, (32, 48))
    # Latents are those of the codec, rounded, and the same by every way in.
    wanted = codec.encode(source)
    rounded = wanted.latent.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(unpack(packed).coded.latent, rounded)
    np.testing.assert_array_equal(unpack(codec.compress(source)).coded.latent, rounded)
    again = codec.decompress(packed)
    np.testing.assert_array_equal(again, codec.decode(dataclasses.replace(wanted, latent=rounded)))


def test_frames_alone_need_a_rate(codec):
    with pytest.raises(VidlatentError, match="pass fps="):
        codec.compress(clip(6))
    data = codec.compress(clip(6), fps=12.5, dtype="bfloat16", coder="zlib")
    assert unpack(data).fps == Fraction(25, 2)
    assert codec.decompress(data).shape == clip(6).shape


@pytest.fixture(scope="module")
def carried(codec):
    return codec.compress(clip(6), fps=8, weights=True)


def test_a_file_with_weights_needs_no_run(codec, carried, tmp_path, caplog):
    plain = codec.compress(clip(6), fps=8)
    packed, restored = tmp_path / "a.vlat", tmp_path / "out.mp4"
    packed.write_bytes(carried)
    np.testing.assert_array_equal(vidlatent.decompress(packed), codec.decompress(plain))
    # A command with neither a workdir nor a config, and one with the encoder's parameters gone.
    alone = configs.load_defaults()
    assert decompress_video(alone, tmp_path, -1, str(packed), str(restored)) == 0
    assert restored.exists()
    inside = unpack(carried)
    names = set(safetensors.numpy.load(inside.decoder.weights))
    assert names and not [name for name in names if name.startswith("encoder/")]
    assert inside.parts["weights"] == len(inside.decoder.weights) < len(carried) - len(plain)
    with pytest.raises(VidlatentError, match="holds no decoder weights: give --workdir"):
        vidlatent.decompress(plain)
    with pytest.raises(VidlatentError, match="holds no decoder weights"):
        packed.write_bytes(plain)
        decompress_video(alone, tmp_path, -1, str(packed), str(restored))


def test_the_size_of_weights_is_told(run, opened, tmp_path, caplog):
    config = configs.read(run, {"compress.weights": "true"})
    source = write_clip(tmp_path / "in.mp4", pictures(6, 16, 24), rate=8)
    with caplog.at_level("INFO", "absl"):
        compress_video(config, run, -1, source, str(tmp_path / "a.vlat"))
    size = unpack(tmp_path / "a.vlat").parts["weights"]
    assert f"{size:,} of the bytes are the decoder's weights" in caplog.text
    assert "of the file without its sound and weights" in caplog.text
    bits = float(caplog.text.split(" bits a pixel")[0].split()[-1])
    assert 0 < bits < 8 * size / (6 * 16 * 24)


def test_weights_of_a_module_alone_cannot_be_named(codec):
    bare = Codec(codec.model, codec.params)
    with pytest.raises(VidlatentError, match="weights=True needs a codec of load_codec"):
        bare.compress(clip(1), fps=8, weights=True)


def other_decoder(data, **changes):
    about = json.loads(np.load(io.BytesIO(data))["about"].tobytes())["decoder"]
    return change(data, decoder={**about, **changes})


def test_damaged_and_foreign_weights_are_one_sentence(carried):
    tensors = safetensors.numpy.load(unpack(carried).decoder.weights)
    first = next(iter(tensors))
    fewer = {name: array for name, array in tensors.items() if name != first}
    wrong = [
        change(carried, weights=b"junk"),
        change(carried, weights=pickle.dumps(tensors)),
        change(carried, weights=safetensors.numpy.save(fewer)),
        change(carried, weights=safetensors.numpy.save({**fewer, first: tensors[first][None]})),
        other_decoder(carried, model={"name": "someones_own"}),
        other_decoder(carried, model={"name": "ivvae", "width": "os.system"}),
        other_decoder(carried, model=None),
        other_decoder(carried, compute="float8"),
        other_decoder(carried, codec={"groups": "many"}),
    ]
    for data in wrong:
        with pytest.raises(VidlatentError, match="give --workdir of the run that wrote it"):
            vidlatent.decompress(data)
    with pytest.raises(VidlatentError, match="damaged|write it again"):
        vidlatent.decompress(carried[: len(carried) * 2 // 3])
    middle = bytearray(carried)
    middle[carried.index(b"weights.npy") + 5000] ^= 1
    with pytest.raises(VidlatentError, match="is damaged or no"):
        vidlatent.decompress(bytes(middle))


@pytest.mark.parametrize(
    "name", ["promag_grown", "magvit2_pooled", "fsae_standard", "reducio_plain"]
)
def test_what_decoding_reads_is_carried(name):
    """Tracing without the other parameters finds all that it asks for."""
    model, params = tokenizer(name)
    config = configs.get_defaults(name, "")
    config.model = configs.ConfigDict(MODELS[name])
    inside = carry(model, config, params, CodecOptions.of())
    again, kept, _, _ = unfold(Carried(json.loads(json.dumps(inside.about)), inside.weights))
    assert again == model
    shape = smallest_video(model.latent_spec)

    def decode(params):
        run = functools.partial(model.apply, {"params": params})
        condition = run(jnp.zeros(shape), method="make_condition")
        latent = jnp.zeros((1, *model.latent_spec.latent_shape(shape[1:4])))
        return run(latent, condition=condition, method="decode")[0]

    jax.eval_shape(decode, kept)
    # Decoders that look at frame 0 encode it.
    whole = model.condition_kind == "first"
    assert (len(jax.tree.leaves(kept)) == len(jax.tree.leaves(params))) == whole


def test_weights_by_flag_or_start_need_no_workdir(run, codec, tmp_path):
    config = configs.read(run)
    file, source = tmp_path / "weights.safetensors", write_clip(tmp_path / "in.mp4", pictures(6))
    save_params(file, codec.params, family="ivvae")
    wanted = unpack(codec.compress(source)).coded.latent
    start = configs.read(run, {"train.init_from": str(file)})
    for settings, flags in ((config, {"from": str(file), "from_table": "auto"}), (start, {})):
        made = open_codec(settings, tmp_path / "none", -1, **flags)
        np.testing.assert_array_equal(unpack(made.compress(source)).coded.latent, wanted)
    with pytest.raises(VidlatentError, match="none"):
        open_codec(config, tmp_path / "none", -1)


def read_sound(path):
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        packets = [packet for packet in container.demux(track) if packet.size]
    with av.open(str(path)) as container:
        start = next(container.decode(video=0))
    times = [float(p.pts * p.time_base) - float(start.pts * start.time_base) for p in packets]
    return [bytes(p) for p in packets], times


@pytest.mark.parametrize("name", ["audio.mp4", "delayed.mkv"])
def test_sound_and_its_place_beside_the_pictures_are_kept(run, opened, name, tmp_path):
    config = configs.read(run)
    packed, restored = str(tmp_path / "a.vlat"), str(tmp_path / "out.mkv")
    compress_video(config, run, -1, str(ODD / name), packed)
    decompress_video(config, run, -1, packed, restored)
    (before, at), (after, now) = read_sound(ODD / name), read_sound(restored)
    assert after == before
    np.testing.assert_allclose(now, at, atol=3e-3)


def test_times_of_a_variable_rate_are_kept(run, opened, tmp_path):
    config = configs.read(run)
    source = str(ODD / "a.webp")
    packed, restored = str(tmp_path / "a.vlat"), str(tmp_path / "out.mp4")
    compress_video(config, run, -1, source, packed)
    wanted = [moment for moment, _ in iter_timed_frames(source)[1]]
    assert unpack(packed).coded.times == tuple(wanted)
    decompress_video(config, run, -1, packed, restored)
    found = [moment for moment, _ in iter_timed_frames(restored)[1]]
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_another_encoder_and_names_that_cannot_be(run, codec, tmp_path):
    other = make_run(tmp_path / "other", 1)
    packed, restored = tmp_path / "a.vlat", tmp_path / "out.mp4"
    packed.write_bytes(codec.compress(clip(6), fps=8))
    with pytest.raises(VidlatentError, match=r"with the encoder .* this codec's encoder is"):
        decompress_video(configs.read(other), other, -1, str(packed), str(restored))
    assert {path.name for path in tmp_path.iterdir()} == {"other", "a.vlat"}
    config = configs.read(run)
    with pytest.raises(VidlatentError, match="would overwrite the input"):
        compress_video(config, run, -1, str(packed), str(packed))
    with pytest.raises(VidlatentError, match=r"f32\.tiff cannot be compressed: unsupported"):
        compress_video(config, run, -1, str(ODD / "f32.tiff"), str(packed))


def test_values_of_cells_are_short(codec):
    assert repr(some_video().coded) == (
        "<Coded by toy: 5 frames of 20x13 in a latent of 2x2x3x3 float32, 1 content frames>"
    )
    assert repr(codec).startswith("<Codec of ivvae: 4x")
    assert "M parameters" in repr(codec) and len(repr(codec)) < 120
    assert len(repr(some_video())) < 300


def test_progress_is_a_line_where_there_is_no_terminal(caplog):
    with caplog.at_level("INFO", "absl"), FrameProgress("compress", 40, every=0.0) as progress:
        progress.advance(10)
        progress.advance(30)
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("compress: 10 of 40 frames, ") and said[1].endswith(" 0 s left")
