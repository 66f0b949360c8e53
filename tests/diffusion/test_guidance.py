"""Guidance, dropping conditions, and step caching."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.diffusion import Flow, make_sampler, sample
from vidlatent.diffusion.caching import CacheRule, cache_denoiser
from vidlatent.diffusion.guidance import (
    combine,
    count_evaluations,
    drop_masks,
    guidance_scales,
    guide,
    replace_dropped,
    rescale_guidance,
)
from vidlatent.errors import VidlatentError

LEVELS = np.array([1.0, 0.8, 0.5, 0.2])


def network(x, t, index, condition):
    """``[B, 3, 4]`` under a condition ``{"text": [B, 4]}``."""
    return jnp.tanh(x + condition["text"][:, None, :] * t[:, None, None] / 1000.0)


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32)
    conditions = [{"text": jnp.asarray(rng.standard_normal((2, 4)), jnp.float32)} for _ in "abc"]
    return x, jnp.array([900.0, 900.0]), conditions


def test_scales_0_and_1():
    """Scale 1 is the conditional velocity and 0 the unconditional one, exactly; where no step
    guides, the negative condition is not even looked at."""
    x, t, (negative, positive, _) = inputs()
    for scale, condition in ((0.0, negative), (1.0, positive)):
        scales = guidance_scales(LEVELS, scale)
        got = guide(network, [negative, positive], scales)(x, t, 1)
        np.testing.assert_allclose(got, network(x, t, 1, condition), atol=1e-7)
    calls = []
    counted = lambda *a: calls.append(1) or network(*a)  # noqa: E731
    guide(counted, [negative, positive], guidance_scales(LEVELS, 1.0))(x, t, 1)
    assert len(calls) == 1


def test_batched_is_one_after_another():
    """One batched call equals a call for each condition, for two and for three conditions."""
    x, t, conditions = inputs()
    for count, scale in ((2, 5.0), (3, (1.5, 7.0))):
        scales = guidance_scales(LEVELS, scale)
        one, two = (
            guide(network, conditions[:count], scales, batched=b)(x, t, 2) for b in (True, False)
        )
        np.testing.assert_allclose(one, two, atol=1e-6)
    outputs = [network(x, t, 2, c) for c in conditions]
    want = outputs[0] + 1.5 * (outputs[1] - outputs[0]) + 7.0 * (outputs[2] - outputs[1])
    np.testing.assert_allclose(one, want, rtol=1e-5, atol=1e-6)
    with pytest.raises(VidlatentError, match="3 conditions"):
        guide(network, conditions, guidance_scales(LEVELS, 5.0))


def test_interval():
    """The interval includes both ends; other steps evaluate only the positive condition."""
    scales = guidance_scales(LEVELS, 5.0, (0.5, 0.8))
    assert scales[:, 0].tolist() == [1.0, 5.0, 5.0, 1.0]
    assert guidance_scales(LEVELS, 5.0, (0.51, 0.79))[:, 0].tolist() == [1.0] * 4
    assert guidance_scales(LEVELS, 5.0, (0.0, 1.0))[:, 0].tolist() == [5.0] * 4
    assert count_evaluations(scales) == 6
    x, t, (negative, positive, _) = inputs()
    partly = jax.jit(guide(network, [negative, positive], scales))
    full = guide(network, [negative, positive], guidance_scales(LEVELS, 5.0))
    for index in range(4):
        alone = network(x, t, index, positive)
        want = alone if index in (0, 3) else full(x, t, index)
        np.testing.assert_allclose(partly(x, t, index), want, atol=1e-6)
    with pytest.raises(VidlatentError, match="interval"):
        guidance_scales(LEVELS, 5.0, (0.8, 0.5))


def test_evaluations_of_the_pipeline():
    """30 guided steps cost 60 evaluations, 8 without guidance cost 8."""
    base = make_sampler(Flow(), {"name": "unipc", "steps": 30, "shift": 5.0})
    refiner = make_sampler(Flow(), {"name": "euler", "steps": 8})
    counts = [
        count_evaluations(guidance_scales(base.levels, 5.0)),
        count_evaluations(guidance_scales(refiner.levels, 1.0)),
    ]
    assert counts == [60, 8] and (base.nfe, refiner.nfe) == (30, 8)


def test_rescale_and_channels():
    x, t, conditions = inputs()
    negative, positive = (network(x, t, 0, c) for c in conditions[:2])
    strong = combine([negative, positive], [7.0])
    full = rescale_guidance(strong, positive, 1.0)
    np.testing.assert_allclose(full.std(axis=(1, 2)), positive.std(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(rescale_guidance(strong, positive, 0.0), strong)
    np.testing.assert_allclose(
        combine([negative, positive], [7.0], rescale=0.7), 0.7 * full + 0.3 * strong, rtol=1e-5
    )
    part = combine([negative, positive], [7.0], channels=3)
    np.testing.assert_array_equal(part[..., :3], strong[..., :3])
    np.testing.assert_array_equal(part[..., 3:], positive[..., 3:])


def test_dropping():
    rates = {"text": 0.1, "image": 0.3}
    masks = drop_masks(jax.random.key(0), 20000, rates, joint=0.05)
    for name, rate in rates.items():
        expected = rate + 0.05 - 0.05 * rate
        assert abs(masks[name].mean() - expected) < 0.01
    both = (masks["text"] & masks["image"]).mean()
    assert abs(both - (0.05 + 0.95 * 0.03)) < 0.01
    never = drop_masks(jax.random.key(1), 50, {"text": 0.0, "image": 1.0})
    assert not never["text"].any() and never["image"].all()
    again = drop_masks(jax.random.key(0), 20000, dict(reversed(rates.items())), joint=0.05)
    np.testing.assert_array_equal(again["text"], masks["text"])
    condition = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 1, 4))}
    got = replace_dropped(jnp.array([True, False]), condition, {"a": jnp.zeros(3), "b": 0.0})
    np.testing.assert_array_equal(got["a"], [[0] * 3, [1] * 3])
    np.testing.assert_array_equal(got["b"][:, 0, 0], [0, 1])
    with pytest.raises(VidlatentError, match="text"):
        drop_masks(jax.random.key(0), 2, {"text": 1.5})


def velocity(x, t, index):
    return jnp.tanh(1.3 * x + t[:, None, None] / 900.0) - 0.3 * x


def run_cached(rule, signal, steps=8):
    plan = make_sampler(Flow(), {"name": "unipc", "steps": steps})
    x = inputs()[0]
    denoise, state = cache_denoiser(velocity, signal, rule, x)
    plain = jax.jit(lambda x: sample(plan, velocity, x).x)(x)
    with_cache = jax.jit(lambda x: sample(plan, denoise, x, state=state))(x)
    return plain, with_cache


def test_no_threshold_no_caching():
    """By default nothing is skipped, bit for bit, even if the signal does not change."""
    rule = CacheRule(steps=8)
    plain, got = run_cached(rule, lambda x, t, index: jnp.ones((2, 3)))
    np.testing.assert_array_equal(got.x, plain)
    assert got.state.evaluated == 8


def test_skips():
    """With a constant signal every second step is skipped, but never the first and the last."""
    rule = CacheRule(threshold=0.1, max_skips=1, steps=8)
    plain, got = run_cached(rule, lambda x, t, index: jnp.ones((2, 3)))
    assert got.state.evaluated == 5  # steps 0, 2, 4, 6, 7
    assert 0 < np.abs(got.x - plain).max() < 1.0


def test_changes_add_up():
    """0.1 a step under a threshold of 0.25 skips two in three; the polynomial scales it."""
    signal = lambda x, t, index: jnp.full((2, 3), 1.1**index)  # noqa: E731
    fields = {"threshold": 0.25, "max_skips": 9, "steps": 11}
    _, got = run_cached(CacheRule(**fields), signal, steps=11)
    assert got.state.evaluated == 5  # steps 0, 3, 6, 9, 10
    _, got = run_cached(CacheRule(polynomial=(3.0, 0.0), **fields), signal, steps=11)
    assert got.state.evaluated == 11
    with pytest.raises(VidlatentError, match="threshold"):
        CacheRule(threshold=-1.0)
