"""FSVideo's base DiT: Wan2.1's transformer with layer memory on FSAE's latents (section 2.3).

``configs/fsvideo_dit.py``           a small one for labelled shapes; it needs a tokenizer and its
                                     latents, which ``python -m experiments.generator_demo`` makes
``demo,first=true``                  reads a first frame too: image to video
``demo,text=true``                   reads captions in place of classes, through a small random text
                                     encoder that needs no file
``demo,memory=false``                without layer memory; with ``paper`` too
``configs/fsvideo_dit.py:paper``     the published size, stage 2 of 3
``paper,stage=image``                images at 256x256 (text to image; nothing is given)
``paper,stage=image,start=wan``      from Wan2.1's weights, ``--config.train.init_from=<folder>``;
                                     the paper trains on FSAE's latents from random ones
``paper,stage=video``                121 frames at 256x256
``paper,stage=target``               121 frames at 512x512
``paper,stage=sft``                  the same size on the best clips
``demo,stage=cfg``                   guidance distilled into the demo: one evaluation a step
``demo,stage=progressive``           then 32 of its steps distilled to 4, in three stages
``demo,stage=sida``, ``stage=dmd``   or 4 steps by the scores of two networks, SiDA or DMD2
``paper,stage=refl``                 61 of the frames it makes raise two rewards, through the
                                     decoder; ``demo`` has one reward (docs/reward_gradients.md)
``demo,stage=grpo``                  its videos raise a reward without a gradient of it, of
                                     ``paper`` too (docs/policy_updates.md)

Latents come from ``--mode=encode`` with this config: ``--config.data.path=<set>``
(docs/chains.md). A stage starts from the workdir
of the one before it: ``--config.train.init_from=runs/fsvideo_dit-paper-stage_image``.
"""

from vidlatent.config import (
    VidlatentError,
    area_buckets,
    check_choice,
    distil_guidance,
    distil_scores,
    follow_rewards,
    generator_demo,
    get_generator_defaults,
    halve_steps,
    long_run,
    name_suffix,
    parse_arg,
    raise_rewards,
)

_FEW_STEPS = ("cfg", "progressive", "sida", "dmd")
_REWARDS = ("refl", "grpo")
_STAGES = ("image", "video", "target", "sft", *_FEW_STEPS, *_REWARDS)


def get_config(arg: str = ""):
    presets = ("demo", "paper")
    arg = parse_arg(
        arg, presets, stage="video", first=False, text=False, memory=True, start="random"
    )
    check_choice("stage", arg.stage, _STAGES)
    if arg.stage in _FEW_STEPS and arg.preset != "demo":
        raise VidlatentError(
            f"config argument stage={arg.stage}: the paper distils its refiner alone: use "
            f"configs/fsvideo_refiner.py:paper,stage={arg.stage}, or the demo here."
        )
    check_choice("start", arg.start, ("random", "wan"))
    config = get_generator_defaults("fsvideo_dit", arg.preset)
    generator = config.generator
    generator.name = "wan"
    generator.memory = arg.memory  # layer memory (2.3.1)
    # Initial weight of the previous layer (not stated): 0.5 from scratch; from Wan's weights 0.98,
    # with which the model computes nearly what it did before.
    generator.memory_share = 0.5
    # Not stated: whether to normalise after or before mixing (post | pre), and whether each layer
    # has a gate on the memory that starts closed. A stride n uses every n-th earlier layer only.
    generator.memory_norm = "post"
    generator.router_gate = False
    generator.memory_stride = 1
    generator.guidance_embed = False  # as an input; see config.distill.scale_range
    generator.eps = 1e-6
    # Routers get no weight decay and a higher learning rate (not stated; as in LIMe, on which the
    # layer memory builds).
    if arg.memory:
        config.optim.no_decay = "router_"
        config.optim.lr_factors = (("router_", 10.0),)
    _flow(config)
    {"demo": _demo, "paper": _paper}[arg.preset](config, arg)
    if not arg.memory:
        config.preset += "-plain"
    if arg.stage in _FEW_STEPS:
        _distil(config, arg)
    if arg.stage == "refl":
        _follow_rewards(config, arg)
    if arg.stage == "grpo":
        _raise_rewards(config, arg)
    return config


