"""The Video VF loss and its gradients against float64 autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.losses.vf import pool_frames, project_to_features, video_vf


def channels_last(x):
    return jnp.asarray(np.moveaxis(np.asarray(x, np.float32), 1, -1))


@pytest.mark.parametrize("name", ["vf", "nomargin"])
def test_video_vf(reference, name):
    with np.load(reference("vf", f"{name}.npz")) as stored:
        case = {key: stored[key] for key in stored.files}
    latent, features = channels_last(case["z"]), channels_last(case["F"])
    kernel = jnp.asarray(case["W"].T)
    pooled = pool_frames(features, latent.shape[1])
    np.testing.assert_allclose(pooled, channels_last(case["f_pooled"]), atol=1e-5)
    aligned = project_to_features(latent, kernel, features.shape[2:4])
    np.testing.assert_allclose(aligned, channels_last(case["z_aligned"]), atol=1e-5)

    mask = jnp.ones(latent.shape[0])
    margins = (float(case["m1"]), float(case["m2"]))

    def loss(latent, kernel):
        parts = video_vf(latent, kernel, pooled, mask, *margins, rows=16)
        return sum(parts), parts

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, parts), (of_latent, of_kernel) = grad(latent, kernel)
    np.testing.assert_allclose(parts, (case["l_mcos"], case["l_mdms"]), atol=1e-5)
    np.testing.assert_allclose(of_latent, channels_last(case["grad_z"]), atol=1e-5)
    np.testing.assert_allclose(of_kernel, case["grad_W"].T, atol=1e-5)
