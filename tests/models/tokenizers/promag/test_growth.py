"""Growing 4x to 8x and 16x: what a grown model starts from, what it trains, what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.chunks import key_frames
from tests.helpers.nets import fast_jit
from tests.helpers.promag_nets import Net, net, video_of, without_residual
from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.promag.growth import (
    STAGE_FPS,
    grown_from,
    make_frozen_pattern,
    subsample,
)


@pytest.fixture(scope="module")
def zeroed():
    """4x, 8x and 16x with the same earlier weights and no residual."""
    params = without_residual(net(16).params)
    nets = {}
    for grow, k in enumerate((4, 8, 16)):
        kept = {name: params[name] for name in net(k).shapes}
        nets[k] = Net(kept, grow=grow)
    return nets


def test_growth_starts_from_the_key_frames(zeroed):
    video = video_of(17)
    base = zeroed[4].encode(video[:, ::2])
    np.testing.assert_array_equal(zeroed[8].encode(video), base)
    sixteen = zeroed[16].encode(video)
    np.testing.assert_array_equal(sixteen, zeroed[8].encode(video[:, ::2]))
    np.testing.assert_array_equal(sixteen, zeroed[4].encode(video[:, ::4]))


def test_without_residual_only_key_frames_count(zeroed):
    some, video = zeroed[16], video_of(17)
    model = some.model.clone(stop_earlier=False)

    def energy(video):
        mean = model.apply({"params": some.params}, video, method="encode")[0].mean
        return jnp.sum(mean**2)

    slope = np.abs(fast_jit(jax.grad(energy))(video)).max(axis=(0, 2, 3, 4))
    assert np.flatnonzero(slope).tolist() == key_frames(17, 16)


def test_recursion_is_computed_once_per_stride():
    video = video_of(17)

    def naive(model, video, level):
        if level == 0:
            return model.encoder(video)[0]
        key = naive(model, subsample(video, 2), level - 1)
        x = naive(model, video, level - 1)
        return key + model.growths[level - 1].encode(x, key)[0]

    def both(model, video):
        return naive(model, video, 2), model._features(video, None, None)[0]

    want, got = net(16).apply(both, video)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_plain_growth_has_neither_key_frames_nor_adaptive_norm():
    plain = net(8, grow_mode="plain")
    assert "ada" not in plain.shapes["grow1"]["encoder"]

    def by_hand(model, video):
        x = model.encoder(video)[0]
        return model.bottleneck.quant(model.growths[0].encode(x, None)[0])

    video = video_of(9)
    np.testing.assert_allclose(plain.apply(by_hand, video), plain.moments(video)[0], atol=1e-6)


def test_stages_and_their_patterns():
    assert make_frozen_pattern(0) == "" and make_frozen_pattern(0, "latent") == "(image)/"
    assert make_frozen_pattern(2, "feature") == "(image|encoder|decoder|grow1)/"
    # The key frames of a 24 fps clip are the frames that a 6 fps sampler would take.
    assert key_frames(17, 16) == [round(i * STAGE_FPS[2] / STAGE_FPS[0]) for i in range(5)]
    assert key_frames(17, 8) == [round(i * STAGE_FPS[1] / STAGE_FPS[0]) for i in range(9)]


def test_a_later_stage_starts_by_plain_merge():
    grown = grown_from(net(4).params, net(8).params)
    assert grown["grow1"] is net(8).params["grow1"]
    np.testing.assert_array_equal(
        grown["encoder"]["conv_in"]["kernel"], net(4).params["encoder"]["conv_in"]["kernel"]
    )
    with pytest.raises(VidlatentError, match="grow1"):
        grown_from(net(8).params, net(4).params)
    with pytest.raises(VidlatentError, match="differs in shape"):
        grown_from(Net(latent_channels=2).shapes, net(8).params)
