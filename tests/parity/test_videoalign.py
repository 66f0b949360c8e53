"""VideoAlign against the numbers of its published code."""

import collections
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.config import get_defaults
from vidlatent.models.frozen import load_frozen
from vidlatent.models.pretrained import NETWORKS
from vidlatent.models.pretrained.clip.image import MEAN, STD
from vidlatent.models.pretrained.load import convert_network
from vidlatent.models.pretrained.vit import ViTBlock
from vidlatent.models.rewards.videoalign.definitions import define_videoalign
from vidlatent.models.rewards.videoalign.frames import (
    FrameRule,
    fit_size,
    normalize,
    patchify,
    pick_frames,
    resize,
)
from vidlatent.models.rewards.videoalign.language import DecoderBlock, LanguageSizes
from vidlatent.models.rewards.videoalign.model import Shown, VideoAlign, normalize_scores
from vidlatent.models.rewards.videoalign.positions import axis_positions, patch_tables
from vidlatent.models.rewards.videoalign.released import fit_head, merge_released
from vidlatent.models.rewards.videoalign.template import Template, fill_template
from vidlatent.models.rewards.videoalign.vision import VisionSizes
from vidlatent.parallel.mesh import make_mesh
from vidlatent.rewards import RewardInputs, make_rewards
from vidlatent.weights.importer import export_params, import_params
from vidlatent.weights.safetensors import load_safetensors
from vidlatent.weights.tables import TABLES

QUICK = {"xla_backend_optimization_level": 0}  # each program runs once
ACTIVATIONS, GRADIENTS = 2e-5, 1e-4  # of the array's largest value


def close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def module_of(config, **fields):
    vision, reward = config["vision_config"], config["reward"]
    assert config["hidden_act"] == "silu" and vision["hidden_act"] == "quick_gelu"
    assert (vision["patch_size"], vision["spatial_merge_size"]) == (14, 2)
    assert vision["temporal_patch_size"] == 2 and vision["hidden_size"] == config["hidden_size"]
    return VideoAlign(
        VisionSizes(
            vision["embed_dim"],
            vision["depth"],
            vision["num_heads"],
            int(vision["mlp_ratio"] * vision["embed_dim"]),
        ),
        LanguageSizes(
            config["vocab_size"],
            config["hidden_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["intermediate_size"],
            config["rope_theta"],
            tuple(config["rope_scaling"]["mrope_section"]),
            config["rms_norm_eps"],
        ),
        config["video_token_id"],
        config["image_token_id"],
        tuple(reward["special_token_ids"]),
        **fields,
    )


def moments_of(config):
    """Means and deviations of VQ, MQ and TA."""
    stored = config["reward"]["inference_config"]
    return [tuple(stored[f"{s}_{part}"] for s in ("VQ", "MQ", "TA")) for part in ("mean", "std")]


def params_of(module, tensors):
    frames, tokens = jnp.zeros((1, 2, 28, 28, 3)), jnp.zeros((1, 4), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), frames, tokens)["params"]
    return import_params(tensors, TABLES.get("videoalign"), fit_head(shapes, tensors))


@pytest.fixture(scope="module")
def case(reference):
    """Config, parameters of the released layout, and the arrays."""
    config = json.loads(reference("videoalign", "config.json").read_text())
    tensors = load_safetensors(reference("videoalign", "weights_peft.safetensors"))
    merged = merge_released(tensors, config["reward"]["lora_alpha"])
    params = params_of(module_of(config), merged)
    return config, params, dict(np.load(reference("videoalign", "io.npz")))


def videos_of(arrays):
    """Of each video: rows, patches ``[1, t, n, 1176]``, grid, tokens, and how many are real."""
    start = 0
    for i, (t, h, w) in enumerate(arrays["video_grid_thw"].tolist()):
        rows = slice(start, start + t * h * w)
        patches = arrays["pixel_values_videos"][rows].reshape(1, t, h * w, -1)
        count = int(arrays["attention_mask"][i].sum())
        yield rows, patches, (int(h), int(w)), arrays["input_ids"][i : i + 1], count
        start += t * h * w


