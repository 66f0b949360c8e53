"""Frames between decoded ones: asked for by name, read, and scored with what was decoded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vidlatent.config import get_defaults
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.protocols import run as protocols_run
from vidlatent.evaluate.protocols.definitions import PROTOCOLS, Protocol, ProtocolMetric
from vidlatent.evaluate.protocols.paper_tables import PaperRow
from vidlatent.media.decode import read_window
from vidlatent.media.errors import Limits
from vidlatent.media.write import write_video
from vidlatent.models.tokenizers.base import Posterior
from vidlatent.parallel.mesh import make_mesh
from vidlatent.spec import FrameRule, LatentSpec

NAME, SIDE, FRAMES, KEEP = "tiny_interpolated", 16, 9, 2
LENGTHS = {"a": 9, "b": 12, "short": 8, "sub/c": 10}


class Stub:
    """Dims every frame by the same, and takes five frames at a time."""

    latent_spec = LatentSpec("stub", channels=3, t=4, h=4, w=4, rule=FrameRule(1, 4))

    def apply(self, variables, video):
        assert video.shape[1] == 5
        return video * variables["params"], Posterior(video[:, ::4, ::4, ::4])


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips")
    (path / "sub").mkdir()
    for seed, (name, frames) in enumerate(LENGTHS.items()):
        coarse = np.random.default_rng(seed).integers(0, 256, (frames, 4, 4, 3))
        video = np.kron(coarse, np.ones((1, 4, 4, 1), int)).astype(np.uint8)
        write_video(path / f"{name}.mp4", video, 24.0)
    return path


@pytest.fixture
def config(clips, tmp_path):
    if NAME not in PROTOCOLS.names():
        protocol = Protocol(
            name=NAME,
            source="A paper",
            frames=(FRAMES,),
            chunk=5,
            keep=KEEP,
            size=(SIDE, SIDE),
            place=0.0,
            metrics=(ProtocolMetric("psnr", "PSNR"),),
            paper_table=(PaperRow("Ours", "Nowhere", {"PSNR": 30.0}, own=True),),
            headline="Ours",
            open=("frames: the first",),
        )
        PROTOCOLS.register(NAME, protocol)
    config = get_defaults("stub", "demo")
    config.data.source, config.data.path = "samples", str(clips)
    config.eval.protocol, config.eval.interpolated = NAME, str(tmp_path / "between")
    return config


def carry_out(config):
    sizes = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
    mesh = make_mesh(sizes, jax.devices()[:1])
    params = jax.device_put(jnp.float32(0.8), jax.sharding.NamedSharding(mesh, jax.P()))
    with jax.set_mesh(mesh):
        return protocols_run.run_protocol(config, Stub(), mesh, lambda: (params, 7))


def dimmed(video):
    x = np.float32(0.8) * (np.float32(video) / np.float32(127.5) - 1)
    return np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)


def test_from_decoded_frames_to_scores(config, clips, tmp_path):
    folder = tmp_path / "between"
    first = folder / "a.mp4" / "000001.png"
    with pytest.raises(VidlatentError, match=f"lacks 12 frames of 3 clips, the first {first}"):
        carry_out(config)
    originals = {
        name: read_window(
            str(clips / f"{name}.mp4"), 0.0, FRAMES, 0.0, (SIDE, SIDE), (0.5, 0.5), Limits()
        )
        for name, frames in LENGTHS.items()
        if frames >= FRAMES
    }
    made = {}
    for name, video in originals.items():
        here = folder / f"{name}.mp4"
        # The decoded frames lie there, and nothing else.
        assert sorted(f.name for f in here.iterdir()) == [f"{n:06d}.png" for n in range(0, 9, 2)]
        keys = np.stack([np.asarray(Image.open(f)) for f in sorted(here.iterdir())])
        assert np.abs(keys.astype(int) - dimmed(video[::KEEP])).max() <= 1
        whole = np.repeat(keys, KEEP, axis=0)[:FRAMES].astype(np.uint16)
        whole[1::2] = (whole[0:-1:2] + whole[2::2]) // 2
        made[name] = whole.astype(np.uint8)
        for n in range(1, FRAMES, KEEP):
            Image.fromarray(made[name][n]).save(here / f"{n:06d}.png")
    result = carry_out(config)
    rows = {row["clip"]: row["psnr"] for row in result.evaluation.clips}
    assert set(rows) == {f"{name}.mp4" for name in originals}
    for name, video in originals.items():
        error = np.square(np.float64(video) - made[name]).mean(axis=(1, 2, 3))
        want = (10 * np.log10(255.0**2 / error)).mean()
        assert rows[f"{name}.mp4"] == pytest.approx(want, abs=1e-3)
    # What is decoded is decoded anew: files of those frames change nothing, the others all.
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(first.with_name("000002.png"))
    assert {r["clip"]: r["psnr"] for r in carry_out(config).evaluation.clips} == rows
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(first)
    again = {r["clip"]: r["psnr"] for r in carry_out(config).evaluation.clips}
    assert again["a.mp4"] != rows["a.mp4"] and again["b.mp4"] == rows["b.mp4"]
    # Frames that are no frames of this clip.
    Image.fromarray(np.zeros((SIDE, 2 * SIDE, 3), np.uint8)).save(first)
    with pytest.raises(VidlatentError, match="000001.png has 16x32 pixels.*have 16x16"):
        carry_out(config)
    first.write_bytes(b"no picture")
    with pytest.raises(VidlatentError, match="000001.png: the interpolated frame cannot be read"):
        carry_out(config)


def test_the_folder_is_asked_for(config):
    config.eval.interpolated = ""
    with pytest.raises(VidlatentError, match="config.eval.interpolated=FOLDER"):
        carry_out(config)


def test_the_papers_rows():
    for keep, frames in ((2, 33), (4, 65)):
        protocol = PROTOCOLS.get(f"promag_table3_{keep}x")
        assert (protocol.keep, protocol.frames) == (keep, (frames,))
        promag = LatentSpec("promag", channels=16, t=4, h=8, w=8, rule=FrameRule(1, 4))
        protocol.check(promag)
        (row,) = protocol.find_comparable(promag)
        assert row.model == f"ProMAG 4x, interpolated {keep}x"
