"""Reducio-DiT: PixArt-alpha's transformer on Reducio-VAE's motion latents (Reducio).

``configs/reducio_dit.py``         a small one for labelled shapes, told the content frame; it needs
                                   a tokenizer and its latents:
                                   ``python -m experiments.generator_demo --system=reducio_dit``
``configs/reducio_dit.py:paper``   stage 1, 16 frames at 256x256, from the weights of PixArt-alpha
                                   at 256: ``--config.train.init_from=<file>``;
                                   ``paper,start=random`` without them
``paper,stage=2``                  512x512
``paper,stage=3``                  1024x1024 and its aspect ratios, content tokens in four grids
``attention=2d+1d``                the authors' comparison (supplement); with ``demo`` too

Latents come from ``--mode=encode`` with this config, for texts, semantic tokens of the content
frame and its image latents: ``--config.data.path=<set>`` (docs/chains.md). A stage starts from the
workdir of the one before it.
"""

from vidlatent.config import (
    VidlatentError,
    check_choice,
    generator_demo,
    get_generator_defaults,
    long_run,
    name_suffix,
    noise_prediction,
    parse_arg,
)

# (height, width) of stage 3, from the released code. Tall clips have the same sizes transposed,
# except one that the code lacks.
_WIDE = ((512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792), (576, 1728), (576, 1664))
_WIDE += ((640, 1600), (640, 1536), (704, 1472), (704, 1408), (704, 1344), (768, 1344), (768, 1280))
_WIDE += ((832, 1216), (832, 1152), (896, 1152), (896, 1088), (960, 1088), (960, 1024))
_NOT_TURNED = (704, 1344)


def _sizes():
    tall = tuple((w, h) for h, w in reversed(_WIDE) if (h, w) != _NOT_TURNED)
    return (*_WIDE, (1024, 1024), *tall)


def get_config(arg: str = ""):
    arg = parse_arg(arg, presets=("demo", "paper"), stage=1, attention="joint", start="pixart")
    check_choice("start", arg.start, ("pixart", "random"))
    if arg.stage not in (1, 2, 3):
        raise VidlatentError(f"config argument stage={arg.stage}: use 1, 2 or 3.")
    config = get_generator_defaults("reducio_dit", arg.preset)
    generator = config.generator
    generator.name = "reducio_dit"
    generator.latent_channels = 16
    generator.patch = (1, 1, 1)  # not stated; 352 pixels are 11 latents, which is odd
    generator.attention = arg.attention  # joint | 2d+1d
    generator.null_text = "fixed"  # fixed | learned (PixArt's)
    generator.null_image = "zeros"  # zeros | learned (not stated)
    generator.images_together = True
    generator.time_positions = True  # not stated
    generator.learned_variance = True
    generator.eps = 1e-6
    generator.residual_dtype = "float32"
    # Noise prediction is stated; the schedule and the learned variance are PixArt's.
    noise_prediction(config)
    # The released code drops text and image independently with probability 0.1 each, so only 1 % of
    # samples lack both; ``conditions.joint`` can raise that share.
    # The solver is PixArt's (not stated).
    config.sampler.name = "dpmpp_2m"
    config.sampler.steps, config.sampler.spacing = 20, "continuous"
    config.latents.normalisation = "none"  # the tokenizer's latent is normalised, scale 1.0
    {"demo": _demo, "paper": _paper}[arg.preset](config, arg)
    return config


def _paper(config, arg):
    generator = config.generator
    generator.width, generator.depth = 1152, 28
    generator.heads, generator.hidden = 16, 4608
    generator.freq_dim = 256
    generator.text_dim, generator.text_length = 4096, 120  # T5
    generator.label_classes, generator.label_tokens = 0, 4
    generator.image_dim, generator.image_tokens = 1280, 256  # OpenCLIP ViT-H
    generator.content_channels, generator.content_factor = 4, 4  # Stable Diffusion's VAE, H/8
    generator.content_patch, generator.content_scale = 2, 0.18215
    generator.content_side = 2 if arg.stage == 3 else 1  # four grids of H/32 x W/32 (stated)
    generator.position_span, generator.position_scale = 16.0, 1.0
    generator.size_embedding = arg.stage == 3
    generator.pixels_per_latent = 32
    generator.remat = True
    config.conditions.drop = {"text": 0.1, "content+image": 0.1}
    config.sampler.guidance.scales = (2.5,)  # released code
    config.sampler.guidance.drops = (("text", "image", "content"),)
    config.encode.text = "reducio"  # prompts are encoded like the captions of the data set
    config.encode.image = "clip_vith14"
    config.encode.content = "sd_vae"  # the script uses SD 1's ft-ema, the paper says SD 2.1
    config.encode.windows = "all"  # as the released extraction: 64 frames give four clips
    config.data.source = "latents"
    config.tokenizer.sample = True  # the released extraction stores draws, not means
    config.data.fps = 16.0
    side, batch = {1: (256, 512), 2: (512, 128), 3: (1024, 32)}[
        arg.stage
    ]  # stated for stage 1 only
    config.data.buckets = ((16, side, side, batch),)
    if arg.stage == 3:
        config.data.buckets = tuple((16, *size, batch) for size in _sizes())
        config.data.bucket_rule = (
            "inward"  # as in the released code, which scales to cover and crops
        )
    # Steps are not stated; learning rate, decay, clipping, warm-up and EMA are PixArt's.
    long_run(config, steps=100_000, lr=2e-5)
    config.optim.warmup_steps = 1000
    config.optim.b2, config.optim.eps = 0.999, 1e-10
    config.optim.weight_decay, config.optim.clip_norm = 0.03, 0.01
    config.optim.ema_decay = 0.9999
    config.checkpoint.keep_every = 20_000
    config.sample.size = (16, side, side)
    config.sample.fps = 16.0
    config.preset = f"paper-stage_{arg.stage}" + name_suffix(arg, start="pixart")
    config.recipe = f"reducio_dit {arg.stage}"
    if arg.stage == 1 and arg.start == "pixart":
        config.train.init_kind = "pixart"
    if arg.stage > 1:
        config.train.init_recipes = (f"reducio_dit {arg.stage - 1}",)
    if arg.stage == 3:
        config.train.init_kind = "reducio_sizes"  # its embeddings of size and ratio are new


def _demo(config, arg):
    generator = config.generator
    generator.latent_channels = -1  # as many as the latents have
    generator.width, generator.depth = 128, 6
    generator.heads, generator.hidden = 4, 512
    generator.freq_dim = 64
    generator.text_dim, generator.text_length = 16, 4
    generator.label_classes, generator.label_tokens = 48, 4
    generator.image_dim, generator.image_tokens = 0, 4
    # Mean colours of small squares replace the image autoencoder's latent.
    config.conditions.content = "pooled"
    generator.content_channels, generator.content_factor = 4, 1
    generator.content_patch, generator.content_scale = 2, 1.0
    generator.content_side = 1
    generator.position_span, generator.position_scale = 8.0, 1.0
    generator.size_embedding = False
    generator.pixels_per_latent = 4
    generator.remat = False
    config.conditions.drop = {"label": 0.1, "content": 0.1}
    config.sampler.guidance.scales = (2.5,)
    config.sampler.guidance.drops = (("label", "content"),)
    generator_demo(config)
    config.data.buckets = ((16, 32, 32, 32),)
    config.sample.size = (16, 32, 32)
    config.recipe = "reducio_dit demo"