@pytest.mark.parametrize(("name", "positions"), [("seq", "sequential"), ("mrope", "axes")])
def test_scores_and_gradients(case, name, positions):
    config, params, arrays = case
    module = module_of(config, positions=positions)

    @functools.partial(jax.jit, static_argnums=2, compiler_options=QUICK)
    def run(patches, tokens, grid, cotangent):
        def total(x):
            shown = Shown(x, *grid, module.video_token)
            scores = module.apply({"params": params}, tokens, shown, method="score")
            return jnp.sum(cotangent * scores[0]), scores[0]

        (_, scores), gradient = jax.value_and_grad(total, has_aux=True)(patches)
        return scores, gradient

    for i, (rows, patches, grid, tokens, _) in enumerate(videos_of(arrays)):
        scores, gradient = run(patches, tokens, grid, arrays["cotangent"][i])
        close(scores, arrays[f"{name}.rewards"][i], ACTIVATIONS)
        expected = arrays[f"{name}.grad_pixel_values_videos"][rows]
        close(gradient.reshape(expected.shape), expected, GRADIENTS)
        if name == "seq":
            close(scores, arrays["seq.rewards_unpadded"][i], ACTIVATIONS)
            mean, std = moments_of(config)
            normal = normalize_scores(scores[None], mean, std)
            expected = arrays["seq.rewards_normalised"][i]
            found = [normal[s][0] for s in ("vq", "mq", "ta")]
            np.testing.assert_allclose(found, expected, atol=1e-4)
            np.testing.assert_allclose(
                normal["overall"][0], arrays["seq.overall_normalised"][i], atol=1e-4
            )


def run_blocks(block, stack, x, tables):
    """Attention of the first block, and the states after each."""
    states, attention = [], None
    for i in range(len(jax.tree.leaves(stack)[0])):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], stack)
        x, seen = block.apply(
            {"params": layer}, x, tables=tables, capture_intermediates=lambda m, _: m.name == "attn"
        )
        states.append(x)
        if attention is None:
            attention = seen["intermediates"]["attn"]["__call__"][0]
    return attention, states


