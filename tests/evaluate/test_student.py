"""What is measured of a student: against NumPy, and 0 where there is nothing to measure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.generator_steps import batch_of, facts
from tests.train.test_score_task import draw_params, make_config, make_teacher
from vidlatent.evaluate.student import evaluate_student, sum_patches
from vidlatent.latents.space import generator_of
from vidlatent.layers.patches import to_patches
from vidlatent.losses.trunk import binary_cross_entropy, pool_logits
from vidlatent.metrics import FeatureSums
from vidlatent.train.tasks.distill_score import ScoreTask


def test_sums_of_patches_are_those_of_the_real_samples():
    latent = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 2))
    mask = jnp.array([1.0, 0.0, 1.0])
    found = FeatureSums.unpack(np.asarray(sum_patches(latent, (1, 2, 2), mask), np.float64))
    want = FeatureSums(8)
    for row in (0, 2):
        want.add(np.asarray(to_patches(latent[row : row + 1], (1, 2, 2)))[0])
    assert found.n == want.n == 16
    for a, b in zip(found.moments(), want.moments(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


class Loader:
    """Two batches, the second with a row of padding."""

    def __iter__(self):
        for seed in (0, 1):
            batch = batch_of(seed=seed)
            batch["clip"] += 4 * seed
            batch["mask"][3] = 1 - seed
            yield batch


@pytest.fixture(scope="module")
def scored():
    """Scores with a fake score of its own, and with the teacher as fake score."""
    config = make_config()
    task = ScoreTask(config, generator_of(config), facts(), make_teacher(config))
    frozen = {"teacher": draw_params(task, 3)}
    step = jax.jit(task.eval_step)

    def measure(params, batch):
        arrays = {name: batch[name] for name in (*task.arrays, "clip", "start")}
        found = jax.device_get(step(params, frozen, arrays))
        return {**found, "mask": batch["mask"]}

    def score(fake):
        params = {"student": draw_params(task, 1), "fake": fake}
        return evaluate_student(measure, params, Loader(), config)

    return score(draw_params(task, 2)), score(frozen["teacher"]), score, task


def test_the_gap_is_0_where_both_scores_agree(scored):
    apart, same = scored[:2]
    assert apart.scores["clips"] == 7
    assert same.scores["score_gap"] == 0 and apart.scores["score_gap"] > 0.01
    # What the scores agree on pulls at nothing; the adversary goes on.
    assert same.scores["score_pull"] < 1e-5 * apart.scores["score_pull"]
    assert same.scores["adversarial_pull"] > 0 < apart.scores["adversarial_pull"]
    assert len(apart.levels) == 2 and apart.levels[0]["level"] < apart.levels[1]["level"]


def test_the_distance_is_of_patches_and_does_not_depend_on_the_fake_score(scored):
    apart, same = scored[:2]
    assert apart.scores["frechet_latents"] == same.scores["frechet_latents"] > 0


def test_an_evaluation_is_the_same_again(scored):
    apart, _, score, task = scored
    assert score(draw_params(task, 2)).scores == apart.scores


def test_pulls_are_the_gradients_of_the_two_losses(scored):
    """Against the whole loss's gradient, at a sample, and in proportion to the weight."""
    task = scored[3]
    key = jax.random.key(5)
    x, eps, weight = (jax.random.normal(k, (2, 3, 4, 4, 2)) for k in jax.random.split(key, 3))
    sigma = jnp.array([0.3, 0.8])

    def losses(x):
        tokens = (x * weight).reshape(2, 12, 8)
        match, score, adversarial = task.compare(
            lambda noisy, sigma: noisy, 0.5 * (x - eps), tokens, x, eps, sigma
        )
        bce = binary_cross_entropy(pool_logits(tokens), True)
        size, share = x[0].size, task.options.adversarial_weight
        whole = task.losses.generator(match, bce, size, share)
        return jnp.stack(
            [
                score.sum(),
                adversarial.sum(),
                whole.sum(),
                0.5 * share * (match.weight * size * bce).sum(),
            ]
        )

    score, adversarial, whole, alone = jax.jacrev(losses)(x)
    np.testing.assert_allclose(score + adversarial, whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(adversarial, alone, rtol=1e-4, atol=1e-7)
    assert np.abs(adversarial).max() > 1e-4
