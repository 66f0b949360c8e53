"""What every registered reward promises (``vidlatent/rewards/base.py``), and the toy rewards."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.config import get_defaults
from vidlatent.errors import VidlatentError
from vidlatent.models.frozen import load_frozen
from vidlatent.parallel.mesh import make_mesh
from vidlatent.rewards import REWARDS, ChosenRewards, PixelReward, RewardEntry, make_rewards

# Reward -> options with which it can be tried without weights.
OPTIONS = {
    "mps": {"network": "mps_tiny", "tokenizer": "words"},
    "videoalign": {
        "network": "videoalign_tiny",
        "tokenizer": "words",
        "least_pixels": 28 * 28,
        "most_pixels": 2 * 28 * 28,
    },
}
PROMPTS = ("a red circle moving left", "a blue square moving up")
SHAPE, FPS = (2, 5, 24, 32, 3), 8.0


def config_of(**rewards):
    config = get_defaults("rewards", "test")
    for name, options in rewards.items():
        config.rewards[name].update(options)
    return config


class Tried:
    """A reward with its weights, its scores as a function of the videos."""

    def __init__(self, name, dtype=jnp.float32):
        config = config_of(**{name: OPTIONS[name]} if name in OPTIONS else {})
        self.chosen = make_rewards((name,), config, dtype=dtype)
        self.reward = self.chosen.rewards[name]
        self.frozen = load_frozen(self.chosen.frozen, make_mesh(config.mesh))
        self._score = jax.jit(self.chosen.score, static_argnames="fps")

    def __call__(self, video, prompts=PROMPTS, fps=FPS, first=True):
        encoded = self.chosen.encode(self.frozen, self.chosen.tokenize(prompts[: len(video)]))
        given = video[:, 0] if first else None
        return self._score(self.frozen, video, encoded, first=given, fps=fps)

    def sum(self, video):
        return sum(x.sum() for x in self(video, first=False).values())


# An experiment may have registered one of its own in this process, which promises less.
OWN = [name for name in REWARDS.names() if name != "chance"]


@pytest.fixture(scope="module", params=OWN)
def tried(request):
    return Tried(request.param)


@pytest.fixture(scope="module")
def video():
    return np.random.default_rng(0).uniform(-0.9, 0.9, SHAPE).astype(np.float32)


def test_scores_by_name(tried, video):
    scores = tried(video)
    # A compiled function returns a dictionary by the order of the names.
    assert sorted(scores) == sorted(tried.reward.names) and tried.reward.names == tried.chosen.names
    for value in scores.values():
        assert value.shape == (2,) and value.dtype == jnp.float32
        assert np.isfinite(value).all() and value[0] != value[1]


def test_scores_are_float32_in_half_precision(tried, video):
    (name,) = tried.chosen.rewards
    for value in Tried(name, jnp.bfloat16)(jnp.asarray(video, jnp.bfloat16)).values():
        assert value.dtype == jnp.float32 and np.isfinite(value).all()


def test_batch_mates_do_not_matter(tried, video):
    together = tried(video)
    # With another mate the very same number, by the same program; alone, up to rounding.
    other = tried(np.stack([video[0], 0.3 * video[1]]), (PROMPTS[0], "a green square"))
    for row in range(2):
        alone = tried(video[row : row + 1], PROMPTS[row : row + 1])
        for name, value in alone.items():
            np.testing.assert_allclose(value[0], together[name][row], rtol=5e-5)
    for name, value in other.items():
        assert value[0] == together[name][0] and value[1] != together[name][1]


def test_gradients_reach_what_is_seen(tried, video):
    grad = np.asarray(jax.grad(tried.sum)(video))
    assert np.isfinite(grad).all()
    seen = tried.reward.seen(*SHAPE[1:4], FPS)
    assert seen.shape == SHAPE[1:4] and seen.any()
    assert (grad[:, ~seen] == 0).all()
    # A pixel may lie on a ridge by chance; that most of those seen do not is what counts.
    assert (grad[:, seen] != 0).mean() > 0.95


def test_gradients_by_finite_differences(tried, video):
    rng = np.random.default_rng(1)
    grad = np.asarray(jax.grad(tried.sum)(video), np.float64)
    for _ in range(3):
        # Along the gradient, so that the change is large against rounding, and off it.
        way = grad / np.linalg.norm(grad) + rng.normal(size=SHAPE) / np.sqrt(grad.size)
        step = 1e-2 * way
        change = float(tried.sum(np.float32(video + step)) - tried.sum(np.float32(video - step)))
        np.testing.assert_allclose(change, 2 * (grad * step).sum(), rtol=2e-2)


def test_prompts_matter_where_they_are_read(tried, video):
    there, swapped = tried(video), tried(video, PROMPTS[::-1])
    same = all(np.array_equal(there[name], swapped[name]) for name in there)
    assert same != tried.reward.reads_prompt


# What follows is of single rewards, and of the reading of a config.


@pytest.fixture(scope="module")
def toys():
    return {name: Tried(name) for name in ("motion", "colour", "sharpness")}


def test_motion_is_the_change_in_a_second(toys):
    still = np.zeros(SHAPE, np.float32)
    rising = still + 0.1 * np.arange(SHAPE[1], dtype=np.float32)[None, :, None, None, None]
    # A tenth of [-1, 1] a frame is 0.05 of [0, 1]; the floor under the root adds 1e-6 to 2.5e-3.
    np.testing.assert_allclose(toys["motion"](rising)["motion"], FPS * 0.05, rtol=3e-4)
    np.testing.assert_allclose(toys["motion"](still)["motion"], FPS * 1e-3, rtol=1e-5)
    # Every other frame at half the rate: the same movement, the same score.
    half = toys["motion"](rising[:, ::2], fps=FPS / 2)["motion"]
    np.testing.assert_allclose(half, toys["motion"](rising)["motion"], rtol=3e-4)
    with pytest.raises(VidlatentError, match="a known frame rate"):
        toys["motion"](rising, fps=0.0)
    with pytest.raises(VidlatentError, match="two frames or more"):
        toys["motion"](rising[:, :1])


def test_colour_takes_the_prompts_colour(toys):
    red = np.broadcast_to(np.float32((225, 40, 40)) / 127.5 - 1, SHAPE)
    score = toys["colour"](red)["colour"]
    np.testing.assert_allclose(score[0], 1, rtol=1e-6)
    assert score[1] < 1e-3
    half = np.where(np.arange(32)[:, None] < 16, red, -red)
    # Its negative is 1.3 away from red: exp(-1.3^2 / (2 0.25^2)) = 1e-6.
    np.testing.assert_allclose(toys["colour"](half)["colour"][0], 0.5, rtol=1e-4)
    with pytest.raises(VidlatentError, match="none of red, green, blue, yellow in the prompt 'a"):
        toys["colour"](red, ("a circle", "a square"))


def test_colour_by_closeness_has_a_gradient_far_away():
    config = config_of(colour={"colour": "blue", "measure": "closeness"})
    chosen = make_rewards(("colour",), config)
    assert not chosen.reads_prompt
    prompts = chosen.encode({}, chosen.tokenize(["", ""]))
    grad = jax.grad(lambda x: chosen.score({}, x, prompts)["colour"].sum())(jnp.ones(SHAPE))
    # 1 - sum (x - c)^2 / (3 N) with x in [0, 1]: (c - x) / (3 N) by [-1, 1].
    expected = (np.float32((50, 90, 235)) / 255 - 1) / (3 * np.prod(SHAPE[1:4]))
    np.testing.assert_allclose(grad, np.broadcast_to(expected, SHAPE), rtol=1e-5)


def test_sharpness_falls_with_blur(toys, video):
    blurred = (video[:, :, 1:] + video[:, :, :-1]) / 2
    sharp = toys["sharpness"]
    assert (sharp(blurred)["sharpness"] < 0.9 * sharp(video)["sharpness"]).all()
    with pytest.raises(VidlatentError, match="3x3 pixels or more; it was given"):
        sharp(video[:, :, :2])


def test_a_video_of_another_shape_is_refused(toys, video):
    for reward in toys.values():
        with pytest.raises(VidlatentError, match="expected an array"):
            reward(video[:, 0], first=False)


def test_weights_of_scores():
    config = config_of()
    config.rewards.weights = (("motion", 2.0),)
    chosen = make_rewards(("motion", "sharpness"), config)
    scores = {"motion": jnp.array([1.0, 2.0]), "sharpness": jnp.array([5.0, 7.0])}
    np.testing.assert_array_equal(chosen.sum(scores), [2.0, 4.0])
    config.rewards.weights = ()
    chosen = make_rewards(("motion", "sharpness"), config)
    np.testing.assert_array_equal(chosen.sum(scores), [6.0, 9.0])
    config.rewards.weights = (("motions", 1.0),)
    with pytest.raises(VidlatentError, match="no reward gives 'motions': did you mean 'motion'"):
        make_rewards(("motion",), config)


def test_wrong_names_are_said():
    with pytest.raises(VidlatentError, match="unknown reward 'motoin': did you mean 'motion'"):
        make_rewards(("motoin",), config_of())
    with pytest.raises(VidlatentError, match="no reward is named: give config.rewards.use"):
        make_rewards((), config_of())
    config = config_of()
    config.rewards.colour.hue = 1.0
    with pytest.raises(VidlatentError, match="unknown option config.rewards.colour.hue: known"):
        make_rewards(("colour",), config)
    with pytest.raises(VidlatentError, match="unknown 'redd': did you mean 'red'"):
        make_rewards(("colour",), config_of(colour={"colour": "redd"}))


def test_the_pages_example(monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    (code,) = re.findall(r"```python\n# my_rewards/__init__.py\n(.*?)```", page, re.DOTALL)
    monkeypatch.setattr(REWARDS, "_entries", dict(REWARDS._entries))
    exec(compile(code, "my_rewards", "exec"), {})
    config = config_of()
    config.rewards.brightness = {"level": 0.25}
    chosen = make_rewards(("brightness",), config)
    prompts = chosen.encode({}, chosen.tokenize(["", ""]))
    scores = chosen.score({}, np.zeros(SHAPE, np.float32), prompts)
    np.testing.assert_allclose(scores["brightness"], -(0.25**2))


class Given(PixelReward):
    """For tests: compares with the first frame, under a name of choice."""

    reads_first, random = True, True

    def __init__(self, name):
        self.names = (name,)

    def score(self, params, inputs):
        change = inputs.video - inputs.first[:, None]
        return {self.names[0]: -jnp.abs(change).mean((1, 2, 3, 4))}


def test_a_first_frame_is_asked_for(video):
    chosen = ChosenRewards({"given": Given("likeness")}, {})
    prompts = chosen.encode({}, chosen.tokenize(["", ""]))
    with pytest.raises(VidlatentError, match="given compares with the first frame"):
        chosen.score({}, video, prompts)
    scores = chosen.score({}, video, prompts, first=video[:, 0])
    assert tuple(chosen.label(scores)) == ("likeness_random",)
    with pytest.raises(VidlatentError, match="two rewards give a score called 'likeness'"):
        ChosenRewards({"a": Given("likeness"), "b": Given("likeness")}, {})


def test_a_reward_of_another_package(monkeypatch, video):
    monkeypatch.setattr(REWARDS, "_entries", dict(REWARDS._entries))
    REWARDS.register("likeness", RewardEntry(lambda setting, scale=1.0: Given("likeness"), "test"))
    config = config_of()
    config.rewards.likeness = {"scale": 2.0}
    chosen = make_rewards(("likeness", "motion"), config)
    prompts = chosen.encode({}, chosen.tokenize(["", ""]))
    assert set(chosen.score({}, video, prompts, first=video[:, 0], fps=FPS)) == set(chosen.names)
