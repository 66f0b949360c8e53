"""Which values each config key may have: a rule for every key of the defaults.

Names that a registry knows (models, losses, samplers, sources, metrics, ...) are any text here: the
registry refuses unknown ones, and packages of your own add to it.
"""

from __future__ import annotations

from typing import Any

from vidlatent.config.rules import (
    Choice,
    Each,
    Either,
    Flag,
    Many,
    Number,
    OrFollow,
    Pattern,
    Text,
    number,
    whole,
)

__all__ = ["FIELDS", "GROUPS", "RULES", "SHIPPED"]

_COUNT = whole(1)
_COUNT_OR_NONE = whole(0)
_OPTION = whole(-1)  # -1 stands for a choice that is made later
_SEED = whole(0, 2**32 - 1)  # larger ones would be taken modulo 2**32
_POSITIVE = Number(0, above=True)
_WEIGHT = number(0)
_SHARE = number(0, 1)
_DECAY = Number(0, 1, below=True)
_NAMES = Many(Text(needed=True), "('a', 'b')")
_SIDES = "frames, height, width"
_BUCKET = Each((_COUNT,) * 4, "(17, 256, 256, 8)", f"{_SIDES}, global batch", optional=True)
_SIZE = Each((_COUNT,) * 3, "(17, 256, 256)", _SIDES, optional=True)
_CHUNKS = Each((_COUNT, whole(0)), "(17, 4)", "frames, overlap", optional=True)

_OPTIM: dict[str, Any] = {
    "lr": _WEIGHT,
    "schedule": Choice(("cosine", "constant", "linear")),
    "final_lr_share": _SHARE,
    "warmup_steps": _COUNT_OR_NONE,
    "ramp": Many(Each((whole(0), _WEIGHT), "(1000, 0.5)"), "((0, 0.1), (1000, 1.0))"),
    "b1": _DECAY,
    "b2": _DECAY,
    "eps": _POSITIVE,
    "weight_decay": _WEIGHT,
    "clip_norm": _WEIGHT,
    "clip_after": _COUNT_OR_NONE,
    "lr_factors": Many(Each((Pattern(), _WEIGHT), "('router_', 10.0)"), "(('router_', 10.0),)"),
    "no_decay": Pattern(),
    "freeze": Pattern(),
}

_LORA = {
    "rank": _COUNT_OR_NONE,
    "alpha": _WEIGHT,
    "targets": Pattern(),
    "full": Pattern(),
    "rows": Many(
        Each((Pattern(), Many(_COUNT_OR_NONE, "(3, 4)")), "('text/embedding', (3, 4))"),
        "(('text/embedding', (3, 4)),)",
    ),
    "dropout": _DECAY,
}

