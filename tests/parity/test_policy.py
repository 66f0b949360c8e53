"""Random steps, likelihoods, windows, advantages and policy losses against the reference cases."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidlatent.diffusion.grids import make_grid, shift_levels
from vidlatent.diffusion.policy import (
    clipped_loss,
    group_advantages,
    mean_distance,
    ratio_distance,
)
from vidlatent.diffusion.sde import flow_sde, log_prob, still, take_mean
from vidlatent.diffusion.windows import make_windows

PARAMS = ("W", "u", "Q")


def read(reference, *parts):
    with np.load(reference(*parts)) as stored:
        return {name: stored[name] for name in stored.files}


def grid_of(sigmas):
    return make_grid(1000.0 * sigmas[:-1], 1.0 - sigmas, sigmas)


@pytest.fixture
def case(reference):
    with jax.enable_x64(True):
        yield read(reference, "grpo_refl", "io.npz")


def test_steps_of_flow_grpo(reference):
    """Means and samples in float64 of float32 inputs; the published ones are float32."""
    with jax.enable_x64(True):
        case = read(reference, "rl", "flow_sde_grpo.npz")
        # As stored; the published function takes 1 - sigma of the float32 levels too.
        grid = grid_of(case["sigmas"].astype(np.float64))
        random, plain = flow_sde(grid, "velocity", float(case["eta"])), still(grid, "velocity")
        for number in range(grid.steps):
            step = {
                name.split(".")[1]: jnp.asarray(value, jnp.float64)
                for name, value in case.items()
                if name.startswith(f"s{number}.")
            }
            weights = random.at(number, jnp.float64)
            means = {n: take_mean(weights, step["x"], step[f"v_{n}"]) for n in ("old", "new")}
            for name, mean in means.items():
                np.testing.assert_allclose(mean, step[f"mean_{name}"], atol=1e-6)
            np.testing.assert_allclose(weights.std, step["std"], rtol=1e-6)
            drawn = means["old"] + weights.std * step["noise"]
            np.testing.assert_allclose(drawn, step["prev_sample"], atol=1e-6)
            likely = {n: log_prob(step["prev_sample"], m, weights.std) for n, m in means.items()}
            # The published constant ln sqrt(2 pi) is float32, and cancels in the ratio.
            for name, value in likely.items():
                np.testing.assert_allclose(value, step[f"logp_{name}"], atol=1e-5)
            ratio = jnp.exp(likely["new"] - likely["old"])
            np.testing.assert_allclose(ratio, step["ratio"], rtol=1e-5)
            kl = mean_distance(means["new"], means["old"], weights.std)
            # A square of the difference of nearly equal float32 means.
            np.testing.assert_allclose(kl, step["kl_new_old"], rtol=1e-4)
            euler = take_mean(plain.at(number, jnp.float64), step["x"], step["v_old"])
            np.testing.assert_allclose(euler, step["ode_prev"], atol=1e-6)


def test_advantages_and_loss_of_flow_grpo(reference):
    with jax.enable_x64(True):
        case = read(reference, "rl", "flow_sde_grpo.npz")
        rewards = jnp.asarray(case["rewards"], jnp.float64)[None, :, None]
        found, _ = group_advantages(rewards, (1.0,))
        np.testing.assert_allclose(found[0], case["advantages_unbiased_std"], atol=1e-6)
        other, _ = group_advantages(rewards, (2.0,), unbiased=False, eps=1e-4)
        np.testing.assert_allclose(other[0], case["advantages_population_std_eps1e-4"], atol=1e-6)
        step = f"s{int(case['policy_loss_step_index'])}"
        log_ratio = jnp.asarray(case[f"{step}.logp_new"] - case[f"{step}.logp_old"])
        # The README's clip range and greatest advantage.
        loss = clipped_loss(log_ratio, found[0], 1e-4, 5.0).mean()
        np.testing.assert_allclose(loss, case["policy_loss_step_mid"], atol=1e-6)


def network(params, z, sigma, cond):
    return z @ params["W"] + sigma * params["u"] + (cond @ params["Q"])[:, None, :]


def params_of(case, name):
    return {key: jnp.asarray(case[f"{name}.{key}"]) for key in PARAMS}


def window_of(case):
    first, size = int(case["window_start"]), int(case["window_size"])
    return range(first, first + size)


def likelihoods(case, params):
    """Log-likelihoods ``[B, w]`` of the stored trajectory, and the means of its steps."""
    steps = flow_sde(grid_of(case["sigmas"]), "velocity", float(case["eta"]))
    means, likely = [], []
    for index in window_of(case):
        z, sigma = jnp.asarray(case["trajectory"][index]), case["sigmas"][index]
        mean = take_mean(steps.at(index, jnp.float64), z, network(params, z, sigma, case["cond"]))
        means.append(mean)
        likely.append(log_prob(case["trajectory"][index + 1], mean, steps.std[index]))
    return jnp.stack(likely, axis=1), means, steps


def advantages_of(case):
    groups, size = int(case["num_prompts"]), int(case["group_size"])
    rewards = jnp.asarray(case["rewards"]).reshape(groups, size, -1)
    found, each = group_advantages(rewards, (1.0,) * rewards.shape[-1])
    return found.reshape(-1), each.reshape(-1, rewards.shape[-1])


def test_the_trajectory_of_a_mixed_sampler(case):
    """Random steps in the window, Euler's outside; the grid is the shifted one."""
    count = int(case["T"])
    levels = shift_levels(1.0 - np.arange(count + 1) / count, float(case["shift"]))
    np.testing.assert_allclose(levels, case["sigmas"], atol=1e-15)
    grid, params = grid_of(case["sigmas"]), params_of(case, "params_old")
    random = flow_sde(grid, "velocity", float(case["eta"]))
    plain, z = still(grid, "velocity"), jnp.asarray(case["z_init"])
    for index in range(count):
        np.testing.assert_allclose(z, case["trajectory"][index], rtol=1e-9, atol=1e-12)
        output = network(params, z, case["sigmas"][index], case["cond"])
        place = index - int(case["window_start"])
        if index in window_of(case):
            weights = random.at(index, jnp.float64)
            mean = take_mean(weights, z, output)
            np.testing.assert_allclose(mean, case[f"sde{index}.mean"], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(weights.std, case[f"sde{index}.std"], rtol=1e-12)
            np.testing.assert_allclose(weights.spread, case[f"sde{index}.s_t"], rtol=1e-12)
            z = mean + weights.std * case["noise"][place]
        else:
            z = take_mean(plain.at(index, jnp.float64), z, output)
    np.testing.assert_allclose(z, case["x_final"], rtol=1e-9, atol=1e-12)
    likely, _, _ = likelihoods(case, params)
    np.testing.assert_allclose(likely, case["logp_old"], rtol=1e-9)
    rewards = [
        -np.square(np.asarray(z) - target).mean(axis=(1, 2)) for target in case["reward_targets"]
    ]
    np.testing.assert_allclose(np.stack(rewards, axis=1), case["rewards"], rtol=1e-9)


def test_advantages_of_several_rewards(case):
    found, each = advantages_of(case)
    np.testing.assert_allclose(each, case["advantage_per_reward"], rtol=1e-9)
    np.testing.assert_allclose(found, case["advantages"], rtol=1e-9)


@pytest.mark.parametrize("name", ["old", "new"])
def test_loss_gradient_and_distances(case, name):
    advantage, _ = advantages_of(case)
    clip, most = float(case["clip_range"]), float(case["adv_clip"])

    def loss(params):
        log_ratio = likelihoods(case, params)[0] - case["logp_old"]
        return clipped_loss(log_ratio, advantage[:, None], clip, most).mean(), log_ratio

    params = params_of(case, f"params_{name}")
    (value, log_ratio), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    at = f"at_{name}"
    np.testing.assert_allclose(value, case[f"{at}.loss"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(log_ratio + case["logp_old"], case[f"{at}.logp"], rtol=1e-9)
    np.testing.assert_allclose(jnp.exp(log_ratio), case[f"{at}.ratio"], rtol=1e-9)
    for key in PARAMS:
        np.testing.assert_allclose(gradient[key], case[f"{at}.grad.{key}"], rtol=1e-9, atol=1e-13)
    kl = ratio_distance(log_ratio).mean()
    np.testing.assert_allclose(kl, case[f"{at}.kl_mixgrpo"], rtol=1e-9, atol=1e-15)
    old = likelihoods(case, params_of(case, "params_old"))[1]

    def apart(params, kind):
        _, means, steps = likelihoods(case, params)
        scale = getattr(steps, kind)
        each = [
            mean_distance(mean, before, scale[index]).mean()
            for mean, before, index in zip(means, old, window_of(case), strict=True)
        ]
        return sum(each) / len(each)

    for kind, stored in (("spread", "kl_flowgrpo_over_s2"), ("std", "kl_over_std2")):
        np.testing.assert_allclose(
            apart(params, kind), case[f"{at}.{stored}"], rtol=1e-9, atol=1e-15
        )
    if name == "new":
        gradient = jax.grad(lambda p: apart(p, "spread"))(params)
        for key in PARAMS:
            stored = case[f"at_new.grad_kl_flowgrpo_over_s2.{key}"]
            np.testing.assert_allclose(gradient[key], stored, rtol=1e-9, atol=1e-13)
        out = np.asarray(jnp.abs(jnp.exp(log_ratio) - 1.0) > clip)
        np.testing.assert_allclose(out.mean(), case["at_new.clip_fraction"], rtol=1e-12)


def test_the_update_that_follows(case):
    """Norm clipping and AdamW at the README's settings, from the stored gradient."""
    gradient = {key: jnp.asarray(case[f"at_new.grad.{key}"]) for key in PARAMS}
    np.testing.assert_allclose(optax.global_norm(gradient), case["at_new.grad_norm"], rtol=1e-9)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-2, 0.9, 0.999, 1e-8, weight_decay=1e-4)
    )
    params = params_of(case, "params_new")
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    for key in PARAMS:
        np.testing.assert_allclose(after[key], case[f"after_adamw.{key}"], rtol=1e-9)


def runs_of(table):
    """(steps of the window, iterations) one after another; the last one may be cut off."""
    rows = [tuple(int(i) for i in row if i >= 0) for row in table]
    return [(window, len(list(same))) for window, same in itertools.groupby(rows)]


@pytest.mark.parametrize("name", ["progressive_overlap", "progressive_overlap_short",
                                  "progressive_blocks", "exp_decay"])  # fmt: skip
def test_windows_of_the_published_class(case, name):
    """Size, stay and number of steps are read off the table; so is how stays shrink."""
    table = case[f"window_{name}"]
    runs = runs_of(table)
    size, most = table.shape[1], int(table.max()) + 1
    stay = runs[0][1]
    options = {"stay": stay, "end": "published", "stride": runs[1][0][0] - runs[0][0][0]}
    if name == "exp_decay":
        options |= {"order": "decaying", **fit_decay(runs, stay)}
    windows = make_windows(most + 2, size, **options)
    key = jax.random.key(0)
    starts, lengths = jax.vmap(lambda i: windows.at(i, key))(jnp.arange(len(table)))
    found = [
        [s + k if k < n else -1 for k in range(size)]
        for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(found, table)


def fit_decay(runs, stay):
    """A rate and a threshold that explain the stays of the first pass."""
    first = list(itertools.takewhile(lambda run: run[0], runs))
    kept = [(window[0], count) for window, count in first]
    for threshold, rate in itertools.product(range(len(kept)), (0.05, 0.1, 0.15, 0.2, 0.3)):
        stays = [math.ceil(stay * math.exp(-rate * max(0, s - threshold))) for s, _ in kept]
        if stays == [count for _, count in kept]:
            return {"threshold": threshold, "decay": rate}
    raise AssertionError("no rate explains the table")
