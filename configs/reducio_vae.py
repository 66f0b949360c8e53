"""Reducio-VAE: one content frame and a motion latent of 4x32x32 (Reducio).

``configs/reducio_vae.py``         a small one on the sample clips, minutes on a laptop
``configs/reducio_vae.py:paper``   the published ft4-fs32; ``paper,time=2`` for ft2-fs32,
                                   ``paper,time=2,space=16`` for the withdrawn ft2-fs16. It starts
                                   from Stable Diffusion's VAE, ``--config.train.init_from=<file>``
                                   (supplement); ``paper,start=random`` without, as the released
                                   code's notes say
``configs/reducio_vae.py:paper,content=first``  which frame is kept: ``middle``, ``first``,
                                   ``random`` or ``none`` (a plain video VAE); with ``demo`` too
``paper,conv=2d``               2D convolutions in the video encoder and decoder, time as it is
                                (supplement, table 2); the other row is ``paper,time=1``
``demo,discriminator=true``     the demo with the recipe's discriminator, small, from step 100
"""

from vidlatent.config import (
    check_choice,
    demo_on_samples,
    get_defaults,
    long_run,
    name_suffix,
    parse_arg,
)


def get_config(arg: str = ""):
    arg = parse_arg(
        arg,
        presets=("demo", "paper"),
        time=0,
        space=0,
        content="middle",
        conv="3d",
        discriminator=False,
        start="sd_vae",
    )
    check_choice("start", arg.start, ("sd_vae", "random"))
    check_choice("conv", arg.conv, ("3d", "2d"))
    usual = {"time": 0, "space": 0, "content": "middle", "discriminator": False, "start": "sd_vae"}
    suffix = name_suffix(arg, **usual, conv="3d")
    if arg.conv == "2d":
        arg.time = arg.time or 1  # 2D convolutions leave time as it is
    config = get_defaults("reducio_vae", arg.preset + suffix)
    config.loss.l1 = 1.0
    config.train.sample_latent = True
    config.recipe = "reducio_vae"
    {"demo": _demo, "paper": _paper}[arg.preset](config, arg)
    if arg.discriminator and arg.preset == "demo":
        _discriminator(config, start=100)
        config.discriminator.model.width = 16
        config.discriminator.optim.lr = 1e-3
    return config


def _model(config, arg):
    """Fields shared by both presets."""
    model = config.model
    model.name = "reducio"
    model.latent_channels = 16
    model.frames = 16  # of a clip; longer videos are coded clip by clip
    model.content = arg.content  # frame kept: middle (7 of 16) | first | random | none
    model.fuse_middle = True  # attend to the content frame at the lowest resolution as well
    model.time = "centred"  # convolutions in time: centred | causal (no released model)
    model.convolutions = arg.conv  # 3d | 2d (each frame by itself)
    model.renorm_latent = False  # normalise again before decoding, for generated latents
    # Larger content maps are split into windows of this side, or of (rows, columns); 0: never.
    model.fuse_window = 128
    model.attention_window = 256  # the same for self-attention of the content encoder
    model.heads = 8
    model.up_form = "subpixel"  # nearest | subpixel: two equivalent ways to upsample
    model.residual_scale = 1.0  # initial scale of the residual branches
    model.conv_impl = "auto"
    model.remat = False
    model.latent_scale = 1.0
    model.latent_shift = 0.0
    return model


def _paper(config, arg):
    model = _model(config, arg)
    model.width = 128
    model.multipliers = (1, 2, 2, 4, 4, 4)
    model.blocks = 2
    model.content_width = 128
    # The supplement prints five levels; the released weights have these four.
    model.content_multipliers = (1, 2, 4, 4)
    model.content_blocks = 2
    model.time_factor = arg.time or 4
    model.space_factor = arg.space or 32
    model.fuse = (-1, -1, 2, 3, -1, -1)  # per decoder level, level of the content features
    model.groups = 32
    model.remat = True
    # Frames above 320 pixels in the tiles of the released code, which made the latents of
    # Reducio-DiT; 'auto' spreads the tiles evenly instead.
    config.codec.space = "tiles_published"
    config.encode.draws = 1  # the released extraction stores draws from the posterior
    config.loss.lpips_vgg = 0.1
    _discriminator(config, start=5000)
    config.discriminator.adaptive_terms = ("l1", "lpips_vgg")
    # A tenth of the autoencoder's learning rate, and a tenth of that again until the adversarial
    # loss starts.
    config.discriminator.optim.lr = 4e-6
    config.discriminator.optim.ramp = ((4999, 0.1), (5999, 1.0))
    config.data.fps = 16.0
    config.data.flip = False
    config.data.crop = "resized"
    config.data.resize = "bilinear"
    config.data.buckets = ((16, 256, 256, 32 if model.time_factor == 4 else 24),)
    # Learning rate and batch size are the paper's; the released config has 2e-5 and 16. As there,
    # the rate decays to a hundredth over a million steps.
    long_run(config, steps=1_000_000, lr=4e-5)
    if arg.start == "sd_vae":
        config.train.init_kind = "reducio_image"
    config.optim.warmup_steps = 0
    config.optim.schedule = "linear"
    config.optim.final_lr_share = 0.01
    config.optim.b1 = 0.5
    config.optim.b2 = 0.9
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 0.0
    config.optim.ema_decay = 0.0  # no averaging
    config.checkpoint.keep_every = 50_000


def _discriminator(config, start):
    """Add the KL, outlier and adversarial losses.

    They follow the released code; the outlier penalty is not in the paper.
    """
    config.loss.kl = 1e-6
    config.loss.outlier = 1.0
    discriminator = config.discriminator
    discriminator.model.name = "patch3d"
    discriminator.loss = "hinge"
    discriminator.weight = 0.05
    discriminator.scale = 0.5
    # The released code counts the updates of autoencoder and discriminator: its 10,001st is that of
    # batch 5000 here.
    discriminator.start_step = start
    discriminator.adaptive_layer = "decoder/conv_out/kernel"
    discriminator.adaptive_terms = ("l1",)
    discriminator.optim.b1, discriminator.optim.b2 = 0.5, 0.9
    discriminator.optim.clip_norm = 0.0


def _demo(config, arg):
    model = _model(config, arg)
    config.loss.l2 = 0.0  # off, but ready to use: it leaves the mean colour sooner than l1
    # 4x4x4 compression into 16 channels (12:1, besides the content frame) instead of 4x32x32
    # (768:1), and a narrow model, so that a few minutes on two CPU cores give recognisable clips.
    model.width = 8
    model.multipliers = (1, 2, 4)
    model.blocks = 1
    model.content_width = 8
    model.content_multipliers = (1, 2)
    model.content_blocks = 1
    model.time_factor = arg.time or 4
    model.space_factor = arg.space or 4
    model.fuse = (-1, 1, -1)
    model.groups = 8
    model.residual_scale = 0.0  # a block starts as its shortcut, which trains faster
    demo_on_samples(config, bucket=(16, 64, 64, 2), steps=300, lr=3e-3)
