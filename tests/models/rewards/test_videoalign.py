"""VideoAlign's reward: sizes, what its scores depend on, positions, gradients, devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained import NETWORKS, network_shapes, random_params
from vidlatent.models.pretrained.clip.image import MEAN, STD
from vidlatent.models.rewards.videoalign.frames import (
    FrameRule,
    fit_size,
    patchify,
    pick_frames,
)
from vidlatent.models.rewards.videoalign.model import VideoAlign, normalize_scores
from vidlatent.models.rewards.videoalign.positions import (
    axis_positions,
    axis_tables,
    sequence_tables,
)
from vidlatent.models.rewards.videoalign.template import (
    INSTRUCTION,
    encode_prompts,
    fill_template,
    load_encoder,
    make_template,
)
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.paths import path_name
from vidlatent.parallel.sharding import batch_sharding, shardings
from vidlatent.weights.importer import export_names
from vidlatent.weights.tables import TABLES

QUICK = {"xla_backend_optimization_level": 0}  # each program runs once
NAME = "videoalign_tiny"
RULE = FrameRule(least_pixels=28 * 56, most_pixels=2 * 28 * 56)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def params():
    return random_params(NAME, 1)


@pytest.fixture(scope="module")
def module():
    return NETWORKS.get(NAME).module()


def tokens_of(module, prompts, grid=(2, 1, 2), instruction=INSTRUCTION, bucket=8):
    encode = load_encoder("words", module)
    template = make_template(instruction, encode).check(module, "ours")
    found = encode_prompts(prompts, encode, module, bucket)
    return np.asarray(fill_template(template, found, {module.video_token: int(np.prod(grid))}))


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def score(module, params, frames, tokens):
    return module.apply({"params": params}, frames, tokens)


def frames_of(seed, batch=1, pairs=2):
    return jax.random.normal(jax.random.key(seed), (batch, 2 * pairs, 28, 56, 3))


def test_published_sizes():
    shapes = network_shapes("videoalign")
    # Qwen2-VL-2B has further rows of the token table, that are cut off, and no head.
    whole = VideoAlign(language=dataclasses.replace(VideoAlign().language, vocab=151_936))
    given = jnp.zeros((1, 2, 28, 28, 3)), jnp.zeros((1, 4), jnp.int32)
    plain = jax.eval_shape(whole.init, jax.random.key(0), *given)["params"]
    assert count(plain) - count(plain["head"]) == 2_208_985_600
    assert count(shapes) == 2_208_563_200 and count(shapes["head"]) == 1536
    visual = shapes["visual"]
    assert count(visual) == 665_271_296
    assert count(visual["blocks"]) == 32 * 19_677_440
    assert count(visual["merger"]) + count(visual["norm"]) == 34_087_936
    assert count(visual["patch_embedding"]) == 1_505_280
    assert count(shapes["text"]["blocks"]) == 28 * 46_797_824
    names = export_names(shapes, TABLES.get("videoalign"))
    for name, shape in PUBLISHED.items():
        layers = 32 if name.startswith("visual.") else 28
        for own in {name.format(i=i) for i in range(layers)}:
            assert names.pop(own) == shape, own
    assert not names


# Name -> shape in the released file, of merged kernels; {i}: in every block.
PUBLISHED = {
    "model.embed_tokens.weight": (151_660, 1536),
    "model.layers.{i}.input_layernorm.weight": (1536,),
    "model.layers.{i}.post_attention_layernorm.weight": (1536,),
    "model.norm.weight": (1536,),
    "model.layers.{i}.self_attn.q_proj.weight": (1536, 1536),
    "model.layers.{i}.self_attn.q_proj.bias": (1536,),
    "model.layers.{i}.self_attn.k_proj.weight": (256, 1536),
    "model.layers.{i}.self_attn.k_proj.bias": (256,),
    "model.layers.{i}.self_attn.v_proj.weight": (256, 1536),
    "model.layers.{i}.self_attn.v_proj.bias": (256,),
    "model.layers.{i}.self_attn.o_proj.weight": (1536, 1536),
    "model.layers.{i}.mlp.gate_proj.weight": (8960, 1536),
    "model.layers.{i}.mlp.up_proj.weight": (8960, 1536),
    "model.layers.{i}.mlp.down_proj.weight": (1536, 8960),
    "visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
    "visual.blocks.{i}.norm1.weight": (1280,),
    "visual.blocks.{i}.norm1.bias": (1280,),
    "visual.blocks.{i}.norm2.weight": (1280,),
    "visual.blocks.{i}.norm2.bias": (1280,),
    "visual.blocks.{i}.attn.qkv.weight": (3840, 1280),
    "visual.blocks.{i}.attn.qkv.bias": (3840,),
    "visual.blocks.{i}.attn.proj.weight": (1280, 1280),
    "visual.blocks.{i}.attn.proj.bias": (1280,),
    "visual.blocks.{i}.mlp.fc1.weight": (5120, 1280),
    "visual.blocks.{i}.mlp.fc1.bias": (5120,),
    "visual.blocks.{i}.mlp.fc2.weight": (1280, 5120),
    "visual.blocks.{i}.mlp.fc2.bias": (1280,),
    "visual.merger.ln_q.weight": (1280,),
    "visual.merger.ln_q.bias": (1280,),
    "visual.merger.mlp.0.weight": (5120, 5120),
    "visual.merger.mlp.0.bias": (5120,),
    "visual.merger.mlp.2.weight": (1536, 5120),
    "visual.merger.mlp.2.bias": (1536,),
    "rm_head.weight": (1, 1536),
}


def test_adapters_of_the_released_file():
    # The released file: a second copy of the token table, and two factors for 7 layers of each.
    names = export_names(network_shapes("videoalign"), TABLES.get("videoalign"))
    adapted = {n: s for n, s in names.items() if n.startswith("model.layers") and len(s) == 2}
    assert len(adapted) == 196 and 64 * sum(map(sum, adapted.values())) == 73_859_072
    assert len(names) + 1 + 2 * len(adapted) == 1123


def test_scores_before_the_prompt_do_not_depend_on_it(module, params):
    frames = frames_of(2)
    first, other = tokens_of(module, ["red square moves up", "blue circle moves down"])
    assert (first != other).any()
    a, b = (score(module, params, frames, tokens[None])[0] for tokens in (first, other))
    np.testing.assert_array_equal(a[:2], b[:2])
    assert abs(a[2] - b[2]) > 1e-6
    # Nor on what is asked in the third section.
    changed = INSTRUCTION.replace("Do all things", "Do any things")
    c = score(
        module, params, frames, tokens_of(module, ["red square moves up"], (2, 1, 2), changed)
    )
    np.testing.assert_array_equal(a[:2], c[0, :2])
    assert abs(a[2] - c[0, 2]) > 1e-6
    # And on the video in all three.
    d = score(module, params, frames_of(3), first[None])[0]
    assert (np.abs(a - d) > 1e-6).all()


def test_padding_and_batch_mates_do_not_matter(module, params):
    prompts = ["red square", "a blue circle that moves slowly to the left"]
    frames = frames_of(4, batch=2)
    both = score(module, params, frames, tokens_of(module, prompts))
    for i, prompt in enumerate(prompts):
        for bucket in (1, 32):
            alone = tokens_of(module, [prompt], bucket=bucket)
            found = score(module, params, frames[i : i + 1], alone)
            np.testing.assert_allclose(found[0], both[i], atol=2e-6)


def test_the_tower_has_no_time(module, params):
    patches = patchify(frames_of(5, pairs=3))
    see = jax.jit(
        lambda x: module.apply({"params": params}, x, method=lambda m, x: m.visual(x, (2, 4))),
        compiler_options=QUICK,
    )
    tokens = see(patches).reshape(3, 2, -1)
    swapped = see(patches[:, [2, 1, 0]]).reshape(3, 2, -1)
    np.testing.assert_allclose(swapped, tokens[jnp.array([2, 1, 0])], atol=1e-6)


def test_positions_of_text_alone_are_its_numbers():
    sizes = VideoAlign().language
    places = axis_positions(40)
    np.testing.assert_array_equal(places, np.broadcast_to(np.arange(40), (3, 1, 40)))
    own = axis_tables(places, sizes.head_dim, sizes.base, sizes.sections)
    plain = sequence_tables(40, sizes.head_dim, sizes.base)
    for a, b in zip(own, plain, strict=True):
        np.testing.assert_allclose(a[0], b, atol=5e-6)


def test_positions_of_a_video():
    video = np.zeros((1, 3 + 12 + 2), bool)
    video[:, 3:15] = True
    t, h, w = np.asarray(axis_positions(17, (jnp.asarray(video), (3, 2, 2))))[:, 0]
    np.testing.assert_array_equal(t[3:15], 3 + np.repeat(np.arange(3), 4))
    np.testing.assert_array_equal(h[3:15], 3 + np.tile([0, 0, 1, 1], 3))
    np.testing.assert_array_equal(w[3:15], 3 + np.tile([0, 1], 6))
    for axis in (t, h, w):
        # The video is three positions long, its largest side.
        np.testing.assert_array_equal(axis[[0, 1, 2, 15, 16]], [0, 1, 2, 6, 7])


def test_positions_of_a_picture_and_a_video():
    picture, video = (np.zeros((1, 20), bool) for _ in range(2))
    picture[:, 1:7], video[:, 8:12] = True, True
    spans = ((jnp.asarray(picture), (1, 2, 3)), (jnp.asarray(video), (4, 1, 1)))
    t, h, w = np.asarray(axis_positions(20, *spans))[:, 0]
    np.testing.assert_array_equal(t[:9], [0, 1, 1, 1, 1, 1, 1, 4, 5])
    np.testing.assert_array_equal(h[1:7], [1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(w[1:7], [1, 2, 3, 1, 2, 3])
    np.testing.assert_array_equal(t[8:13], [5, 6, 7, 8, 9])
    np.testing.assert_array_equal(h[8:13], [5, 5, 5, 5, 9])


def test_a_picture_is_read_beside_the_video(module, params):
    encode = load_encoder("words", module)
    template = make_template(INSTRUCTION, encode, picture=True).check(module, "ours")
    prompt = encode_prompts(["red square"], encode, module, 8)
    counts = {module.picture_token: 2, module.video_token: 4}
    tokens = np.asarray(fill_template(template, prompt, counts))
    assert [(tokens == token).sum() for token in counts] == [2, 4]
    frames, first = frames_of(13), jax.random.uniform(jax.random.key(14), (1, 30, 50, 3))
    rule = dataclasses.replace(RULE, most_pixels=28 * 56)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(first, frames):
        picture = rule.prepare_picture(first)
        return module.apply({"params": params}, frames, tokens, picture)

    there = run(first, frames)
    for other in (run(first[:, ::-1], frames), run(first, frames[:, ::-1])):
        assert (np.abs(other - there) > 1e-6).all()


def test_positions_change_the_scores(module, params):
    frames, tokens = frames_of(6), tokens_of(module, ["red square"])
    a = score(module, params, frames, tokens)
    b = score(module.clone(positions="axes"), params, frames, tokens)
    assert np.abs(a - b).max() > 1e-5


def test_gradients_equal_finite_differences(module, params):
    """In float64, through resizing, both transformers and the head, in three directions."""
    with jax.enable_x64(True):
        exact = module.clone(dtype=jnp.float64)
        tokens = jnp.asarray(tokens_of(module, ["red square"]))
        rng = np.random.default_rng(7)
        # Away from black and white, where the clip has a corner.
        video = jnp.asarray(rng.uniform(0.3, 0.7, (1, 5, 20, 33, 3)))
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)

        @jax.jit
        def overall(x):
            raw = exact.apply({"params": wide}, RULE.prepare(x, 2.5), tokens)
            return normalize_scores(raw)["overall"][0]

        gradient = jax.jit(jax.grad(overall))(video)
        assert gradient.dtype == jnp.float64 and np.isfinite(gradient).all()
        for _ in range(3):
            way = jnp.asarray(rng.standard_normal(video.shape))
            step = 1e-5
            slope = (overall(video + step * way) - overall(video - step * way)) / (2 * step)
            np.testing.assert_allclose(jnp.vdot(gradient, way), slope, rtol=1e-6)


def test_gradients_reach_only_the_frames_that_are_seen(module, params):
    tokens = tokens_of(module, ["red square"])
    video = jax.random.uniform(jax.random.key(8), (1, 9, 28, 56, 3))
    seen = pick_frames(9, 4.5)

    def loss(x, quantize):
        frames = dataclasses.replace(RULE, quantize=quantize).prepare(x, 4.5)
        return module.apply({"params": params}, frames, tokens).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1, compiler_options=QUICK)
    found = {name: np.asarray(gradient(video, name)) for name in ("none", "straight", "round")}
    frames = np.abs(found["none"]).max(axis=(0, 2, 3, 4))
    assert len(seen) == 4 and (frames[seen] > 0).all()
    assert not np.delete(frames, seen).any()
    # Rounding stops gradients, unless they are led past it.
    assert not found["round"].any()
    assert np.corrcoef(found["straight"].ravel(), found["none"].ravel())[0, 1] > 0.99


def test_rounded_pixels_are_whole_levels():
    video = jax.random.uniform(jax.random.key(9), (1, 4, 30, 40, 3))
    rounded = dataclasses.replace(RULE, quantize="round")
    levels = undo_normalize(rounded.prepare(video, 2.0)) * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
    straight = dataclasses.replace(RULE, quantize="straight").prepare(video, 2.0)
    np.testing.assert_allclose(undo_normalize(straight) * 255, levels, atol=1e-3)


def undo_normalize(frames):
    return np.asarray(frames) * STD + MEAN


def test_bfloat16_scores_are_float32_and_near(module, params):
    frames, tokens = frames_of(10, batch=2), tokens_of(module, ["red square", "blue circle"])
    exact = score(module, params, frames, tokens)
    half = score(module.clone(dtype=jnp.bfloat16), params, frames, tokens)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, exact, atol=0.1)
    assert not np.array_equal(half, half.astype(jnp.bfloat16).astype(jnp.float32))


def test_eight_devices_equal_one(module, params):
    frames = frames_of(12, batch=4)
    tokens = tokens_of(module, ["red square", "blue circle", "green square", "a long prompt of it"])

    def found(sizes):
        devices = jax.devices()[: int(np.prod(sizes))]
        mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), devices)

        def loss(params, frames, tokens):
            scores = module.apply({"params": params}, frames, tokens)
            return scores.sum(), scores

        with jax.set_mesh(mesh):
            placed = jax.device_put(params, shardings(params, mesh))
            given = jax.device_put((frames, tokens), batch_sharding(mesh))
            run = jax.value_and_grad(loss, argnums=1, has_aux=True)
            (_, scores), gradient = jax.jit(run, compiler_options=QUICK)(placed, *given)
            return jax.device_get((scores, gradient))

    one, eight = found((1, 1, 1, 1)), found((1, 2, 2, 2))
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * max(1.0, np.abs(a).max()))


def test_every_large_matrix_is_split():
    mesh = make_mesh(dict(zip(AXES, (1, 2, 2, 2), strict=True)), jax.devices()[:8])
    shapes = network_shapes("videoalign")
    placed = jax.tree_util.tree_leaves_with_path(shardings(shapes, mesh))
    whole = 0
    for (path, sharding), leaf in zip(placed, jax.tree.leaves(shapes), strict=True):
        if not any(sharding.spec):
            whole += leaf.size
            assert path_name(path).split("/")[-1] != "kernel", path_name(path)
    assert whole < 2e6


def test_frames_that_are_picked():
    np.testing.assert_array_equal(pick_frames(61, 24.0), [0, 12, 24, 36, 48, 60])
    assert len(pick_frames(121, 24.0)) == 10 and len(pick_frames(81, 16.0)) == 10
    assert len(pick_frames(4, 1000.0)) == 4
    for total in range(2, 40):
        # Pairs of frames, of a video of any length.
        picked = pick_frames(total, 8.0)
        assert len(picked) % 2 == 0 and (np.diff(picked) > 0).all() and picked[-1] == total - 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: pick_frames(1, 24.0), "cannot judge 1 frames at 24 a second"),
        (lambda: pick_frames(24, 0.0), "at 0 a second.*known rate"),
        (lambda: fit_size(3, 700, 1, 100), "3x700.*more than 200 times"),
        (lambda: FrameRule(least_frames=1), "two frames or more"),
        (lambda: FrameRule(rate=0.0), "a positive rate"),
        (lambda: FrameRule(least_pixels=300_000), "bounds in order"),
        (lambda: FrameRule(quantize="floor"), "'floor': use one of none, straight, round"),
        (lambda: tiny(positions="axis"), "'axis': use sequential or axes"),
        (lambda: tiny(outputs=2), "1 or 3 outputs, not 2"),
        (lambda: tiny(shape=(1, 3, 28, 28, 3)), "an even number of frames"),
        (lambda: tiny(shape=(1, 2, 28, 30, 3)), "multiple of 28"),
    ],
)
def test_what_cannot_be_judged_is_refused(call, sentence):
    with pytest.raises(VidlatentError, match=sentence):
        call()


def tiny(shape=(1, 2, 28, 28, 3), **fields):
    module = NETWORKS.get(NAME).module(**fields)
    return jax.eval_shape(
        module.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros((1, 4), jnp.int32)
    )
