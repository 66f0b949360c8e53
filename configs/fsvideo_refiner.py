"""FSVideo's refiner: the base model's network at twice its size, video to video (section 2.4.2).

``configs/fsvideo_refiner.py``    a small one for pairs of labelled shapes
``paper,stage=image``             pictures at 512x512: nothing is given but the text
``paper,stage=video``             121 frames at 512x512, small ones of 256x256
``paper,stage=target``            121 frames at 1024x1024, small ones of 512x512
``stage=cfg``                     guidance distilled into it (2.4.3), of the demo too
``stage=progressive``             then 64 steps distilled to 32, the demo's 16 to 8
``stage=sida``, ``stage=dmd``     then 8 steps (the demo's 4) by adversarial score identity
                                  distillation, or by DMD2 to compare with
``stage=grpo``                    its videos raise a reward (2.4.3; docs/policy_updates.md)

The first starts from the base model, ``--config.train.init_from=BASE``, whose copy stays frozen
beside it: ``--config.refiner.base=BASE --config.refiner.upsampler=UPSAMPLER``. The data are pairs:
a set that was encoded with ``--config.encode.low=2``, or videos. Distillation starts from the stage
before, ``--config.distill.teacher=REFINER``, whose base model and upsampler it takes over; policy
updates from ``--config.train.init_from=REFINER``.
"""

from vidlatent.config import (
    area_buckets,
    check_choice,
    distil_guidance,
    distil_scores,
    halve_steps,
    load_base,
    long_run,
    parse_arg,
    raise_rewards,
)

_FEW_STEPS = ("cfg", "progressive", "sida", "dmd")
_STAGES = ("image", "video", "target", *_FEW_STEPS, "grpo")


def get_config(arg: str = ""):
    arg = parse_arg(arg, presets=("demo", "paper"), stage="video")
    check_choice("stage", arg.stage, _STAGES)
    if arg.preset == "demo":
        config = load_base("fsvideo_dit:demo,first=true")
        _demo(config)
    else:
        config = load_base("fsvideo_dit:paper,stage=target")
        _paper(config, "target" if arg.stage in (*_FEW_STEPS, "grpo") else arg.stage)
    config.task = "refiner"
    config.name = "fsvideo_refiner"
    config.encode.low = 2
    # 8 Euler steps without guidance (stated), which need distillation to be good.
    config.sampler.name, config.sampler.steps = "euler", 8
    config.sampler.guidance.scales, config.sampler.guidance.drops = (), ()
    if arg.stage in _FEW_STEPS:
        _distil(config, arg)
    if arg.stage == "grpo":
        _raise_rewards(config, arg)
    return config


def _raise_rewards(config, arg):
    """MixGRPO is stated; its values, prompts and rewards' weights are not."""
    demo = arg.preset == "demo"
    follows = tuple(f"{config.recipe}{stage}" for stage in (" sida", " progressive", " cfg", ""))
    config.preset = arg.preset
    raise_rewards(config, ("motion",) if demo else ("videoalign",), follows[::-1])
    if demo:
        config.data.buckets = ((9, 64, 64, 4),)
        config.rl.group, config.rl.parts = 8, 2
        config.rl.watch = ("sharpness",)
        config.optim.lr = 1e-4
        config.train.steps = 40
        config.checkpoint.every = config.eval.every = 20
    else:
        # VideoAlign is stated; its three scores count alike, and their sum is left out.
        kinds = ("vq", "mq", "ta")
        config.rewards.weights = tuple((f"videoalign_{kind}", 1.0) for kind in kinds)
        config.data.buckets = ((121, 768, 1280, 16),)
        config.rl.parts = 12
        # A whole video at once would take 262 GiB to decode (docs/policy_updates.md).
        config.rl.decode_groups = 2
        config.rl.watch = ("motion",)


def _distil(config, arg):
    """Guidance scale, rates and numbers of training steps are not stated."""
    demo, before = arg.preset == "demo", config.recipe
    if not demo:
        config.preset = "paper"
    if arg.stage == "cfg":
        distil_guidance(config, *((2.5, "label") if demo else (5.0, "text")), before)
        config.sampler.steps = 16 if demo else 64
        config.train.steps = 300 if demo else 4000
    elif arg.stage in ("sida", "dmd"):
        return _distil_scores(config, arg.stage, demo)
    else:
        # 32 steps are stated; the first teacher's 64 are not.
        halve_steps(config, (8,) if demo else (32,), f"{before} cfg")
        config.train.steps = 300 if demo else 5000
    config.optim.lr = 2e-4 if demo else 1e-5
    config.optim.ema_decay = 0.99 if demo else 0.999


def _distil_scores(config, kind, demo):
    """8 steps are stated; rates are those that the methods' authors advise."""
    rate = 1e-4 if demo else {"sida": 1e-6, "dmd": 5e-7}[kind]
    distil_scores(config, kind, 4 if demo else 8, 150 if demo else 5000, rate)
    config.optim.ema_decay = 0.98 if demo else 0.0  # large runs have none
    if demo:
        config.distill.score.generator_after, config.distill.score.adversarial_after = 320, 640


def _paper(config, stage):
    # Not stated: dropout of text, and of everything that is given (which keeps text to video
    # alive, as the paper asks). config.refiner.low_drop leaves out the small video alone.
    config.conditions.drop = {"text": 0.1, "first+image": 0.05}
    side, frames, batch, steps, rate = {
        "image": (512, 1, 256, 50_000, 1e-4),
        "video": (512, 121, 64, 100_000, 1e-4),
        "target": (1024, 121, 32, 100_000, 5e-5),
    }[stage]
    # Multiples of 128: each half of a clip must be the tokenizer's as well.
    config.data.buckets = area_buckets(frames, side, 128, batch=batch)
    config.data.bucket_weights = config.data.length_weights = ()
    long_run(config, steps=steps, lr=rate)
    # Cut from 768x1280, the base model's 384x640 doubled.
    config.sample.size = {"image": (1, 512, 512), "video": (121, 512, 512)}.get(
        stage, (121, 720, 1280)
    )
    config.preset = f"paper-stage_{stage}"
    config.recipe = f"fsvideo_refiner {stage}"
    base = ("fsvideo_dit target", "fsvideo_dit sft")
    config.train.init_recipes = {
        "image": base,
        "video": (*base, "fsvideo_refiner image"),
        "target": ("fsvideo_refiner video",),
    }[stage]


def _demo(config):
    config.data.buckets = ((9, 64, 64, 16),)
    config.conditions.drop = {"label": 0.1, "first": 0.05}
    config.train.steps = 600
    config.optim.lr = 5e-4
    config.sample.batch = 4
    config.sample.size = (9, 64, 64)
    config.preset = "demo"
    config.recipe = "fsvideo_refiner demo"
    config.train.init_recipes = ("fsvideo_dit demo",)
