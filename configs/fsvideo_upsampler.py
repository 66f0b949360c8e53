"""FSVideo's latent upsampler: a latent of half size to one of full size (section 2.4.1).

``configs/fsvideo_upsampler.py``   a small one for pairs of labelled shapes
``paper,phase=256``                the published one; phases 512, 768 and 1024 follow

A tokenizer makes the pairs: train on videos (``--config.data.source=folder``), which compares
decoded frames with the clip's own, or on a set encoded with ``--config.encode.low=2``. Either way
``--config.tokenizer.path=<run>`` names the tokenizer that decodes.
"""

from vidlatent.config import (
    area_buckets,
    check_choice,
    generator_demo,
    get_generator_defaults,
    long_run,
    parse_arg,
)

_PHASES = (256, 512, 768, 1024)


def get_config(arg: str = ""):
    arg = parse_arg(arg, presets=("demo", "paper"), phase=256)
    check_choice("phase", arg.phase, _PHASES)
    config = get_generator_defaults("fsvideo_upsampler", arg.preset)
    config.task = "upsampler"
    upsampler = config.generator
    upsampler.name = "latent_upsampler"
    upsampler.latent_channels = -1  # as many as the latents have
    # Stated: a projection, a pixel shuffle, then 16 residual blocks. Not stated: width, norm (group
    # | pixel) and padding (zeros | replicate), which are those of LTX-Video here.
    upsampler.blocks, upsampler.blocks_before = 16, 0
    upsampler.norm, upsampler.padding = "group", "zeros"
    upsampler.eps = 1e-5
    upsampler.adain_factor = 0.0
    config.optim.b1, config.optim.b2 = 0.9, 0.95  # stated
    {"demo": _demo, "paper": _paper}[arg.preset](config, arg)
    return config


def _paper(config, arg):
    upsampler = config.generator
    upsampler.width, upsampler.groups = 512, 32
    upsampler.remat = True
    # Not stated: the length of training, here four phases of the same number of steps.
    steps = 25_000
    phase = _PHASES.index(arg.phase)
    # Eq. 9: 0.1, 0.1, and LPIPS from 0.1 to 1 over all phases (stated; how it rises is not).
    config.upsampling.latent_weight = 0.1
    first, last = (0.1 + 0.9 * part / len(_PHASES) for part in (phase, phase + 1))
    config.loss.l1 = 0.1
    config.loss.lpips_vgg = {"weight": (first, last, steps), "frames_at_once": 4}
    # Long clips at small sizes, short ones at large sizes, as the autoencoder is trained (stated);
    # which, is not. Latents are compared over the whole clip, frames over its beginning.
    frames = {256: 31, 512: 16, 768: 9, 1024: 3}[arg.phase]  # latent frames that are decoded
    config.upsampling.frames = frames
    config.upsampling.patch_latents = 16
    batch = {256: 64, 512: 32, 768: 32, 1024: 16}[arg.phase]
    config.data.source = "folder"
    config.data.buckets = area_buckets(121, arg.phase, 128, batch=batch)
    config.data.fps = 24.0
    long_run(config, steps=steps, lr=1e-4)
    config.optim.weight_decay = 0.01
    config.optim.ema_decay = 0.9999
    config.preset = f"paper-phase_{arg.phase}"
    config.recipe = f"fsvideo_upsampler {arg.phase}"
    if phase:
        config.train.init_recipes = (f"fsvideo_upsampler {_PHASES[phase - 1]}",)


def _demo(config, arg):
    del arg
    upsampler = config.generator
    upsampler.width, upsampler.groups = 64, 8
    upsampler.blocks = 4
    upsampler.remat = False
    config.upsampling.latent_weight = 1.0
    config.loss.l1 = 0.1
    generator_demo(config)
    config.data.buckets = ((9, 64, 64, 16),)
    # It learns in a third of a generator's steps.
    config.train.steps, config.optim.warmup_steps = 400, 20
    config.optim.ema_decay = 0.98
    config.checkpoint.every = config.eval.every = 200
    config.recipe = "fsvideo_upsampler demo"
