"""Latte on IV-VAE's latents: the generation experiments of IV-VAE (supplement, 3.1).

``configs/latte.py``               a small one for labelled shapes; it needs a tokenizer and its
                                   latents: ``python -m experiments.generator_demo --system=latte``
``configs/latte.py:paper``         Latte-XL/2, 17 frames at 256x256 (``z=16`` for other latents)
``paper,data=ucf101``              class-conditional: ``ucf101``, ``kinetics400``
``paper,data=sky``                 without classes: ``sky`` (SkyTimelapse, with pictures), ``faces``
``stage=cfg``                      guidance distilled into the model with classes, of the demo too
``stage=progressive``              then fewer steps: the demo's 40 to 10, 128 to 32
``demo,flow=true``                 by flow matching in place of DDPM's noise prediction
``demo,flow=true,stage=sida``      then 4 steps by the scores of two networks, SiDA (or ``dmd``)
``stage=grpo``                     its videos raise a reward (docs/policy_updates.md)

Latents come from ``--mode=encode``: ``--config.data.path=<set>``. Distillation starts from the run
of the stage before, ``--config.distill.teacher=<workdir>``; IV-VAE's paper has none.
"""

from vidlatent.config import (
    VidlatentError,
    check_choice,
    distil_guidance,
    distil_scores,
    generator_demo,
    get_generator_defaults,
    halve_steps,
    long_run,
    noise_prediction,
    parse_arg,
    raise_rewards,
)

# For each data set: number of classes, and the step at which clipping starts (Latte's code).
_DATA = {"ucf101": (101, 100_000), "kinetics400": (400, 100_000), "sky": (0, 20_000)}
_DATA["faces"] = (0, 20_000)


_SCORES = ("sida", "dmd")


def get_config(arg: str = ""):
    arg = parse_arg(arg, presets=("demo", "paper"), data="ucf101", z=4, flow=False, stage="data")
    check_choice("data", arg.data, _DATA)
    check_choice("stage", arg.stage, ("data", "cfg", "progressive", *_SCORES, "grpo"))
    _check_flow(arg)
    config = get_generator_defaults("latte", arg.preset)
    generator = config.generator
    generator.name = "latte"
    generator.patch = (1, 2, 2)
    generator.learned_variance = True
    generator.images_skip_time = True  # images only pass through the spatial blocks
    generator.guidance_embed = False  # as an input; see config.distill.scale_range
    generator.eps = 1e-6
    generator.residual_dtype = "float32"
    noise_prediction(config)  # Latte's
    {"demo": _demo, "paper": _paper}[arg.preset](config, arg)
    if arg.flow:
        _flow(config)
    if arg.stage not in ("data", "grpo"):
        _distil(config, arg)
    if arg.stage == "grpo":
        _raise_rewards(config, arg)
    return config


def _check_flow(arg):
    if arg.flow and arg.preset != "demo":
        raise VidlatentError("config argument flow=true is of the demo: Latte's paper has none.")
    if arg.stage in _SCORES and not arg.flow:
        raise VidlatentError(
            f"config argument stage={arg.stage} needs a teacher of flow matching: train and distil "
            "it by demo,flow=true."
        )


def _flow(config):
    """As the demo of configs/fsvideo_dit.py, on Latte's network."""
    config.generator.learned_variance = False
    config.diffusion.schedule = {"name": "flow", "mean": 0.0, "std": 1.0, "shift": 3.0}
    config.sampler.name, config.sampler.steps = "unipc", 20
    config.sampler.spacing, config.sampler.shift = "", 3.0
    config.preset += "-flow"
    config.recipe += " flow"


def _raise_rewards(config, arg):
    """FSVideo's method for its refiner (2.4.3) on this generator; all values are ours."""
    demo, before = arg.preset == "demo", config.recipe
    if not arg.flow:
        config.sampler.spacing = "trailing"
    config.sampler.steps = 10 if demo else 25
    raise_rewards(config, ("motion",), (before, f"{before} cfg", f"{before} progressive"))
    config.rl.watch = ("sharpness",)
    if demo:
        config.data.buckets = ((9, 32, 32, 8),)
        config.rl.group = 8
        config.optim.lr = 1e-4
        config.train.steps = 60
        config.checkpoint.every = config.eval.every = 15
    else:
        config.data.buckets = ((17, 256, 256, 32),)
        config.rl.parts = 4


