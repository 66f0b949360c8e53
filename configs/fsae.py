"""FSAE, FSVideo's autoencoder: 64x64x4 compression into 128 channels (FSVideo, section 2.2).

``configs/fsae.py``           a small FSAE on the sample clips, minutes on a laptop
``configs/fsae.py:paper``     the published size and the first training stage, from DC-AE's weights:
                              ``--config.train.init_from=<dc-ae-f32c32-sana-1.0>.safetensors``
                              (``paper,start=random`` without; ``paper,width=1024`` for the
                              narrower deepest stage)
``paper,stage=2``, ``stage=3``  longer and larger clips, with a discriminator
``paper,stage=vf``            fine-tuning towards DINOv2's features
``paper,stage=downscale``      the same with another row of table 1: latents shrunk, or enlarged
                              (``stage=upscale``), must decode to the clip resized alike; shrunk
                              and turned in ``stage=eq``; ``stage=plain`` is the row without
``configs/fsae.py:standard``  FSAE-Standard at that size: the decoder fine-tuned to use past and
                              future frames, frame 0's features and noise (``paper,form=standard``)
``configs/fsae.py:lite``      FSAE-Lite, group-causal with narrow outer stages, finetuned from
                              Standard (``paper,form=lite``); both are stages too:
                              ``paper,stage=standard``, ``paper,stage=lite``
``demo,form=lite``            (or ``standard``) the same forms at the demo's size, from scratch
``demo,stage=2``              the demo going on with a small discriminator
``demo,stage=vf``             the demo going on towards the features of a small random network
                              (or ``plain``, ``downscale``, ``upscale``, ``eq``)
``demo,stage=standard``       (or ``form=standard,finetune=true``) the form at the demo's size,
                              finetuned from the demo (``lite`` from that Standard) as in the paper

A stage starts from the workdir of the one before it: ``--config.train.init_from=runs/fsae-paper``.
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

_FORMS = ("base", "standard", "lite")
# Regularisers of table 1 beside Video VF (references 35 and 65): their form is cited, their factors
# and weights are not stated.
_REGULARISED = {
    "plain": {},
    "downscale": {"scale_equivariance": {"weight": 0.25, "scales": (0.5, 0.25)}},
    "upscale": {"scale_equivariance": {"weight": 0.25, "scales": (2.0,)}},
    "eq": {"equivariance": {"weight": 0.25, "scales": (0.25, 0.5, 0.75), "turns": (0, 1, 2, 3)}},
}
_STAGES = ("1", "2", "3", "vf", *_REGULARISED, "standard", "lite")


def get_config(arg: str = ""):
    presets = ("demo", "paper", *_FORMS[1:])
    arg = parse_arg(
        arg,
        presets=presets,
        width=2048,
        form="base",
        stage="1",
        finetune=False,
        start="dcae",
    )
    if arg.stage in _FORMS and arg.form == "base":  # fine-tuning the decoder is a stage of its own
        arg.form, arg.stage, arg.finetune = arg.stage, "1", True
    form = arg.preset if arg.preset in _FORMS else arg.form
    check_choice("form", form, _FORMS)
    check_choice("stage", arg.stage, _STAGES)
    check_choice("start", arg.start, ("dcae", "random"))
    demo = arg.preset == "demo"
    in_demo = ("2", "vf", *_REGULARISED)
    if arg.stage != "1" and (form != "base" or (demo and arg.stage not in in_demo)):
        raise VidlatentError(f"config argument stage={arg.stage} does not go with this preset.")
    suffix = "" if form in (arg.preset, "base") else f"-{form}"
    suffix += "" if arg.stage == "1" else f"-stage_{arg.stage}"
    suffix += name_suffix(arg, width=2048, start="dcae")
    config = get_defaults("fsae", arg.preset + suffix)
    config.recipe = f"fsae {arg.stage if form == 'base' else form}"
    config.loss.l1 = 1.0
    if demo:
        _demo(config)
        if arg.stage == "2":
            _demo_with_discriminator(config)
        elif arg.stage == "vf":
            _demo_towards_features(config)
        elif arg.stage in _REGULARISED:
            _demo_going_on(config)
            _regularise(config, arg.stage)
    else:
        _paper(config, arg.width)
        stage = arg.stage if form == "base" else form
        if stage in _REGULARISED:
            _finetune_latents(config)
            _regularise(config, stage, lpips=config.loss.lpips_vgg)
        else:
            _STAGE[stage](config)
        if stage == "1" and arg.start == "dcae":
            config.train.init_kind = "image"  # stated: dc-ae-f32c32-sana-1.0, inflated
    if form != "base":
        _finetuned(config, form, from_scratch=demo and not arg.finetune)
        if demo and arg.finetune:
            config.preset += "-finetune"
            if form == "standard":
                config.train.init_recipes = ("fsae 1", "fsae vf")
    return config


def _model(config):
    """Fields shared by both presets. Where the paper is silent, they are our recommendation."""
    model = config.model
    model.name = "fsae"
    model.down_type = "conv"  # conv | shuffle
    model.up_type = "interpolate"  # interpolate | shuffle
    model.shortcut_order = "hwt"  # sub-index order of the 3D shortcuts: hwt | thw (not stated)
    model.time_padding = "replicate"  # left of frame 0: replicate | zeros (not stated)
    model.decoder_time = "causal"  # causal | centred (Standard) | group (Lite)
    # Attention to frame 0, and noise, in the fine-tuned forms. The paper states the features (of
    # the last five encoder blocks) and noise of weight 0.05 in each convolution block, no more.
    model.cross_stages = ()
    model.cross = "softmax"  # softmax | linear
    model.cross_head_dim = 64
    model.cross_window = 64  # side of the windows at the outermost of cross_stages; 0: none
    model.cross_rotary = True
    model.noise_weight = 0.0
    model.noise_stages = (0, 1, 2)
    model.norm_eps = 1e-5
    model.norm_affine = True  # False: pixel norm without scale and bias (not stated)
    model.temporal_down = (0, 1)  # time halves after these stages, the two nearest the pixels
    model.conv_impl = "auto"
    model.up_form = "nearest"  # nearest | subpixel: two equivalent ways to upsample
    model.norm_scale_init = 0.0  # residual branches start at zero; released weights replace it
    model.remat = False
    return model


def _paper(config, width):
    model = _model(config)
    # DC-AE f32c32 plus a sixth stage, whose width is not stated: 2048 or 1024.
    model.encoder_widths = (128, 256, 512, 512, 1024, 1024, width)
    model.decoder_widths = (128, 256, 512, 512, 1024, 1024, width)
    model.encoder_depths = (2, 2, 2, 3, 3, 3, 3)
    model.decoder_depths = (3, 3, 3, 3, 3, 3, 3)
    model.block_types = ("res",) * 3 + ("evit",) * 4
    model.multiscales = ((),) * 3 + ((5,),) * 4
    model.head_dim = 32
    model.latent_channels = 128
    model.remat = True
    config.loss.lpips_vgg = 0.1
    config.checkpoint.keep_every = 50_000


# The paper states average resolutions and says that clips of similar aspect ratio are cropped to
# one size, but does not list the sizes. This list of (height, width) around a square is short,
# because each shape is compiled separately; data.buckets accepts a longer one.
_BUCKETS_256 = ((384, 192), (320, 192), (256, 256), (192, 320), (192, 384))
_BUCKETS_512 = ((704, 384), (576, 448), (512, 512), (448, 576), (384, 704))
# Three aspect ratios only for stages with several sizes, again to compile fewer programs.
_THREE = {
    256: ((320, 192), (256, 256), (192, 320)),
    512: ((640, 384), (512, 512), (384, 640)),
    704: ((960, 512), (704, 704), (512, 960)),
    1024: ((1216, 832), (1024, 1024), (832, 1216)),
}


def _buckets(config, sizes, kinds):
    """Buckets of all ``sizes`` for each of ``kinds``: (frames, batch, share of the steps).

    Within a kind the clips decide: each is drawn equally often.
    """
    config.data.buckets = tuple((t, h, w, batch) for t, batch, _ in kinds for h, w in sizes)
    config.data.length_weights = tuple((t, share) for t, _, share in kinds)


def _mixed_buckets(config, kinds):
    """Buckets in three aspect ratios for each of ``kinds``: (frames, side, batch, share).

    ``side`` is that of the square; the other two sizes have about its area.
    """
    config.data.buckets = tuple((t, h, w, b) for t, side, b, _ in kinds for h, w in _THREE[side])
    config.data.length_weights = tuple((t, share) for t, *_, share in kinds)


# The paper states sizes, frames, losses and steps of the stages, but not learning rates, warm-up,
# weight decay, clipping, EMA, batch sizes and the share of images.
def _stage_1(config):
    _buckets(config, _BUCKETS_256, ((17, 64, 0.5), (1, 512, 0.5)))
    long_run(config, steps=200_000, lr=1e-4)


def _stage_2(config):
    _buckets(config, _BUCKETS_512, ((61, 8, 0.5), (17, 16, 0.25), (1, 128, 0.25)))
    long_run(config, steps=200_000, lr=5e-5)
    _discriminator(config)
    config.discriminator.warmup_steps = 1000
    config.train.init_recipes = ("fsae 1",)


def _stage_3(config):
    _mixed_sizes(config)
    long_run(config, steps=200_000, lr=2e-5)
    config.train.init_recipes = ("fsae 2",)


def _stage_vf(config):
    config.loss.vf = {"weight": 0.5, "network": "dinov2_vitl14"}
    _finetune_latents(config)


def _finetune_latents(config):
    """What all rows of table 1 share; the paper says only that Video VF is a fine-tuning."""
    _mixed_buckets(config, ((33, 256, 32, 0.5), (17, 512, 16, 0.5)))
    long_run(config, steps=50_000, lr=2e-5)
    _discriminator(config)
    config.train.init_recipes = ("fsae 3",)


def _regularise(config, row, lpips=0.0):
    for name, options in _REGULARISED[row].items():
        config.loss[name] = {**options, "l1": 1.0, "lpips": lpips}


def _stage_finetune(config):
    _mixed_sizes(config)
    long_run(config, steps=100_000, lr=2e-5)


def _mixed_sizes(config):
    """256x256 for 7 seconds, 704x704 for 9 frames, and 1024x1024 decoded by random patches."""
    _mixed_buckets(
        config,
        ((169, 256, 16, 0.4), (9, 704, 16, 0.4), (121, 1024, 8, 0.15), (1, 1024, 64, 0.05)),
    )
    config.train.patch_cells = 40  # patches of 320 pixels, of which the middle 220 are exact
    config.train.patch_above = 704 * 704
    # The loss is restricted to the patch (2.2.1); its gradient goes on through the whole encoder.
    # train.patch_encoder=False trains the decoder alone on these batches, with less memory.
    # The paper's "3D patch" (2.2.1) is taken to hold all frames, since it mentions a spatial margin
    # only. In a causal model train.patch_latents=9 decodes just the first 33 frames, which are
    # exact, with a quarter of the memory.
    _discriminator(config)


def _discriminator(config):
    """MAGVIT's discriminator at three scales (FSVideo 2.2.1; layers are not stated)."""
    discriminator = config.discriminator
    discriminator.model.name = "multiscale3d"
    discriminator.loss = "non_saturating"
    discriminator.weight = 0.1
    discriminator.r1_weight = 10.0
    discriminator.optim.b1, discriminator.optim.b2 = 0.0, 0.99