# Section -> key -> rule; "" holds the keys that belong to no section.
_SECTIONS: dict[str, dict[str, Any]] = {
    "": {
        "task": Text(needed=True),
        "imports": _NAMES,
        "name": Text(needed=True),
        "preset": Text(needed=True),
        "recipe": Text(),
        "seed": _SEED,
    },
    "optim": {**_OPTIM, "accumulate": _COUNT, "ema_decay": _SHARE},
    "optim.lora": _LORA,
    "discriminator": {
        "loss": Choice(("hinge", "non_saturating")),
        "weight": _WEIGHT,
        "scale": _WEIGHT,
        "start_step": _COUNT_OR_NONE,
        "warmup_steps": _COUNT_OR_NONE,
        "images": Flag(),
        "adaptive_layer": Pattern(),
        "adaptive_terms": _NAMES,
        "r1_weight": _WEIGHT,
        "r1_every": _COUNT,
        "r1_crop": Each((_COUNT,) * 3, "(17, 256, 256)", _SIDES),
        "lecam_weight": _WEIGHT,
        "lecam_decay": _SHARE,
        "inherit": Flag(),
    },
    "discriminator.optim": _OPTIM,
    "data": {
        "source": Text(needed=True),
        "path": Text(),
        "tfds_name": Text(),
        "tfds_field": Text(),
        "tfds_label": Text(),
        "tfds_caption": Text(),
        "labels": Choice(("", "folders")),
        "buckets": Many(
            Each((_COUNT,) * 4, "(5, 64, 64, 2)", f"{_SIDES}, global batch"), "((5, 64, 64, 2),)"
        ),
        "bucket_rule": Choice(("nearest", "inward")),
        "length_weights": Many(
            Each((_COUNT, _WEIGHT), "(17, 0.8)", "frames, share"), "((17, 0.8), (1, 0.2))"
        ),
        "bucket_weights": Many(_WEIGHT, "(0.8, 0.2)"),
        "max_shapes": _COUNT_OR_NONE,
        "fps": _WEIGHT,
        "frame_interval": _COUNT,
        "crop": Choice(("random", "centre", "resized")),
        "resize": Choice(("area", "bilinear")),
        "flip": Flag(),
        "validation_share": Number(0, 1, below=True),
        "validation_clips": _COUNT_OR_NONE,
        "num_workers": whole(0, 1024),
        "read_threads": whole(1, 1024),
        "prefetch": _COUNT,
        "memory_mb": _COUNT_OR_NONE,
        "decode_timeout_s": _POSITIVE,
        "max_pixels": _COUNT,
        "bad_clip_budget": _SHARE,
        "bad_clip_window": _COUNT,
        "index_cache": Text(),
        "verify": Choice(("header", "decode", "auto")),
    },
    "data.synthetic": {
        "clips": _COUNT,
        "frames": _COUNT,
        "height": _COUNT,
        "width": _COUNT,
        "shapes": _COUNT_OR_NONE,
        "fps": _POSITIVE,
        "kind": Choice(("scenes", "paths", "shapes")),
        "speed": _WEIGHT,
        "turns": _WEIGHT,
    },
    "precision": {"compute": Choice(("auto", "float32", "bfloat16"))},
    "kernels": {
        "attention": Text(),
        "qk_norm_rope": Text(),
        "layer_mix": Text(),
        "conv3d": Text(),
    },
    "mesh": {"data": _OPTION, "fsdp": _OPTION, "context": _OPTION, "tensor": _OPTION},
    "processes": {
        "join_timeout": _COUNT,
        "silence_timeout": _COUNT,
        "compare_timeout": _COUNT,
        "preflight": Flag(),
        "topology": Text(),
    },
    "train": {
        "steps": _COUNT,
        "stop_at": _COUNT_OR_NONE,
        "hang_timeout": _COUNT_OR_NONE,
        "init_from": Text(),
        "init_kind": Text(),
        "init_table": Text(needed=True),
        "init_recipes": _NAMES,
        "sample_latent": Flag(),
        "patch_cells": _COUNT_OR_NONE,
        "patch_above": _COUNT_OR_NONE,
        "patch_latents": _COUNT_OR_NONE,
        "patch_encoder": Flag(),
        "log_every": _COUNT,
        "max_bad_steps": _COUNT,
        "tensorboard": Flag(),
        "histograms": _COUNT_OR_NONE,
        "profile_at": _COUNT_OR_NONE,
        "profile_steps": _COUNT,
    },
    "checkpoint": {
        "every": _COUNT_OR_NONE,
        "keep_latest": _COUNT,
        "keep_every": _COUNT_OR_NONE,
        "keep_best": _COUNT_OR_NONE,
        "best_metric": Text(),
        "best_mode": Choice(("max", "min")),
        "verify": Choice(("off", "sample", "full", "auto")),
    },
    "codec": {
        "time": Choice(("auto", "stream", "windows", "chunks")),
        "groups": _COUNT,
        "scan_groups": _COUNT_OR_NONE,
        "window_latents": _COUNT,
        "chunk_frames": _COUNT_OR_NONE,
        "overlap_frames": _OPTION,
        "space": Text(needed=True),  # each tokenizer has ways of its own
        "memory_gb": _WEIGHT,
        "strip_mb": _WEIGHT,
        "layer_positions": _COUNT_OR_NONE,
        "layer_overlap_positions": _OPTION,
        "layer_dead_positions": _OPTION,
        "tile_pixels": _COUNT_OR_NONE,
        "tile_overlap_pixels": _OPTION,
    },
    "compress": {
        "dtype": Choice(("float16", "bfloat16", "float32")),
        "coder": Choice(("lzma", "zlib", "none")),
        "weights": Flag(),
    },
    "encode": {
        "windows": Choice(("one", "all", "random")),
        "windows_per_clip": _COUNT,
        "flip": Choice(("none", "random", "both")),
        "stride": _COUNT_OR_NONE,
        "dtype": Choice(("float16", "bfloat16", "float32")),
        "draws": _COUNT_OR_NONE,
        "chunks": _CHUNKS,
        "shards": _COUNT_OR_NONE,
        "text": Text(),
        "text_network": Text(),
        "tokenizer": Text(),
        "image": Text(),
        "content": Text(),
        "content_draw": Flag(),
        "low": _COUNT_OR_NONE,
        "measure_batches": _COUNT,
        "pictures": _COUNT_OR_NONE,
        "process_index": _COUNT_OR_NONE,
        "process_count": _COUNT_OR_NONE,
    },
    "eval": {
        "every": _COUNT_OR_NONE,
        "pictures": _COUNT_OR_NONE,
        "preservation": Flag(),
        "metrics": _NAMES,
        "training_metrics": _NAMES,
        "is_splits": _COUNT,
        "random_networks": Flag(),
        "protocol": Text(),
        "leave_out": _NAMES,
        "samples": Text(),
        "rewards": _NAMES,
        "frames": _COUNT_OR_NONE,
        "interpolated": Text(),
        "batch": _COUNT,
        "fewer_clips": Flag(),
        "clips": _COUNT_OR_NONE,
        "compare": Flag(),
        "layer_memory": Flag(),
        "gride_clips": _COUNT_OR_NONE,
    },
    "rewards": {
        "use": _NAMES,
        "weights": Many(Each((Text(needed=True), number()), "('motion', 1.0)"), "(('motion', 1),)"),
        "ties": Number(1, above=True),
    },
    "rewards.colour": {
        "colour": Text(),
        "measure": Choice(("share", "closeness")),
        "width": _POSITIVE,
    },
    "rewards.mps": {
        "network": Text(needed=True),
        "tokenizer": Text(),
        "condition": Text(needed=True),
        "threshold": _SHARE,
        "padding": _OPTION,
        "quantize": Choice(("none", "straight", "round")),
        "lowest": _COUNT_OR_NONE,
        "frames_at_once": _COUNT,
    },
    "rewards.videoalign": {
        "network": Text(needed=True),
        "tokenizer": Text(),
        "template": Text(),
        "picture": Flag(),
        "positions": Choice(("sequential", "axes")),
        "quantize": Choice(("none", "straight", "round")),
        "rate": _POSITIVE,
        "least_pixels": _COUNT,
        "most_pixels": _COUNT,
        "longest": _COUNT,
        "bucket": _COUNT,
        "mean": Each((number(),) * 3, "(3.7, 1.2, 2.8)", "VQ, MQ, TA"),
        "std": Each((_POSITIVE,) * 3, "(2.2, 1.4, 2.5)", "VQ, MQ, TA"),
    },
    "plan": {
        "what": Text(needed=True),
        "bucket": _BUCKET,
        "memory_gib": _WEIGHT,
        "tries": _COUNT_OR_NONE,
        "effort": number(-1, 1),
        "tokenizer": Text(),
        "base": Text(needed=True),
        "upsampler": Text(needed=True),
    },
    "bench": {
        "what": _NAMES,
        "bucket": _BUCKET,
        "warmup": _COUNT_OR_NONE,
        "repeats": _COUNT,
        "inputs": _COUNT,
        "loop_steps": _COUNT,
    },
    "tokenizer": {"path": Text(), "step": _OPTION, "sample": Flag(), "chunks": _CHUNKS},
    "latents": {
        "normalisation": Choice(("statistics", "spec", "none")),
        "chunk_positions": Flag(),
    },
    "diffusion": {
        "huber_reduction": Choice(("sample", "token", "element")),
        "huber_c0": _POSITIVE,
        "eval_levels": _COUNT,
    },
    "conditions": {
        "joint": _SHARE,
        "null_text": Choice(("zeros", "empty")),
        "content": Choice(("latents", "pooled")),
    },
    "generator": {
        "latent_channels": OrFollow(_COUNT, "the latents"),
        "condition_channels": OrFollow(_COUNT_OR_NONE, "the latents"),
    },
    "sampler": {
        "name": Text(needed=True),
        "steps": _COUNT,
        "spacing": Text(),
        "shift": _WEIGHT,
        "order": whole(1, 3),
        "solver_type": Choice(("bh1", "bh2")),
        "corrector": Flag(),
        "eta": _SHARE,
        "cache_conditions": Flag(),
        "residual_dtype": Choice(("auto", "float32", "bfloat16")),
        "fp8": Flag(),
        "force": Flag(),
    },
    "sampler.guidance": {
        "scales": Many(number(), "(7.5,)"),
        "drops": Many(_NAMES, "(('text',),)"),
        "interval": Each((_WEIGHT, _WEIGHT), "(0.1, 0.9)", optional=True),
        "rescale": _SHARE,
        "negative": Text(),
        "batched": Flag(),
    },
    "sampler.cache": {
        "threshold": _WEIGHT,
        "polynomial": Many(number(), "(1.0, 0.0)"),
        "max_skips": _COUNT,
    },
    "sample": {
        "prompts": Many(Text(), "('a red square',)"),
        "count": _COUNT,
        "seed": _SEED,
        "size": _SIZE,
        "batch": _COUNT,
        "residency": Choice(("swap", "keep", "auto")),
        "refine": Text(),
        "fps": _WEIGHT,
        "vbench": Flag(),
        "clamp_first": Flag(),
        "grid": _COUNT_OR_NONE,
    },
    "refiner": {
        **dict.fromkeys(("base", "upsampler"), Text()),
        **dict.fromkeys(("base_step", "upsampler_step"), _OPTION),
        "mask_mode": Choice(("confidence", "error")),
        "mask_map": Choice(("spatial", "sample")),
        **dict.fromkeys(("mask_low", "mask_high", "least_sigma"), _SHARE),
        "mask_tau": _POSITIVE,
        **dict.fromkeys(("shuffle_rate", "real_rate", "low_drop"), _SHARE),
        "shuffle_odds": Each((_WEIGHT,) * 3, "(6.0, 3.0, 1.0)", "window, two, all"),
        "shuffle_window": Each((_COUNT,) * 2, "(2, 4)", "least, most frames"),
    },
    "upsampling": {
        "latent_weight": _WEIGHT,
        "target": Choice(("auto", "video", "decoded")),
        **dict.fromkeys(("patch_latents", "frames"), _COUNT_OR_NONE),
    },
    "distill": {
        "teacher": Text(),
        "teacher_step": _OPTION,
        "scales": Many(number(), "(5.0,)"),
        "drops": Many(_NAMES, "(('text',),)"),
        "convention": Choice(("null", "condition")),
        "scale_range": Each((number(), number()), "(1.0, 7.0)", optional=True),
        "batched": Flag(),
        "stages": Many(_COUNT, "(32, 16)"),
        "weighting": Choice(("output", "truncated_snr")),
        "unguided": Flag(),
    },
    "distill.score": {
        "kind": Choice(("sida", "dmd")),
        "weighting": Choice(("one_minus_sigma", "inverse_error")),
        "pooling": Choice(("tokens", "channels")),
        "levels": Choice(("logit_normal", "uniform")),
        **dict.fromkeys(("alpha", "level_mean"), number()),
        **dict.fromkeys(
            ("score_weight", "adversarial_weight", "discriminator_weight", "clip_value"), _WEIGHT
        ),
        "fake_updates": _COUNT,
        **dict.fromkeys(("generator_after", "adversarial_after"), _COUNT_OR_NONE),
        "level_std": _POSITIVE,
        "level_range": Each((_SHARE, _SHARE), "(0.02, 0.98)", "least, most"),
    },
    "distill.optim": _OPTIM,
    "distill.optim.lora": _LORA,
    "rl": {
        "group": whole(2),
        **dict.fromkeys(("parts", "updates", "stop_after"), _COUNT),
        "noise": Text(needed=True),
        "eta": _POSITIVE,
        "same_start": Flag(),
        **dict.fromkeys(("start_seed", "noise_seed"), _OPTION),
        **dict.fromkeys(
            ("least_std", "advantage_eps", "kl_weight", "ratio_tolerance", "stop_fall"), _WEIGHT
        ),
        **dict.fromkeys(("clip", "advantage_clip"), _POSITIVE),
        "advantage_std": Choice(("unbiased", "population")),
        "kl_kind": Choice(("log_ratio", "published", "exact")),
        **dict.fromkeys(("frames", "decode_groups"), _COUNT_OR_NONE),
        "watch": _NAMES,
    },
    "rl.window": {
        **dict.fromkeys(("size", "stay", "stride"), _COUNT),
        "order": Choice(("progressive", "random", "decaying")),
        "end": Choice(("every", "published")),
        "decay": _WEIGHT,
        "threshold": _COUNT_OR_NONE,
    },
    "refl": {
        "steps": Each((whole(0), whole(0)), "(20, 28)", "first, last"),
        "latents": _COUNT_OR_NONE,
        "margin": number(),
        "margins": Many(Each((Text(needed=True), number()), "('mps', 1.5)"), "(('mps', 1.5),)"),
        "standards": Many(
            Each((Text(needed=True), number(), _POSITIVE), "('mps', 9.0, 3.0)", "score, mean, std"),
            "(('mps', 9.0, 3.0),)",
        ),
        "scale": _POSITIVE,
        "flow_weight": _WEIGHT,
        **dict.fromkeys(("divide_by_guidance", "stream"), Flag()),
        "groups": _COUNT,
    },
}