def test_vision_tower(case):
    config, params, arrays = case
    module, visual = module_of(config), params["visual"]
    sizes = module.vision
    block = ViTBlock(sizes.heads, sizes.hidden, eps=sizes.eps, quick=True)
    kernel = visual["patch_embedding"]["kernel"].transpose(3, 0, 1, 2, 4).reshape(-1, sizes.width)
    found = collections.defaultdict(list)
    for rows, patches, grid, _, _ in videos_of(arrays):
        tables = patch_tables(*grid, sizes.width // sizes.heads)
        angles = arrays["vis_rotary_freqs"][rows].reshape(patches.shape[1], *tables[0].shape)
        for table, function in zip(tables, (np.cos, np.sin), strict=True):
            np.testing.assert_allclose(table[None] + 0 * angles, function(angles), atol=1e-6)
        x = patches[0] @ kernel
        attention, states = run_blocks(block, visual["blocks"], x, tables)
        for name, value in {"patch_embed": x, "block_0_attn": attention}.items():
            found[name].append(value.reshape(-1, sizes.width))
        for i, value in enumerate(states):
            found[f"block_{i}"].append(value.reshape(-1, sizes.width))
        tower = functools.partial(lambda m, x, grid: m.visual(x, grid), grid=grid)
        found["merger_out"].append(module.apply({"params": params}, patches, method=tower)[0])
    stored = {name[4:] for name in arrays if name.startswith("vis_")} - {"rotary_freqs"}
    assert stored == set(found)
    for name, parts in found.items():
        close(np.concatenate(parts), arrays[f"vis_{name}"], ACTIVATIONS)


@pytest.mark.parametrize(("name", "positions"), [("seq", "sequential"), ("mrope", "axes")])
def test_language_model(case, name, positions):
    config, params, arrays = case
    module = module_of(config, positions=positions)
    bound = module.bind({"params": params})
    for i, (_, patches, (h, w), tokens, count) in enumerate(videos_of(arrays)):
        shown = Shown(patches, h, w, module.video_token)
        x = bound.embed(tokens, shown)
        close(x[0, :count], arrays["inputs_embeds"][i, :count], ACTIVATIONS)
        tables = bound.tables(tokens, shown)
        if name == "mrope":
            check_axes(module, arrays, i, tokens, shown.merged, tables, count)
        block = DecoderBlock(module.language)
        attention, states = run_blocks(block, params["text"]["blocks"], x, tables)
        normed = bound.norm(states[-1])
        found = {f"text_layer_{k}": state for k, state in enumerate(states)}
        found |= {"text_layer_0_attn": attention, "text_final_norm": normed}
        found["rm_head_all"] = normed @ params["head"]["kernel"]
        for key, value in found.items():
            close(value[0, :count], arrays[f"{name}.{key}"][i, :count], ACTIVATIONS)
        stored = {key.partition(".")[2] for key in arrays if key.startswith(f"{name}.text_")}
        assert stored <= set(found)


def check_axes(module, arrays, i, tokens, grid, tables, count):
    own = tokens == module.video_token
    positions = np.asarray(axis_positions(tokens.shape[1], (own, grid)))[:, 0, :count]
    np.testing.assert_array_equal(positions, arrays["position_ids_mrope"][:, i, :count])
    half = module.language.head_dim // 2
    axis = np.repeat(np.arange(3), module.language.sections)
    for table, name in zip(tables, ("cos", "sin"), strict=True):
        whole = arrays[f"mrope.{name}"][:, i, :count, :half]
        expected = whole[axis, :, np.arange(half)].T
        np.testing.assert_allclose(table[0, :count], expected, atol=2e-6)


def test_merged_files_and_names(case, reference):
    _, params, arrays = case
    tensors = load_safetensors(reference("videoalign", "weights_merged.safetensors"))
    merged = merge_released(tensors)
    assert set(tensors) - set(merged) == {"lm_head.weight"}
    exported = export_params(params, TABLES.get("videoalign"))
    assert set(exported) == set(merged)
    for name, tensor in exported.items():
        # Merged in float32 by both: products of the factors in another order.
        np.testing.assert_allclose(tensor, merged[name], rtol=0, atol=4e-6, err_msg=name)
    close(arrays["seq.rewards_merged"], arrays["seq.rewards"], ACTIVATIONS)


def test_three_outputs(case, reference):
    config, _, arrays = case
    tensors = load_safetensors(reference("videoalign", "weights_peft.safetensors"))
    tensors["base_model.model.rm_head.weight"] = arrays["rm_head_dim3_weight"]
    merged = merge_released(tensors, config["reward"]["lora_alpha"])
    # The module expects one output: what is loaded decides.
    module = module_of(config)
    params = params_of(module, merged)
    assert params["head"]["kernel"].shape == (config["hidden_size"], 3)
    for i, (_, patches, grid, tokens, _) in enumerate(videos_of(arrays)):
        shown = Shown(patches, *grid, module.video_token)
        scores = module.apply({"params": params}, tokens, shown, method="score")
        close(scores[0], arrays["seq.rewards_dim3"][i], ACTIVATIONS)


def test_pixels_to_patches(case):
    _, _, arrays = case
    for i, (rows, *_) in enumerate(videos_of(arrays)):
        frames = np.float32(arrays[f"frames_{i}"])[None] / 255
        found = patchify(normalize(frames))
        expected = arrays["pixel_values_videos"][rows]
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-6)


@pytest.fixture(scope="module")
def preprocess(reference):
    return dict(np.load(reference("videoalign_preprocess", "io.npz")))


def sets_of(arrays, kind):
    names = {name.partition(".")[0] for name in arrays if name.startswith(kind)}
    return [
        {key.partition(".")[2]: x for key, x in arrays.items() if key.startswith(f"{name}.")}
        for name in sorted(names)
    ]


SMALL = FrameRule(least_pixels=3136, most_pixels=6000)  # limits of the small cases, as they say


def prepare_all(rule, frames):
    """All frames as they are seen: at the rate of the rule each is picked."""
    return rule.prepare(np.float32(frames)[None] / 255, rule.rate)


