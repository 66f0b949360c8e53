"""Rewards that learn from judged pairs of videos."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.judged_pairs import FPS, SIZE, reward_config, write_colour_pairs, write_pairs
from vidlatent.data.loader import make_loader
from vidlatent.data.sources.pairs import PairSource, read_pairs
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.run import evaluate_workdir
from vidlatent.losses.preference import FIRST, SECOND, TIE, UNKNOWN, preference_loss
from vidlatent.media.write import write_video
from vidlatent.rewards.pairs import PairJudge
from vidlatent.train.loop import train
from vidlatent.train.tasks.reward import RewardTask


def grey(level):
    return np.full((*SIZE, 3), level, np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three pairs, of which two share a video."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, level in (("a", 20), ("b", 90), ("c", 160), ("d", 230), ("e", 250)):
        write_video(folder / f"{name}.mp4", grey(level), FPS)
    rows = [("a", "b", "first"), ("b", "c", {"mps": "tie"}), ("d", "e", None)]
    rows = [
        {"first": f"{a}.mp4", "second": f"{b}.mp4", "prompt": f"{a} {b}", "preferred": judged}
        for a, b, judged in rows
    ]
    rows[0]["preferred"] = {"mps": "second"}
    rows[2]["preferred"] = {"mps": None}
    return write_pairs(folder, rows)


def load(config, split="whole"):
    data = config.data.to_dict()
    return make_loader(data, split=split, rule=PairJudge.spec.lengths, seed=0)


def test_both_videos_and_the_judgement(folder):
    config = reward_config(folder)
    config.data.buckets = ((*SIZE, 4),)
    with load(config) as loader:
        (batch,) = list(loader)
    assert batch["mask"].tolist() == [1, 1, 1, 0] and batch["caption"][:3] == ["a b", "b c", "d e"]
    levels = batch["video"][:3].mean((1, 2, 3, 4)), batch["other"][:3].mean((1, 2, 3, 4))
    np.testing.assert_allclose(levels, [[20, 90, 230], [90, 160, 250]], atol=3)
    assert batch["judged"][:3].tolist() == [[SECOND], [TIE], [UNKNOWN]]


def test_pairs_that_share_a_video_stay_together(folder):
    groups = [entry.group for entry in PairSource(str(folder)).entries()]
    assert groups[0] == groups[1] != groups[2]


def test_a_broken_video_leaves_out_its_pair(folder, tmp_path):
    (tmp_path / "a.mp4").symlink_to(folder / "a.mp4")
    (tmp_path / "b.mp4").symlink_to(folder / "b.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    rows = [{"first": "a.mp4", "second": x, "preferred": "tie"} for x in ("bad.mp4", "b.mp4", "no")]
    with load(reward_config(write_pairs(tmp_path, rows))) as loader:
        assert [clip.path for clip in loader.index] == ["2: a.mp4 | b.mp4"]
        assert {bad.path for bad in loader.report.clips} == {"1: a.mp4 | bad.mp4", "3: a.mp4 | no"}


def test_wrong_lists_are_said(tmp_path):
    with pytest.raises(VidlatentError, match="there is no .*pairs.jsonl: each of its lines is"):
        read_pairs(str(tmp_path / "pairs.jsonl"))
    good = {"first": "a", "second": "b", "preferred": "first"}
    for row in ({"first": "a"}, {**good, "preferred": "left"}, ["a", "b"]):
        with pytest.raises(VidlatentError, match="pairs.jsonl, line 2: each line is"):
            PairSource(str(write_pairs(tmp_path, [good, row])))
    mixed = [good, {**good, "preferred": {"vq": "tie"}}]
    with pytest.raises(VidlatentError, match="some lines judge by vq and others as a whole"):
        PairSource(str(write_pairs(tmp_path, mixed)))


def test_wrong_configs_are_said(folder):
    with pytest.raises(VidlatentError, match="name the one reward that is trained"):
        PairJudge(reward_config(folder, rewards__use=("motion",)))
    with pytest.raises(VidlatentError, match="a reward learns from judged pairs"):
        PairJudge(reward_config(folder, data__source="folder"))


def test_scores_are_named_or_not(folder, tmp_path):
    row = {"first": "a.mp4", "second": "b.mp4", "preferred": {"looks": "tie"}}
    with pytest.raises(VidlatentError, match="judges by 'looks': known: mps"):
        PairJudge(reward_config(write_pairs(tmp_path, [row])))


def test_loss_of_a_step(folder):
    """The mean over all pairs of the batch that are no padding; nobody's judgement counts 0."""
    config = reward_config(folder)
    config.data.buckets = ((*SIZE, 4),)
    task = RewardTask(config)
    with load(config) as loader:
        batch = task.read_batch(next(iter(loader)))
    params = task.init(jax.random.key(0))["params"]
    loss, report = task.compute_loss(params, batch, {})
    found = task.judge.score(params, batch)
    a, b = (np.asarray(found[side])[:3, 0] for side in ("first", "second"))
    each = preference_loss(jnp.array(a), jnp.array(b), jnp.array([SECOND, TIE, UNKNOWN]))
    np.testing.assert_allclose(loss, each.sum() / 3, rtol=1e-5)
    assert report["accuracy"] == float(b[0] > a[0])
    assert FIRST not in np.asarray(found["judged"])


