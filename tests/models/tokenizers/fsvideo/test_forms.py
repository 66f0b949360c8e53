"""The finetuned decoder forms: attention to frame 0, noise, group-causal and centred taps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.nets import CONFIG, Net, fast_jit, randomise, video_of
from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.fsvideo.init_from import centre_taps
from vidlatent.train.freeze import mark_frozen, stop_frozen_gradients
from vidlatent.weights.tables import initialize_from

FORM = {"cross_stages": (1, 2), "cross_head_dim": 4, "noise_weight": 0.05}
STANDARD = {**FORM, "decoder_time": "centred"}
LITE = {**FORM, "decoder_time": "group", "decoder_widths": (2, 4, 8)}


@pytest.fixture(scope="module")
def base():
    return Net()


@pytest.fixture(scope="module")
def standard():
    return Net(**STANDARD)


@pytest.fixture(scope="module")
def lite():
    return Net(**LITE)


@pytest.fixture(scope="module")
def clip(base):
    video = video_of(9)
    return video, base.encode(video)[0]


@pytest.mark.parametrize("form", ["standard", "lite"])
def test_static_clip_stays_static(form, request):
    net = request.getfixturevalue(form)
    image = video_of(1)
    latent = jnp.repeat(net.encode(image)[0], 3, axis=1)
    video, _ = net.decode(latent, condition=net.condition(image))
    np.testing.assert_allclose(video, jnp.repeat(video[:, :1], 9, axis=1), atol=1e-5)


def test_call_and_codec_path_agree(standard, clip):
    video, _ = clip
    restored, posterior = standard.run("__call__", video)
    latent, _ = standard.encode(video)
    np.testing.assert_allclose(posterior.mean, latent, atol=1e-5)
    # The condition comes from frame 0 alone, whether given as an image or at the head of a clip.
    image = standard.condition(video[:, :1])
    jax.tree.map(np.testing.assert_array_equal, image, standard.condition(video))
    again, _ = standard.decode(latent, condition=image)
    np.testing.assert_allclose(again, restored, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1)])
def test_lite_decodes_in_chunks_with_the_first_frame_resident(lite, clip, sizes):
    condition = lite.condition(clip[0])
    want, _ = lite.decode(clip[1], condition=condition)
    got = lite.chunked("decode", clip[1], sizes, condition=condition)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_lite_is_causal_by_latent_and_standard_is_not(standard, lite, clip):
    video, latent = clip
    changed = latent.at[:, 2].add(1.0)
    for net, equal in ((lite, True), (standard, False)):
        condition = net.condition(video)
        apart = (
            net.decode(changed, condition=condition)[0] - net.decode(latent, condition=condition)[0]
        )
        assert (np.abs(apart[:, :5]).max() == 0) == equal
        assert np.abs(apart[:, 5:]).max() > 1e-3


def test_zero_output_matrix_is_identity_and_zero_weight_no_noise(base, clip):
    plain, _ = base.decode(clip[1])
    net = Net(**{**FORM, "noise_weight": 0.0})
    fresh = net.init()
    for name, module in fresh["decoder"].items():
        if name.startswith("first_frame_attn"):
            assert not np.any(module["to_out"]["kernel"])
    attention = {n: m for n, m in fresh["decoder"].items() if n.startswith("first_frame_attn")}
    net.params = {**base.params, "decoder": {**base.params["decoder"], **attention}}
    condition = net.condition(clip[0])
    np.testing.assert_array_equal(net.decode(clip[1], condition=condition)[0], plain)
    # With random output matrices the condition matters.
    net.params = randomise(net.shapes)
    one = net.decode(clip[1], condition=condition)[0]
    other = net.decode(clip[1], condition=net.condition(video_of(1, seed=3)))[0]
    assert np.abs(one - other).max() > 1e-3


def test_noise_is_fixed_unless_a_stream_is_given(lite, clip):
    latent = jnp.concatenate([clip[1], clip[1]])
    condition = jax.tree.map(lambda x: jnp.concatenate([x, x]), lite.condition(clip[0]))
    run = fast_jit(
        lambda latent, condition, rngs: lite.model.apply(
            {"params": lite.params}, latent, condition=condition, rngs=rngs, method="decode"
        )[0]
    )
    fixed = run(latent, condition, {})
    np.testing.assert_array_equal(fixed, run(latent, condition, {}))
    np.testing.assert_array_equal(fixed[0], fixed[1])  # alone or in a batch: the same
    drawn = run(latent, condition, {"noise": jax.random.key(1)})
    assert np.abs(drawn - fixed).max() > 1e-4
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-4
    np.testing.assert_array_equal(drawn, run(latent, condition, {"noise": jax.random.key(1)}))


def test_taps_fold_from_causal_to_centred(base, clip):
    centred = Net(
        {**base.params, "decoder": centre_taps(base.params["decoder"])}, decoder_time="centred"
    )
    static = jnp.repeat(clip[1][:, :1], 3, axis=1)
    want, _ = base.decode(static)
    np.testing.assert_allclose(centred.decode(static)[0], want, atol=1e-5)
    # On a moving clip the fold starts nearer to the causal decoder than the taps as they are.
    want, _ = base.decode(clip[1])
    folded = np.linalg.norm(centred.decode(clip[1])[0] - want)
    kept = np.linalg.norm(Net(base.params, decoder_time="centred").decode(clip[1])[0] - want)
    assert folded < 0.8 * kept


def test_initialize_from_base_to_standard_to_lite(base, standard, lite, clip):
    condition = Net(base.params, **FORM).condition(clip[0])
    start = initialize_from("standard", base.params, standard.init())
    static = jnp.repeat(clip[1][:, :1], 3, axis=1)
    quiet = Net(start, **{**STANDARD, "noise_weight": 0.0})
    np.testing.assert_allclose(
        quiet.decode(static, condition=condition)[0], base.decode(static)[0], atol=1e-5
    )
    narrow = initialize_from("lite", start, lite.init())
    jax.tree.map(np.testing.assert_array_equal, narrow["encoder"], base.params["encoder"])
    for name, module in narrow["decoder"].items():
        if name.startswith(("up_blocks_0", "up_blocks_1")):
            if "norm" in module:
                assert not np.any(module["norm"]["scale"]) and not np.any(module["norm"]["bias"])
        elif name not in ("norm_out", "conv_out", "first_frame_attn_1"):
            jax.tree.map(np.testing.assert_array_equal, module, start["decoder"][name])
    restored, _ = Net(narrow, **LITE).decode(clip[1], condition=condition)
    assert np.isfinite(restored).all() and np.abs(restored).max() > 1e-3


def test_initialize_from_refuses_weights_of_another_form(base, lite, clip):
    with pytest.raises(VidlatentError, match="belong to another form"):
        initialize_from("lite", base.params, lite.params)
    with pytest.raises(VidlatentError, match="did you mean 'lite'"):
        initialize_from("light", base.params, lite.params)


@pytest.mark.parametrize("depths", [(1, 1), (0, 2)])
def test_image_model_with_a_new_stage_starts_the_video_model(depths):
    fields = {"encoder_depths": (*depths, 1), "decoder_depths": (*depths, 1)}
    image = Net(
        name="dcae",
        temporal_down=(),
        encoder_widths=(4, 8),
        decoder_widths=(4, 8),
        encoder_depths=depths,
        decoder_depths=depths,
        block_types=("res", "evit"),
        multiscales=((), (5,)),
        latent_channels=2,
    )
    fields["block_types"], fields["multiscales"] = ("res", "evit", "evit"), ((), (5,), (5,))
    net = Net(**fields)
    net.params = initialize_from("image", image.params, randomise(net.shapes))
    still = video_of(1)
    seen = [m.run("encoder_values", still) for m in (image, net)]
    np.testing.assert_allclose(seen[1]["stage_1"], seen[0]["stage_1"], atol=1e-5)
    np.testing.assert_array_equal(seen[1]["stage_2"], seen[1]["block_1"])
    assert np.isfinite(net.run("__call__", still)[0]).all()


def test_only_the_decoder_is_trained_when_the_encoder_is_frozen(standard):
    video = video_of(5)

    @fast_jit
    @jax.grad
    def gradient(params):
        params = stop_frozen_gradients(params, "encoder/")
        restored, _ = standard.model.apply({"params": params}, video)
        return jnp.mean(jnp.abs(restored - video))

    grads = gradient(standard.params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(leaf) == (path[0].key == "decoder"), path
    mask = mark_frozen(standard.params, "encoder/")
    assert all(jax.tree.leaves(mask["encoder"])) and not any(jax.tree.leaves(mask["decoder"]))
    assert stop_frozen_gradients(standard.params, "") is standard.params


@pytest.mark.parametrize("pattern", ["", "encodr/", ".*", "("])
def test_mistaken_freezing_is_refused(standard, pattern):
    if not pattern:
        assert not any(jax.tree.leaves(mark_frozen(standard.params, pattern)))
        return
    with pytest.raises(VidlatentError, match="config.optim.freeze"):
        mark_frozen(standard.params, pattern)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cross_stages": (3,)}, "stages are 0 to 2"),
        ({**FORM, "cross": "hard"}, "'softmax' or 'linear'"),
        ({**FORM, "cross_head_dim": 6}, "cross_head_dim"),
        ({"decoder_norm_types": ("rms", "rms", "batch")}, "attention stages have rms norms"),
        ({"decoder_activations": ("gelu",) * 3}, "'silu' or 'relu'"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(VidlatentError, match=message):
        model = build({**CONFIG, **change})
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, 16, 16, 3)))


def test_missing_condition_is_named(standard, clip):
    with pytest.raises(VidlatentError, match="model.make_condition"):
        standard.decode(clip[1])


def test_recomputing_blocks_leaves_gradients_alone():
    net, video = Net(**FORM, cross_window=3, decoder_time="group"), video_of(5)

    def gradient(**fields):
        model = net.model.clone(**fields)

        def loss(params):
            rngs = {"noise": jax.random.key(1)}
            return jnp.mean(jnp.abs(model.apply({"params": params}, video, rngs=rngs)[0] - video))

        return fast_jit(jax.grad(loss))(net.params)

    plain = gradient()
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(plain))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, gradient(remat=True)
    )