_STAGE = {
    "1": _stage_1,
    "2": _stage_2,
    "3": _stage_3,
    "vf": _stage_vf,
    "standard": _stage_finetune,
    "lite": _stage_finetune,
}


def _finetuned(config, form, from_scratch):
    """The fine-tuned forms of the decoder (FSVideo 2.2.3)."""
    model = config.model
    # Attend to frame 0's features in the encoder stages after both temporal downsamplings.
    model.cross_stages = tuple(range(2, len(model.decoder_widths)))
    model.noise_weight = 0.05
    model.decoder_time = "centred" if form == "standard" else "group"
    if form == "lite":
        outer, inner = model.decoder_widths[:2], model.decoder_widths[2:]
        model.decoder_widths = (
            *(width // 2 for width in outer),
            *inner,
        )  # halving is our choice (not stated)
    if not from_scratch:
        # Fine-tuned from the causal model (Lite: from Standard): --config.train.init_from=...
        config.optim.freeze = "encoder/"
        config.train.init_kind = form
        # The paper does not state the losses; these are the previous stage's.
        follows = {"standard": ("fsae vf", "fsae 3"), "lite": ("fsae standard",)}
        config.train.init_recipes = follows[form]


def _demo(config):
    model = _model(config)
    # 4x4x4 compression into 16 channels (12:1) instead of 64x64x4 into 128 (384:1), and no blocks
    # at full resolution, so that a few minutes on two CPU cores give recognisable clips.
    model.encoder_widths = (16, 32, 64)
    model.decoder_widths = (16, 32, 64)
    model.encoder_depths = (0, 1, 1)
    model.decoder_depths = (0, 1, 1)
    model.block_types = ("res", "res", "evit")
    model.multiscales = ((), (), (5,))
    model.head_dim = 16
    model.latent_channels = 16
    model.cross_head_dim = 16
    model.up_form = "subpixel"
    demo_on_samples(config, bucket=(9, 64, 64, 4), steps=400, lr=3e-3)


def _demo_with_discriminator(config):
    _discriminator(config)
    config.discriminator.model.widths = (16, 32, 32)
    config.discriminator.model.scales = 2
    config.discriminator.warmup_steps = 50
    config.optim.lr = 1e-3
    config.discriminator.optim.lr = 1e-3
    config.train.steps = 200
    config.train.init_recipes = ("fsae 1",)


def _demo_towards_features(config):
    """The paper's weight and margins; a small random network stands in for DINOv2."""
    config.loss.vf = {"weight": 0.5, "network": "dinov2_tiny"}
    _demo_going_on(config)


def _demo_going_on(config):
    config.optim.lr = 1e-3
    config.train.steps = 200
    config.train.init_recipes = ("fsae 1",)