@pytest.mark.slow
def test_a_reward_learns_what_was_judged(tmp_path):
    """Held-out pairs, a folder scored by the run, and adapters that go on from it."""
    pairs = write_colour_pairs(tmp_path / "pairs", 200)
    config = reward_config(pairs, train__steps=100, train__log_every=50)
    optim = {"lr": 1e-3, "warmup_steps": 20, "schedule": "constant", "ema_decay": 0.98}
    config.optim.update(optim)
    run = tmp_path / "run"
    assert train(config, run) == 0
    trained = json.loads((run / "eval" / "step_100" / "scores.json").read_text())
    assert trained["scores"]["accuracy"] > 0.9 and trained["scores"]["clips"] > 20
    assert evaluate_workdir(config, run, -1, str(tmp_path / "again")) == 0
    again = json.loads((tmp_path / "again" / "scores.json").read_text())
    assert again["scores"] == pytest.approx(trained["scores"], rel=1e-4)

    # By its workdir it is a reward like any other: the preferred videos score higher.
    rows = [json.loads(line) for line in (pairs / "pairs.jsonl").read_text().split("\n")]
    config.networks.mps_tiny, config.eval.rewards = str(run), ("mps",)
    means, other = [], {"first": "second", "second": "first"}
    for kind in (True, False):
        made = tmp_path / f"made_{kind}"
        made.mkdir()
        captions = []
        for row in rows[:12]:
            name = row[row["preferred"] if kind else other[row["preferred"]]]
            (made / name).symlink_to(pairs / name)
            captions.append(json.dumps({"file": name, "caption": row["prompt"]}))
        (made / "captions.jsonl").write_text("\n".join(captions))
        config.eval.samples = str(made)
        assert evaluate_workdir(config, run, -1, str(tmp_path / "scores")) == 0
        report = json.loads((tmp_path / "scores" / "rewards.json").read_text())
        means.append(report["folders"][0]["scores"]["mps"]["mean"])
    assert means[0] > means[1] + 1

    config.optim.lora.rank, config.train.init_from = 2, str(run)
    config.train.steps, config.optim.lr = 4, 0.0
    assert train(config, tmp_path / "adapted") == 0
    adapted = json.loads((tmp_path / "adapted" / "eval" / "step_4" / "scores.json").read_text())
    assert adapted["scores"]["accuracy"] == trained["scores"]["accuracy"]


def test_scores_that_nobody_judged_are_left_out(folder, tmp_path):
    """So that the mean of VideoAlign's loss is over its three scores, not over their sum too."""
    names = ("videoalign_ta", "videoalign_vq")
    row = {"first": "a.mp4", "second": "b.mp4", "preferred": dict.fromkeys(names, "tie")}
    config = reward_config(write_pairs(tmp_path, [row]), rewards__use=("videoalign",))
    config.rewards.videoalign.network = "videoalign_tiny"
    config.rewards.videoalign.tokenizer = "words"
    judge = PairJudge(config)
    # In the reward's order, each from its own column.
    assert judge.names == ("videoalign_vq", "videoalign_ta")
    assert judge._columns == [1, 0]
