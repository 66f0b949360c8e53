"""IV-VAE: 4x8x8 compression by key frames and motion in two branches (CVPR 2025).

``configs/ivvae.py``         a small IV-VAE on the sample clips, minutes on a laptop
``configs/ivvae.py:paper``   the published size, z = 16; ``z4``, ``z8``, ``z16`` choose the latent,
                             ``z16,width=96`` the wide model, ``paper,stage=1`` to ``4`` the stage
``configs/ivvae.py:paper,variant=causal,width=96``  a baseline or ablation: ``causal`` (the
                             inflated VAE), ``gcconv``, ``ktc``, ``ktc_causal``, ``volumes``; with
                             ``demo`` too, each with stages of its own
``demo,stage=4``             the demo continued with a small discriminator

A stage starts from the workdir of the one before it: ``--config.train.init_from=runs/ivvae-paper``.
"""

from vidlatent.config import (
    VidlatentError,
    check_choice,
    demo_on_samples,
    get_defaults,
    long_run,
    name_suffix,
    parse_arg,
)


def get_config(arg: str = ""):
    presets = ("demo", "paper", "z4", "z8", "z16")
    arg = parse_arg(arg, presets=presets, variant="ivvae", width=64, stage=2)
    stages = (2, 4) if arg.preset == "demo" else (1, 2, 3, 4)
    if arg.stage not in stages:
        raise VidlatentError(
            f"config argument stage={arg.stage}: {arg.preset} has {', '.join(map(str, stages))}."
        )
    if arg.variant in ("image", "image_plain"):
        raise VidlatentError(f"config argument variant={arg.variant}: image VAEs are stage=1.")
    check_choice("variant", arg.variant, _IMAGE_VAE)
    suffix = name_suffix(arg, stage=2, variant="ivvae", width=64)
    config = get_defaults("ivvae", arg.preset + suffix)
    config.loss.l1 = 1.0
    config.recipe = _recipe(arg, arg.stage)
    (_demo if arg.preset == "demo" else _paper)(config, arg)
    return config


# The recipe that trains the image VAE from which each variant is inflated. It has the channels of
# one branch, with attention after every block ("ivvae 1") or without ("plain"), or all channels
# ("single").
_IMAGE_VAE = {
    "ivvae": "ivvae 1",
    "volumes": "ivvae 1",
    "ktc": "ivvae plain 1",
    "ktc_causal": "ivvae plain 1",
    "volumes_plain": "ivvae plain 1",
    "causal": "ivvae single 1",
    "gcconv": "ivvae single 1",
}
_CAUSAL = ("causal", "ktc_causal")


def _recipe(arg, stage):
    """Name of a stage's recipe; variants differ in it, but some share an image VAE (stage 1)."""
    if stage == 1:
        return _IMAGE_VAE[arg.variant]
    return f"ivvae {stage}" if arg.variant == "ivvae" else f"ivvae {arg.variant} {stage}"


def _model(config, arg):
    """Fields shared by all presets."""
    model = config.model
    model.name = "ivvae"
    model.variant = arg.variant
    model.pac_dilations = (0, 1, 3, 6, 9, 12)  # dilations of the parallel convolutions; 0: 1x1
    model.up_form = "subpixel"  # nearest | subpixel: two equivalent ways to upsample
    # Residual branches start at zero; released weights replace it.
    model.residual_scale = 0.0
    model.conv_impl = "auto"
    model.remat = False
    model.row_limit = 3 * 2**27  # above this many bytes per array CPUs work in strips; 0: never
    model.latent_scale = 1.0  # a generator sees scale * (latent - shift)
    model.latent_shift = 0.0
    return model


# Frames, height, width, batch of the last stage.
_MIXED = ((33, 256, 256, 32), (17, 512, 512, 16), (9, 768, 768, 16), (1, 512, 512, 256))


