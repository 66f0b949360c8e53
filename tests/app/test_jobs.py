"""What the page does: a video restored within bounds, a video made, mistakes in one sentence."""

import numpy as np
import pytest

from tests.helpers.tiny_tokenizers import tokenizer
from vidlatent.app.jobs import Bounds, make_video, restore
from vidlatent.codec.codec import Codec
from vidlatent.codec.preview import Preview
from vidlatent.errors import VidlatentError
from vidlatent.media.decode import iter_frames
from vidlatent.media.write import write_video
from vidlatent.metrics.psnr import psnr


@pytest.fixture(scope="module")
def codec():
    return Codec(*tokenizer("fsae"))


@pytest.fixture
def clip(tmp_path):
    rng = np.random.default_rng(0)
    plain = rng.integers(0, 256, (7, 1, 1, 3), np.uint8)
    write_video(tmp_path / "clip.mp4", np.broadcast_to(plain, (7, 24, 32, 3)), 10)
    return str(tmp_path / "clip.mp4")


def frames_of(path):
    return np.stack(list(iter_frames(str(path))[1]))


def test_a_video_is_restored_within_the_bounds(codec, clip, tmp_path):
    spec = codec.spec
    map_ = np.zeros((spec.channels + 1, 3), np.float32)
    preview = Preview(spec, map_, np.tile(map_, spec.t))
    told = []
    made = restore(
        codec, clip, tmp_path, Bounds(frames=5, height=16), preview, lambda *a: told.append(a)
    )
    assert frames_of(made.video).shape == (5, 16, 22, 3)
    assert frames_of(made.both).shape[0] == 5 and frames_of(made.preview).shape[0] == 5
    # The latent file holds what was written.
    size = made.latent.stat().st_size
    assert codec.decompress(made.latent).shape == (5, 16, 22, 3)
    assert len(made.pairs) == 5 and made.pairs[0][0].shape == (16, 22, 3)
    assert f"**{size:,} bytes**" in made.facts[0]
    pairs = [np.stack(part)[None] for part in zip(*made.pairs, strict=True)]
    assert f"**{float(psnr(*pairs).mean()):.2f} dB**" in made.facts[1]
    assert made.facts[2:] == [
        "Scaled from 32x24 to 22x16.",
        "The first 5 of 7 frames; the sound is left out.",
    ]
    assert [share for share, _ in told] == sorted(share for share, _ in told)


@pytest.mark.parametrize(
    ("content", "bounds", "says"),
    [
        (b"not a video at all", Bounds(), "cannot be read as a video"),
        (b"\0" * 2_000_001, Bounds(megabytes=2), "at most 2 are taken"),
        (b"", Bounds(), "cannot be read as a video"),
    ],
)
def test_what_is_no_video_is_one_sentence(codec, tmp_path, content, bounds, says):
    (tmp_path / "upload.mp4").write_bytes(content)
    with pytest.raises(VidlatentError, match=says):
        restore(codec, str(tmp_path / "upload.mp4"), tmp_path, bounds)


class Fake:
    """A generator whose frames tell what it was asked for."""

    size = (4, 16, 16)

    def stream(self, prompt, image, seed, steps):
        if prompt == "unknown":
            raise VidlatentError("there is no class 'unknown'.")
        self.asked = prompt, image, seed, steps
        return iter([np.full((2, 16, 16, 3), 40, np.uint8), np.full((2, 16, 16, 3), 200, np.uint8)])


def test_a_video_is_made(tmp_path):
    fake, told = Fake(), []
    path = make_video(fake, "red", None, 3, 0, tmp_path, 8.0, lambda *a: told.append(a))
    assert fake.asked == ("red", None, 3, None)
    video = frames_of(path)
    assert video.shape == (4, 16, 16, 3)
    assert np.abs(video.mean((1, 2, 3)) - [40, 40, 200, 200]).max() < 4
    assert told[-1] == (1.0, "decoded 4 of 4 frames")
    with pytest.raises(VidlatentError, match="no class"):
        make_video(fake, "unknown", None, 0, 0, tmp_path, 8.0)
