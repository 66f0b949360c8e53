"""Folders of videos scored by rewards: each video as it is, with its prompt."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.config import get_defaults
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.run import evaluate_workdir
from vidlatent.media.decode import iter_frames
from vidlatent.media.write import write_video
from vidlatent.rewards import make_rewards

SHAPES = ((5, 16, 16), (5, 16, 16), (4, 16, 32), (1, 24, 16))
PROMPTS = ("a red dot", "a blue dot", "a red dot", "nothing blue")


def write_folder(folder, seed=0, prompts=PROMPTS):
    rng = np.random.default_rng(seed)
    for number, shape in enumerate(SHAPES):
        video = np.repeat(rng.integers(20, 230, (*shape, 1)), 3, axis=-1).astype(np.uint8)
        write_video(folder / f"{number}.mp4", video, 8.0 if number else 12.0)
    rows = [{"file": f"{n}.mp4", "caption": text} for n, text in enumerate(prompts) if text]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("made"))


def config_of(folder, rewards, **keys):
    config = get_defaults("stub", "demo")
    config.eval.samples, config.eval.rewards = str(folder), rewards
    for key, value in keys.items():
        config.eval[key] = value
    return config


def judge(tmp_path, config):
    assert evaluate_workdir(config, tmp_path / "run", -1, str(tmp_path / "out")) == 0
    return json.loads((tmp_path / "out" / "rewards.json").read_text())


def expect(config, path, prompt, fps, frames=None):
    """The scores of one video, read whole."""
    rewards = make_rewards(config.eval.rewards, config)
    whole = np.stack(list(iter_frames(str(path))[1]))
    video = jnp.asarray(whole[:frames], jnp.float32)[None] / 127.5 - 1
    encoded = rewards.encode({}, rewards.tokenize([prompt]))
    scores = rewards.score({}, video, encoded, first=video[:, 0], fps=fps)
    return {name: float(value[0]) for name, value in scores.items()}


def test_each_video_as_it_is(folder, tmp_path):
    config = config_of(folder, ("colour", "sharpness"), batch=3)
    found = judge(tmp_path, config)
    (side,) = found["folders"]
    assert side["left_out"] == [] and side["videos_from"] == str(folder)
    for number, row in enumerate(side["videos"]):
        frames, height, width = SHAPES[number]
        assert (row["video"], row["prompt"]) == (f"{number}.mp4", PROMPTS[number])
        assert (row["frames"], row["size"]) == (frames, f"{height}x{width}")
        for name, value in expect(config, folder / f"{number}.mp4", PROMPTS[number], 8.0).items():
            assert row[name] == pytest.approx(value, rel=1e-5)
    values = [row["sharpness"] for row in side["videos"]]
    means = side["scores"]["sharpness"]
    assert means["mean"] == pytest.approx(np.mean(values))
    assert means["standard_error"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(4))
    assert found["options"]["colour"]["measure"] == "share"
    assert [row["reads"] for row in found["rewards"]] == ["video and prompt", "video"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png") == 2 and "by colour, best first" in page
    assert f"| {folder} | 4 |" in (tmp_path / "out" / "rewards.md").read_text()


def test_frame_rates_are_the_files_own_and_frames_can_be_cut(folder, tmp_path):
    for number in range(3):
        (tmp_path / "two" / "part").mkdir(parents=True, exist_ok=True)
        (tmp_path / "two" / "part" / f"{number}.mp4").symlink_to(folder / f"{number}.mp4")
    config = config_of(tmp_path / "two", ("motion",), frames=3)
    rows = judge(tmp_path, config)["folders"][0]["videos"]
    for number, row in enumerate(rows):
        fps = 8.0 if number else 12.0
        assert (row["frames"], row["fps"]) == (3, pytest.approx(fps))
        one = expect(config, folder / f"{number}.mp4", "", row["fps"], frames=3)
        assert row["motion"] == pytest.approx(one["motion"], rel=1e-5)


def test_two_folders_side_by_side_and_a_broken_video(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_folder(other, seed=1)
    (other / "broken.mp4").write_bytes(b"no video at all")
    (other / "contact_sheet.png").write_bytes(b"left by --mode=sample")
    found = judge(tmp_path, config_of(f"{folder},{other}", ("sharpness",), clips=3))
    assert [len(side["videos"]) for side in found["folders"]] == [3, 3]
    assert [row[0] for row in found["folders"][1]["left_out"]] == ["broken.mp4"]
    table = (tmp_path / "out" / "rewards.md").read_text()
    assert f"| {folder} | 3 |" in table and f"| {other} | 3 |" in table


def test_what_is_missing_is_said(folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    write_folder(bare, prompts=("a red dot", "", "a blue dot", ""))
    with pytest.raises(VidlatentError, match="2 of 4 videos have no prompt, such as 1.mp4, and co"):
        judge(tmp_path, config_of(bare, ("sharpness", "colour")))
    with pytest.raises(VidlatentError, match="'nowhere' is no folder"):
        judge(tmp_path, config_of("nowhere", ("sharpness",)))
    with pytest.raises(VidlatentError, match="motion needs two frames or more"):
        judge(tmp_path, config_of(folder, ("motion",)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(VidlatentError, match="holds no video to score"):
        judge(tmp_path, config_of(tmp_path / "empty", ("sharpness",)))
    with pytest.raises(VidlatentError, match="unknown reward 'sharp': did you mean 'sharpness'"):
        judge(tmp_path, config_of(folder, ("sharp",)))