# Key -> rule.
RULES = {
    f"{section}.{key}".lstrip("."): rule
    for section, keys in _SECTIONS.items()
    for key, rule in keys.items()
}

# Groups whose keys are chosen by a config file -> rule of every value in them, if there is one.
GROUPS: dict[str, Any] = {
    "model": None,
    "generator": None,
    "discriminator.model": None,
    "diffusion.schedule": None,
    "loss": None,
    "conditions.drop": _SHARE,
    "networks": Text(),
}

_COUNTS = Many(_COUNT, "(16, 32)")
_COUNTS_OR_NONE = Many(whole(0), "(0, 1)")
_WINDOW = Either(whole(0), Each((_COUNT, _COUNT), "(64, 128)", "rows and columns"))

# Group -> names whose fields ``FIELDS`` knows. Those of your own packages check their fields alone.
SHIPPED = {
    "model": ("dcae", "fsae", "ivvae", "magvit2", "promag", "reducio", "wan_vae"),
    "generator": ("latte", "promag_dit", "reducio_dit", "wan"),
    "discriminator.model": ("multiscale3d", "patch2d", "patch3d", "stylegan3d"),
    "diffusion.schedule": ("cosine", "flow", "linear", "scaled_linear"),
}

# Fields of these models, generators, discriminators and schedules, by name: what is numeric in
# them. A field of another name is only asked to be finite.
FIELDS: dict[str, Any] = {
    **dict.fromkeys(
        (
            "latent_channels",
            "width",
            "depth",
            "heads",
            "hidden",
            "head_dim",
            "pixel_patch",
            "blocks",
            "grow_blocks",
            "groups",
            "content_width",
            "content_blocks",
            "content_channels",
            "content_factor",
            "content_patch",
            "content_side",
            "cross_head_dim",
            "frames",
            "time_factor",
            "space_factor",
            "freq_dim",
            "time_dim",
            "text_dim",
            "text_length",
            "image_tokens",
            "label_tokens",
            "memory_stride",
            "pixels_per_latent",
            "scales",
            "steps",
        ),
        _COUNT,
    ),
    **dict.fromkeys(
        (
            "cross_window",
            "decoder_width",
            "row_limit",
            "tile_size",
            "tile_overlap",
            "tile_dead_zone",
            "mask_channels",
            "label_classes",
            "image_dim",
            "base_tokens",
        ),
        _COUNT_OR_NONE,
    ),
    **dict.fromkeys(
        (
            "encoder_widths",
            "decoder_widths",
            "multipliers",
            "content_multipliers",
            "extra_multipliers",
            "time_kernels",
            "widths",
            "patch",
        ),
        _COUNTS,
    ),
    **dict.fromkeys(
        (
            "encoder_depths",
            "decoder_depths",
            "temporal_down",
            "cross_stages",
            "noise_stages",
            "pac_dilations",
        ),
        _COUNTS_OR_NONE,
    ),
    **dict.fromkeys(
        (
            "latent_scale",
            "content_scale",
            "norm_eps",
            "eps",
            "head_eps",
            "position_scale",
            "position_span",
            "std",
            "shift",
            "snr_shift",
        ),
        _POSITIVE,
    ),
    **dict.fromkeys(("noise_weight", "residual_scale", "norm_scale_init"), _WEIGHT),
    **dict.fromkeys(("latent_shift", "logvar_init", "mean"), number()),
    # The betas of a noise schedule.
    **dict.fromkeys(("start", "end"), Number(0, 1, above=True, below=True)),
    "latent_mean": Many(number(), "(-0.1, 0.2)"),
    "latent_std": Many(_POSITIVE, "(0.9, 1.1)"),
    "memory_share": _SHARE,
    # A side, or rows and columns.
    **dict.fromkeys(("attention_window", "fuse_window"), _WINDOW),
    # How often ProMAG's 4x in time is doubled.
    "grow": whole(0, 2),
    # Levels of content features; -1 stands for none.
    "fuse": Many(_OPTION, "(-1, 1, -1)"),
    "multiscales": Many(_COUNTS, "((), (5,))"),
}