def _follow_rewards(config, arg):
    """ReFL (2.4.3): VideoAlign and MPS of 61 frames, of MPS the ten lowest."""
    if arg.preset == "demo":
        follow_rewards(config, ("motion",), _demo_starts(config))
        config.sampler.steps, config.refl.steps, config.refl.latents = 8, (4, 6), 0
        # So few parameters learn from few samples: the reward counts for more than at full size.
        config.refl.scale = 1.0
        _demo_rewards(config)
    else:
        config.preset = "paper"
        follow_rewards(config, ("videoalign", "mps"), ("fsvideo_dit sft", "fsvideo_dit target"))
        # Stated: the lowest ten frames. Not stated: that each of VideoAlign's scores has a hinge of
        # its own, the weights, the 64 prompts, and all values of config.refl.
        config.rewards.mps.lowest = 10
        video = tuple((f"videoalign_{name}", 1 / 3) for name in ("vq", "mq", "ta"))
        config.rewards.weights = (*video, ("mps", 0.5))
        config.data.buckets = ((121, 384, 640, 64),)
        config.data.length_weights = ()
        config.rl.decode_groups = 2
        config.rl.watch = ("motion",)


def _demo_starts(config):
    """Recipes that the demo's rewards may start from: with guidance, or with it built in."""
    built_in = (f"{config.recipe} {stage}" for stage in ("cfg", "progressive", "sida"))
    return (config.recipe, *built_in)


def _demo_rewards(config):
    config.data.buckets = ((9, 32, 32, 8),)
    config.rl.watch = ("sharpness",)
    config.optim.lr = 1e-4
    config.train.steps = 60
    config.checkpoint.every = config.eval.every = 15


def _raise_rewards(config, arg):
    """MixGRPO (2.4.3) on the base model, which the paper tunes by gradients of rewards instead."""
    if arg.preset == "demo":
        raise_rewards(config, ("motion",), _demo_starts(config))
        config.sampler.steps, config.rl.window.size, config.rl.eta = 8, 2, 0.5
        config.rl.group = 8
        _demo_rewards(config)
    else:
        config.preset = "paper"
        raise_rewards(config, ("mps",), ("fsvideo_dit sft", "fsvideo_dit target"))
        # 16 prompts of 12 samples: not stated, like all that follows here.
        config.data.buckets = ((121, 384, 640, 16),)
        config.data.length_weights = ()
        config.rl.parts = 12
        config.rl.decode_groups = 2
        config.rl.watch = ("motion",)


def _distil(config, arg):
    """Guidance and then steps: the refiner's method (2.4.3) on the base model's demo."""
    if arg.stage == "cfg":
        scale, told = config.sampler.guidance.scales[0], config.sampler.guidance.drops[0][0]
        distil_guidance(config, scale, told, config.recipe)
        config.train.steps = 400
    elif arg.stage in ("sida", "dmd"):
        distil_scores(config, arg.stage, 4, 400, 1e-4)
        config.distill.score.generator_after, config.distill.score.adversarial_after = 1600, 3200
        return
    else:
        halve_steps(config, (16, 8, 4), f"{config.recipe} cfg")
        config.train.steps = 900
    config.optim.lr = 3e-4


def _flow(config):
    """Flow matching with logit-normal levels and pseudo-Huber loss (2.3.2; eqs. 10-11 in 2.4.2)."""
    schedule = config.diffusion.schedule
    schedule.name = "flow"
    # Not stated: mean and standard deviation of the logit, and the shift.
    schedule.mean, schedule.std = 0.0, 1.0
    schedule.shift = 1.0
    config.diffusion.huber_reduction = "sample"  # sample | token | element (not stated)
    config.diffusion.huber_c0 = 0.00054  # not stated; value of the paper it cites
    config.optim.b1, config.optim.b2 = 0.9, 0.95  # stated
    sampler = config.sampler
    sampler.name, sampler.order = "unipc", 2  # solver and shift are Wan's (not stated)
    sampler.shift = 1.0


