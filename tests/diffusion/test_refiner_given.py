"""What the refiner is given: the order of the steps, and sampling beside training."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.diffusion.refiner_given import GivenOptions, give_for_sampling, give_for_training

OPTIONS = GivenOptions(mask_channels=2)
PLAIN = dataclasses.replace(OPTIONS, shuffle_rate=0.0, real_rate=0.0, low_drop=0.0)


def upsample(x):
    """Twice the size, and one more: so that its output is told apart from the truth."""
    return jnp.repeat(jnp.repeat(x, 2, 2), 2, 3) + 1.0


def make_pair(batch=2, frames=5):
    rng = np.random.default_rng(0)
    low = jnp.asarray(rng.standard_normal((batch, frames, 2, 2, 3)), jnp.float32)
    high = jnp.asarray(rng.standard_normal((batch, frames, 4, 4, 3)), jnp.float32)
    return low, high


def give(options, key=0, batch=2, frames=5, base=None, **fields):
    low, high = make_pair(batch, frames)
    if base is None:
        # The exact velocity of this one clip: eq. 13 then gives the clip itself.
        def base(z, sigma):
            return (z - low) / sigma[:, None, None, None, None]

    sigma = jnp.linspace(0.2, 0.9, batch)
    key = jax.random.key(key)
    return low, high, give_for_training(key, low, high, sigma, base, upsample, options, **fields)


def test_training_without_errors_gives_what_sampling_gives():
    low, high, given = give(PLAIN)
    told = give_for_sampling(high[:, :1], low[:, :1], low, upsample, PLAIN)
    for ours, theirs in zip(given, told, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_array_equal(given.condition[:, 0], high[:, 0])
    np.testing.assert_allclose(given.condition[:, 1:], upsample(low)[:, 1:], atol=1e-5)
    assert (given.mask[:, 0] == 1).all()
    later = np.asarray(given.mask[:, 1:])
    assert (later >= OPTIONS.mask_low).all() and (later < 1).all()
    joined = given.join()
    assert joined.shape == (2, 5, 4, 4, 5)
    np.testing.assert_array_equal(joined[..., 2:], given.condition)


def test_sampling_takes_no_noise_level_and_calls_no_base_model():
    """Only latents and the upsampler go in (specification J56), and nothing is drawn at random."""
    names = set(inspect.signature(give_for_sampling).parameters)
    assert names == {"first_high", "first_low", "low", "upsample", "options"}
    low, high = make_pair()
    seen = []

    def watched(x):
        seen.append(x.shape[1])
        return upsample(x)

    given = give_for_sampling(high[:, :1], low[:, :1], low, watched, OPTIONS)
    # The sample, and the first frame for the mask; both as they are, whatever the rates say.
    assert sorted(seen) == [1, 5] and not given.real.any() and not given.dropped.any()
    np.testing.assert_array_equal(given.condition[:, 1:], upsample(low)[:, 1:])

    def give_same_size(x):
        return give_for_sampling(x[:, :1], x[:, :1], x, lambda y: y, OPTIONS)

    traced = str(jax.make_jaxpr(give_same_size)(low))
    assert "random" not in traced and "threefry" not in traced


def test_error_of_the_base_model_is_upsampled():
    """The condition moves by exactly the velocity error (eq. 13)."""
    low = make_pair()[0]

    def base(z, sigma):
        return (z - low) / sigma[:, None, None, None, None] + 0.25

    _, _, given = give(PLAIN, base=base)
    np.testing.assert_allclose(given.condition[:, 1:], upsample(low - 0.25)[:, 1:], atol=1e-5)


def test_noise_level_has_a_floor():
    seen = {}

    def base(z, sigma):
        seen["sigma"] = sigma
        return z

    low, high = make_pair()
    sigma = jnp.asarray([0.01, 0.7])
    give_for_training(jax.random.key(0), low, high, sigma, base, upsample, PLAIN)
    np.testing.assert_allclose(seen["sigma"], [0.1, 0.7])


def test_real_frames_stand_at_their_own_time_after_the_shuffle():
    always = dataclasses.replace(OPTIONS, shuffle_rate=1.0, real_rate=1.0, low_drop=0.0)
    low, high, given = give(always, batch=16)
    assert (np.asarray(given.order) != np.arange(5)).any(1).all()
    assert given.real.any(1).all() and not given.real[:, 0].any()
    large = np.asarray(upsample(low))
    for sample, order, real, mask, truth, small in zip(
        *map(np.asarray, (given.condition, given.order, given.real, given.mask, high, large)),
        strict=True,
    ):
        for place in range(1, 5):
            wanted = truth[place] if real[place] else small[order[place]]
            np.testing.assert_allclose(sample[place], wanted, atol=1e-5)
            assert (mask[place] == 1).all() == bool(real[place])


def test_dropout_takes_condition_and_mask_together():
    never = dataclasses.replace(OPTIONS, low_drop=1.0)
    _, high, given = give(never)
    assert given.dropped.all()
    assert not given.condition[:, 1:].any() and not given.mask[:, 1:].any()
    np.testing.assert_array_equal(given.condition[:, 0], high[:, 0])
    assert (given.mask[:, 0] == 1).all()


def test_evaluation_leaves_randomness_out():
    always = dataclasses.replace(OPTIONS, shuffle_rate=1.0, real_rate=1.0, low_drop=1.0)
    _, _, given = give(always, augment=False)
    _, _, plain = give(PLAIN)
    for ours, theirs in zip(given, plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_no_gradient():
    low, high = make_pair()

    def total(scale):
        def base(z, sigma):
            return scale * z

        given = give_for_training(
            jax.random.key(0), low, high, jnp.asarray([0.5, 0.5]), base, upsample, OPTIONS
        )
        return given.condition.sum() + given.mask.sum()

    assert jax.grad(total)(1.0) == 0.0


def test_one_value_for_a_sample():
    flat = dataclasses.replace(PLAIN, mask_map="sample")
    _, _, given = give(flat)
    assert (given.mask[:, 1:] == given.mask[:, 1:2, :1, :1, :1]).all()
    assert not (given.mask[0, 1] == given.mask[1, 1]).all()