def _distil(config, arg):
    """Guidance and then steps: FSVideo's method (2.4.3) on this generator; all values are ours."""
    demo, before = arg.preset == "demo", config.recipe
    scales = config.sampler.guidance.scales
    if arg.stage == "cfg":
        if not scales:
            raise VidlatentError(f"config argument data={arg.data} has no classes to guide.")
        distil_guidance(config, scales[0], "label", before)
        config.train.steps = 400 if demo else 20_000
    elif arg.stage in _SCORES:
        distil_scores(config, arg.stage, 4, 400, 1e-4)
        config.distill.score.generator_after, config.distill.score.adversarial_after = 1600, 3200
        return
    else:
        # Levels of whole steps of the diffusion, so that those of every stage nest.
        config.sampler.spacing = "" if arg.flow else "trailing"
        stages = (20, 10) if demo else (64, 32)
        halve_steps(config, stages, f"{before} cfg" if scales else before)
        config.train.steps = 800 if demo else 40_000
    config.optim.lr = 3e-4 if demo else 1e-5


def _paper(config, arg):
    classes, clip_after = _DATA[arg.data]
    generator = config.generator
    generator.latent_channels = (
        arg.z
    )  # the paper does not state z; the models it compares with have 4
    generator.width, generator.depth = 1152, 28
    generator.heads, generator.hidden = 16, 4608
    generator.freq_dim = 256
    generator.label_classes = classes
    generator.remat = True
    config.latents.normalisation = "spec"  # the released scale and shift (configs/ivvae.py)
    config.data.source = "latents"
    # Stated: 17 frames, every third of the source, and 32 videos per step.
    config.data.frame_interval = 3
    # Latte draws a window anew in every step, and mirrors half of them but for SkyTimelapse. A set
    # of latents has a fixed number of windows of each clip; how many is our choice.
    config.encode.windows, config.encode.windows_per_clip = "random", 8
    config.tokenizer.sample = True  # as Latte's code does: the latents of a set are draws, too
    config.encode.flip = "none" if arg.data == "sky" else "random"
    config.data.flip = arg.data != "sky"
    config.data.buckets = ((17, 256, 256, 32),)
    if arg.data == "sky":  # with 20 images per step (stated), here in separate batches
        config.data.buckets = ((17, 256, 256, 32), (1, 256, 256, 20))
    if classes:
        config.conditions.drop = {"label": 0.1}
    # 250 steps are stated. The guidance scale of 7 with classes is Latte's; none without.
    config.sampler.name, config.sampler.steps = "ancestral", 250
    config.sampler.guidance.scales = (7.0,) if classes else ()
    config.sample.size = (17, 256, 256)
    config.sample.fps = 8.0
    # The learning rate is stated; schedule, decay, clipping and EMA are Latte's. The number of
    # steps is our choice.
    long_run(config, steps=300_000, lr=1e-4)
    config.optim.warmup_steps = 0
    config.optim.b2 = 0.999
    config.optim.weight_decay = 0.0
    config.optim.clip_norm, config.optim.clip_after = 0.1, clip_after
    config.optim.ema_decay = 0.9999
    config.seed = 3407
    config.checkpoint.keep_every = 50_000
    config.preset = f"paper-{arg.data}"
    config.recipe = f"latte {arg.data}"


def _demo(config, arg):
    generator = config.generator
    generator.latent_channels = -1  # as many as the latents have
    generator.width, generator.depth = 128, 6
    generator.heads, generator.hidden = 4, 512
    generator.freq_dim = 64
    generator.label_classes = 48
    generator.remat = False
    config.conditions.drop = {"label": 0.1}
    config.sampler.name, config.sampler.steps = "ddim", 25
    config.sampler.spacing = "trailing"
    config.sampler.guidance.scales = (2.5,)
    generator_demo(config)
    config.recipe = "latte demo"