def _paper(config, arg):
    model = _model(config, arg)
    model.latent_channels = 16 if arg.preset == "paper" else int(arg.preset[1:])
    model.width = arg.width
    model.multipliers = (1, 2, 4, 4)
    model.blocks = 2
    model.temporal_down = (1, 2)  # time halves after these levels
    model.remat = True
    size = (model.latent_channels, model.width)
    if arg.variant == "ivvae" and size in _RELEASED:
        model.latent_scale, model.latent_shift = _RELEASED[size]
    config.encode.draws = 1  # the released code's encode returns a draw unless told otherwise
    config.codec.groups = 1  # as in the released code; at 720p a group takes 1.9 GB a layer
    # Sizes, steps and order of the stages come from secondary sources; frames, batch sizes,
    # optimizer and EMA are not stated anywhere.
    buckets, steps = {
        1: (((1, 256, 256, 256),), 200_000),
        2: (((17, 256, 256, 32),), 500_000),
        3: (((17, 512, 512, 16),), 200_000),
        4: (_MIXED, 100_000),
    }[arg.stage]
    config.data.buckets = buckets
    if arg.stage == 1:
        # An ordinary image VAE (most with the channels of one branch) that the video model is
        # inflated from.
        image = _IMAGE_VAE[arg.variant]
        model.variant = "image" if image == "ivvae 1" else "image_plain"
        model.latent_channels //= 1 if image == "ivvae single 1" else 2
        model.temporal_down = ()
    long_run(config, steps=steps, lr=5e-5 if arg.stage == 4 else 1e-4)
    # Equation 5. It sums over 256x256 images where the losses here are means, so all of its weights
    # are divided by 3 * 256^2.
    config.train.sample_latent = True
    config.loss.lpips_vgg = 1.0
    config.loss.kl = {"weight": 3e-6 * model.latent_channels / 192, "reduction": "mean"}
    if arg.stage > 1:
        # A stage starts from the weights of the previous one; stage 2 inflates the image VAE.
        config.train.init_recipes = (_recipe(arg, arg.stage - 1),)
    if arg.stage == 2:
        causal = arg.variant in _CAUSAL
        config.train.init_kind = "ivvae_image_causal" if causal else "ivvae_image"
    if arg.stage == 4:
        _discriminator(config)
    config.optim.b2 = 0.999
    config.checkpoint.keep_every = 50_000


def _discriminator(config):
    """Add the adversarial loss with the beta of equation 5.

    The discriminator, and that beta is scaled by a ratio of gradients, are not stated.
    """
    discriminator = config.discriminator
    discriminator.model.name = "patch3d"
    discriminator.weight = 0.8
    discriminator.adaptive_layer = "decoder/head_2/.*kernel"
    discriminator.images = False
    discriminator.optim.b1, discriminator.optim.b2 = 0.5, 0.9


# Latent channels and width of the released weights -> scale and shift measured on their latents.
_RELEASED = {
    (4, 64): (1.3196, 0.1250),
    (8, 64): (1.0940, -0.0322),
    (16, 64): (0.9697, -0.1553),
    (16, 96): (0.7619, -0.0483),
}


def _demo(config, arg):
    model = _model(config, arg)
    config.loss.l2 = 0.0  # off, but ready to use: it leaves the mean colour sooner than l1
    # 4x4x4 compression into 16 channels (12:1) instead of 4x8x8 into 16 (48:1), and a narrow model,
    # so that a few minutes on two CPU cores give recognisable clips.
    model.latent_channels = 16
    model.width = 8
    model.multipliers = (1, 2, 4)
    model.blocks = 1
    model.temporal_down = (0, 1)
    model.pac_dilations = (0, 1, 3)
    model.up_form = "nearest"  # faster with so few channels
    demo_on_samples(config, bucket=(9, 64, 64, 2), steps=300, lr=3e-3)
    if arg.stage == 4:
        config.train.sample_latent = True
        config.loss.kl = {"weight": 3e-6 * 16 / 192, "reduction": "mean"}
        _discriminator(config)
        config.discriminator.model.width = 16
        config.discriminator.model.time_kernels = (3, 3, 3, 1, 1)
        config.discriminator.optim.lr = 1e-3
        config.optim.lr = 1e-3
        config.train.steps = 200
        config.train.init_recipes = (_recipe(arg, 2),)