def _paper(config, arg):
    generator = config.generator
    generator.latent_channels = 128  # of FSAE
    generator.mask_channels = 4  # 1 | 4 (not stated; Wan's)
    generator.condition_channels = -1  # of the given frames: as many as the latents have
    generator.patch = (1, 1, 1)  # stated
    generator.width, generator.depth = 5120, 40
    generator.heads, generator.hidden = 40, 13824
    generator.freq_dim = 256
    generator.text_dim, generator.text_length = 4096, 512  # UMT5-XXL
    generator.label_classes, generator.label_tokens = 0, 4
    generator.image_dim = 1280  # CLIP ViT-H/14
    generator.stack = "recomputed"
    generator.remat = True
    generator.residual_dtype = "float32"
    # The shift grows with the square root of the number of tokens: 1 for images, 2.5 for videos at
    # 256x256, 5 at 512x512.
    config.diffusion.schedule.shift = 5.0
    config.diffusion.schedule.base_tokens = 1984
    config.sampler.steps = 30  # stated: 30 steps, two evaluations each
    config.sampler.shift = 5.0
    config.sampler.guidance.scales = (5.0,)  # not stated; Wan's
    config.sampler.guidance.drops = (("text",),)  # the image is kept in both evaluations
    # Dropout rates of the text and of the first frame's conditions (not stated).
    config.conditions.drop = {"text": 0.1, "first+image": 0.1}
    config.encode.text = "wan"  # prompts are encoded like the captions of the data set
    config.encode.image = "clip_vith14_wan"
    config.conditions.null_text = "empty"  # not stated; Wan's
    config.data.source = "latents"
    config.data.fps = 24.0  # stated
    _stage(config, "sft" if arg.stage in _REWARDS else arg.stage)
    if arg.start == "wan" and arg.stage == "image":
        config.train.init_kind = "wan_memory"
        generator.memory_share = 0.98
    config.optim.weight_decay = 0.01
    config.optim.ema_decay = 0.9999
    config.checkpoint.keep_every = 50_000
    config.preset = f"paper-stage_{arg.stage}" + name_suffix(arg, start="random")
    config.recipe = f"fsvideo_dit {arg.stage}"
    config.sample.fps = 24.0


def _stage(config, stage):
    """Sizes, steps and buckets of a stage.

    The paper states the sizes and that steps are shared 1 : 2 : 2 between the stages (2.3.2), but
    not the number of steps, learning rates, batch sizes or the share of images.
    """
    pictures = area_buckets(1, 256, 64, batch=512)
    small = area_buckets(121, 256, 64, batch=128)
    large = area_buckets(121, 512, 64, batch=64)
    chosen = {"image": pictures, "video": small, "target": large, "sft": large}[stage]
    steps = {"image": 100_000, "video": 200_000, "target": 200_000, "sft": 5000}[stage]
    rate = {"image": 1e-4, "video": 1e-4, "target": 5e-5, "sft": 1e-5}[stage]
    if stage in ("video", "target"):  # 15 % images
        chosen += area_buckets(1, {"video": 256, "target": 512}[stage], 64, batch=512)
        config.data.length_weights = ((121, 0.85), (1, 0.15))
    config.data.buckets = chosen
    # Not stated: all windows of a video, one after the other. Of pictures only the middle frame.
    config.encode.windows = "one" if stage == "image" else "all"
    long_run(config, steps=steps, lr=rate)
    side = {"image": (1, 256, 256), "video": (121, 256, 256)}
    # The refiner doubles the base's size, and 720x1280 is not a multiple of 64: so the base makes
    # 384x640, for a refined video of 768x1280.
    config.sample.size = side[stage] if stage in side else (121, 384, 640)
    before = {"image": None, "video": "image", "target": "video", "sft": "target"}[stage]
    if before:
        config.train.init_recipes = (f"fsvideo_dit {before}",)


def _demo(config, arg):
    generator = config.generator
    generator.latent_channels = -1  # as many as the latents have
    generator.mask_channels = 1 if arg.first else 0
    generator.condition_channels = -1 if arg.first else 0
    generator.patch = (1, 2, 2)  # the demo's 4x4x4 latents have more positions than 64x64x4
    generator.width, generator.depth = 128, 6
    generator.heads, generator.hidden = 4, 512
    generator.freq_dim = 64
    generator.text_dim, generator.text_length = 16, 8
    generator.label_classes, generator.label_tokens = 48, 4
    generator.image_dim = 0
    generator.stack = "scanned"  # faster with so few layers
    generator.remat = False
    generator.residual_dtype = "float32"
    told = "label"
    if arg.text:
        told = "text"
        generator.label_classes = 0
        # A random T5 with 16 channels over hashed words replaces UMT5, so that no file is needed.
        config.encode.text, config.encode.text_network = "wan", "umt5_tiny"
        config.encode.tokenizer = "words"
        config.preset += "-text"
    config.conditions.drop = {told: 0.1}
    if arg.first:
        config.conditions.drop = {told: 0.1, "first": 0.3}
        config.preset += "-first"
    # One flat shape is told hundreds of times over by a clip's latents: it is known from far more
    # noise than their detail is, and where it goes is decided there.
    config.diffusion.schedule.shift = 3.0
    config.sampler.shift = 3.0
    config.sampler.steps = 20
    config.sampler.guidance.scales = (2.5,)
    config.sampler.guidance.drops = ((told,),)
    generator_demo(config)
    config.recipe = "fsvideo_dit demo"