def test_scoring_rounds_as_published(preprocess):
    """At most one value in a thousand is off, by one level: float32 decides ties otherwise."""
    for part in sets_of(preprocess, "small"):
        rule = dataclasses.replace(SMALL, quantize="round", least_frames=2)
        frames = prepare_all(rule, part["frames"])
        levels = np.rint((np.asarray(frames[0]) * STD + MEAN) * 255)
        check_levels(levels, part["resized_uint8"].astype(np.float64))
        rows = patchify(frames).reshape(part["pixel_values_videos"].shape)
        off = np.abs(rows - part["pixel_values_videos"])
        assert (off > 1e-5).mean() <= 1e-3 and off.max() < 0.016
        t, h, w = part["grid_thw"][0]
        assert rule.grid(*part["frames"].shape[:3], rule.rate) == (t, h // 2, w // 2)


def check_levels(found, expected):
    off = np.abs(found - expected)
    assert (off > 0).mean() <= 1e-3 and off.max() <= 1


def test_released_sizes(preprocess):
    for part in sets_of(preprocess, "big"):
        rule = FrameRule(quantize="round", least_frames=2)
        assert rule.size(*part["frames"].shape[1:3]) == tuple(part["resized_size"])
        frames = prepare_all(rule, part["frames"])
        levels = np.rint((np.asarray(frames[0]) * STD + MEAN) * 255)[:, ::4, ::4]
        check_levels(levels, part["resized_uint8_every4"].astype(np.float64))
        rows = np.asarray(patchify(frames)).reshape(-1, part["pixel_values_rows"].shape[1])
        assert len(rows) == part["grid_thw"].prod()
        off = np.abs(rows[part["row_index"]] - part["pixel_values_rows"])
        assert (off > 1e-5).mean() <= 1e-3 and off.max() < 0.016
        np.testing.assert_allclose(rows.mean(axis=1), part["row_mean"], atol=1e-4)


def test_resize_and_its_gradient(preprocess):
    for part in sets_of(preprocess, "small"):
        x = jnp.float32(part["frames"]) / 255
        size = part["resized_uint8"].shape[1:3]
        np.testing.assert_allclose(resize(x, *size), part["resized_float_unclamped"], atol=1e-6)
        for name, low, high in (("unclamped", -np.inf, np.inf), ("clamped", 0, 1)):
            see = functools.partial(see_clipped, size=size, low=low, high=high)
            gradient = jax.vjp(see, x)[1](part["cotangent_resized"])[0]
            close(gradient, part[f"grad_frames_{name}"], 1e-6)


def see_clipped(x, size, low, high):
    return jnp.clip(resize(x, *size), low, high)


def test_sizes_and_frames(preprocess):
    for (h, w), video, image in zip(
        preprocess["smart_resize_in"].tolist(),
        preprocess["smart_resize_out_video"].tolist(),
        preprocess["smart_resize_out_image"].tolist(),
        strict=True,
    ):
        assert FrameRule().size(h, w) == tuple(video), (h, w)
        # The same rule with the limits of pictures.
        assert fit_size(h, w, 3136, 12_845_056) == tuple(image), (h, w)
    for (count, fps, number), index in zip(
        preprocess["nframes_table"], preprocess["nframes_index"], strict=True
    ):
        found = pick_frames(int(count), fps)
        assert len(found) == number, (count, fps)
        np.testing.assert_array_equal(found[: len(index)], index[index >= 0], str((count, fps)))


def test_from_frames_to_gradients(case, reference):
    config, params, _ = case
    arrays = dict(np.load(reference("videoalign_e2e", "io.npz")))
    module, video, fps = module_of(config), arrays["video"], float(arrays["fps"])
    np.testing.assert_array_equal(SMALL.frames(video.shape[1], fps), arrays["frame_index"])
    assert SMALL.size(*video.shape[2:4]) == tuple(arrays["resized_size"])
    tokens = jnp.asarray(arrays["input_ids"])
    inference = config["reward"]["inference_config"]
    mean, std = ([inference[f"{s}_{part}"] for s in ("VQ", "MQ", "TA")] for part in ("mean", "std"))

    @functools.partial(jax.jit, compiler_options=QUICK)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(video):
        frames = SMALL.prepare(video, fps)
        raw = module.apply({"params": params}, frames, tokens)
        scores = normalize_scores(raw, mean, std)
        return scores["overall"].sum(), (patchify(frames), raw, scores)

    (_, (patches, raw, scores)), gradient = run(video)
    rows = patches.reshape(arrays["pixel_values_videos"].shape)
    np.testing.assert_allclose(rows, arrays["pixel_values_videos"], atol=3e-5)
    np.testing.assert_allclose(raw, arrays["rewards"], atol=5e-5)
    normal = np.stack([scores[name] for name in ("vq", "mq", "ta")], axis=1)
    np.testing.assert_allclose(normal, arrays["rewards_normalised"], atol=5e-5)
    np.testing.assert_allclose(scores["overall"], arrays["overall"], atol=1e-4)
    close(gradient, arrays["grad_video"], 2e-4)
    unseen = np.setdiff1d(np.arange(video.shape[1]), arrays["frame_index"])
    assert len(unseen) and not np.asarray(gradient)[:, unseen].any()


def test_template_numbers(reference):
    ids = json.loads(reference("videoalign_preprocess", "template_ids.json").read_text())
    template = Template(tuple(ids["head_ids"]), tuple(ids["tail_ids"]))
    module = VideoAlign()
    assert template.check(module, "the case") is template
    length = len(template.head) + len(template.tail)
    for example in ids["examples"]:
        assert length + len(example["prompt_ids"]) == example["full_len_with_one_video_pad"]
    rows = [example["prompt_ids"] for example in ids["examples"]]
    prompt = {
        "tokens": np.array([row + [0] * (40 - len(row)) for row in rows], np.int32),
        "length": np.array([len(row) for row in rows], np.int32),
    }
    filled = np.asarray(fill_template(template, prompt, {module.video_token: 720}))
    assert filled.shape == (len(rows), length - 1 + 720 + 40)
    for row, own in zip(rows, filled, strict=True):
        own = own.tolist()
        start = template.head.index(module.video_token)
        assert own[start : start + 720] == [module.video_token] * 720
        behind = len(template.head) + 719
        assert own[behind : behind + len(row)] == row
        end = behind + len(row) + len(template.tail)
        assert own[behind + len(row) : end] == ids["tail_ids"] and not any(own[end:])


def test_published_numbers_from_released_files(tmp_path, reference, monkeypatch):
    """A released file is converted, its template stored; videos go in, scores and gradients out."""
    config = json.loads(reference("videoalign", "config.json").read_text())
    case = dict(np.load(reference("videoalign_e2e", "io.npz")))
    module = module_of(config)
    fields = ("vision", "language", "video_token", "picture_token", "score_tokens")
    definition = define_videoalign(
        alpha=config["reward"]["lora_alpha"], **{name: getattr(module, name) for name in fields}
    )
    monkeypatch.setitem(NETWORKS._entries, "videoalign_case", definition)
    source = reference("videoalign", "weights_peft.safetensors")
    for row, mask in enumerate(case["attention_mask"]):
        ids = case["input_ids"][row, : mask.sum()].tolist()
        check_row(tmp_path, source, config, ids, row, case)


def check_row(folder, source, config, ids, row, case):
    module, (mean, std) = module_of(config), moments_of(config)
    # What stands between MQ and TA is the prompt's place; the video is one token in a template.
    start, end = (ids.index(token) for token in module.score_tokens[1:])
    first = ids.index(module.video_token)
    once = [i for k, i in enumerate(ids[: start + 1]) if k == first or i != module.video_token]
    template = folder / "ids.json"
    template.write_text(json.dumps({"head_ids": once, "tail_ids": ids[end:]}))
    path = folder / "converted.safetensors"
    convert_network("videoalign_case", [source], path, template=str(template))
    # The case has limits of its own on frames' sizes, as its description says.
    defaults = get_defaults("rewards", "test")
    defaults.networks.videoalign_case = str(path)
    defaults.rewards.videoalign.update(
        network="videoalign_case",
        tokenizer="words",
        least_pixels=SMALL.least_pixels,
        most_pixels=SMALL.most_pixels,
        mean=mean,
        std=std,
    )
    chosen = make_rewards(("videoalign",), defaults)
    frozen = load_frozen(chosen.frozen, make_mesh(defaults.mesh))
    reward = chosen.rewards["videoalign"]
    prompt = {
        "tokens": jnp.array([ids[start + 1 : end] + [0]]),
        "length": jnp.array([end - start - 1]),
    }

    @functools.partial(jax.value_and_grad, has_aux=True)
    def overall(video):
        inputs = RewardInputs(video, prompt, None, float(case["fps"]))
        scores = reward.score(frozen["reward_videoalign"], inputs)
        return scores["videoalign"][0], scores

    (_, scores), gradient = jax.jit(overall)(case["video"][row : row + 1] * 2 - 1)
    found = [scores[f"videoalign_{name}"][0] for name in ("vq", "mq", "ta")]
    np.testing.assert_allclose(found, case["rewards_normalised"][row], atol=5e-5)
    np.testing.assert_allclose(scores["videoalign"][0], case["overall"][row], atol=1e-4)
    # A step in [-1, 1] is half as large in [0, 1].
    expected = case["grad_video"][row] / 2
    np.testing.assert_allclose(gradient[0], expected, rtol=0, atol=2e-4 * np.abs(expected).max())
    assert not gradient[0][~reward.seen(*case["video"].shape[1:4], float(case["fps"]))].any()
