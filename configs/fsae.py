"""FSAE, FSVideo's autoencoder: 64x64x4 compression into 128 channels (FSVideo, section 2.1).

``configs/fsae.py``           a small FSAE on the sample clips, minutes on a laptop
``configs/fsae.py:paper``     the published size and the first training stage
                              (``paper,width=1024`` for the narrower deepest stage)
``configs/fsae.py:standard``  FSAE-Standard at that size: the decoder finetuned to look both ways in
                              time, at frame 0's features, with noise (``paper,form=standard``)
``configs/fsae.py:lite``      FSAE-Lite, group-causal with narrow outer stages, finetuned from
                              Standard (``paper,form=lite``)
``demo,form=lite``            (or ``standard``) the same forms at the demo's size, from scratch
"""

from configs import common
from vidlatent.config import parse_arg
from vidlatent.registry import did_you_mean
from vidlatent.typing import VidlatentError

_FORMS = ("base", "standard", "lite")


def get_config(arg: str = ""):
    arg = parse_arg(arg, presets=("demo", "paper", *_FORMS[1:]), width=2048, form="base")
    form = arg.preset if arg.preset in _FORMS else arg.form
    if form not in _FORMS:
        raise VidlatentError(
            f"config argument form={form} is unknown: {did_you_mean(form, _FORMS)}"
        )
    preset = arg.preset if form in (arg.preset, "base") else f"{arg.preset}-{form}"
    config = common.get_defaults("fsae", preset)
    config.loss.l1 = 1.0
    (_demo if arg.preset == "demo" else _paper)(config, arg)
    if form != "base":
        _finetuned(config, form)
    return config


def _finetuned(config, form):
    """The decoder's finetuned forms (FSVideo 2.2)."""
    model = config.model
    # The encoder stages that see frame 0 by itself: those after both temporal down operations.
    model.cross_stages = tuple(range(2, len(model.decoder_widths)))
    model.noise_weight = 0.05
    model.decoder_time = "centred" if form == "standard" else "group"
    if form == "lite":
        outer, inner = model.decoder_widths[:2], model.decoder_widths[2:]
        model.decoder_widths = (*(width // 2 for width in outer), *inner)  # how far: not stated
    if not config.preset.startswith("demo"):
        # Finetuned from the causal model (Lite: from Standard): --config.train.init_from=...
        config.optim.frozen = "encoder/"
        config.train.init_kind = form
        config.optim.lr = 2e-5  # not stated


def _model(config):
    """Fields shared by both presets; what the paper leaves open carries the recommended choice."""
    model = config.model
    model.name = "fsae"
    model.down_type = "conv"  # conv | shuffle
    model.up_type = "interpolate"  # interpolate | shuffle
    model.shortcut_order = "hwt"  # sub-index order of the 3D shortcuts: hwt | thw (not stated)
    model.time_padding = "replicate"  # left of frame 0: replicate | zeros (not stated)
    model.decoder_time = "causal"  # causal | centred (Standard) | group (Lite)
    # Attention to frame 0 and noise of the finetuned forms. Stated: features of the last five
    # encoder blocks, noise of weight 0.05 in each convolution block; the rest is not.
    model.cross_stages = ()
    model.cross = "softmax"  # softmax | linear
    model.cross_head_dim = 64
    model.cross_window = 64  # side of the windows at the outermost of cross_stages; 0: none
    model.cross_rotary = True
    model.noise_weight = 0.0
    model.noise_stages = (0, 1, 2)
    model.norm_eps = 1e-5
    model.norm_affine = True  # False: the strict pixel norm without scale and bias (not stated)
    model.temporal_down = (0, 1)  # time halves after these stages, the two nearest the pixels
    model.conv_impl = "auto"
    model.up_form = "nearest"  # nearest | subpixel: two ways to compute the interpolating up op
    model.norm_scale_init = 0.0  # residual branches start at zero; released weights bring their own
    model.remat = False
    return model


def _paper(config, arg):
    model = _model(config)
    # DC-AE f32c32 plus a sixth stage, whose width is not stated: 2048 or 1024.
    model.encoder_widths = (128, 256, 512, 512, 1024, 1024, arg.width)
    model.decoder_widths = (128, 256, 512, 512, 1024, 1024, arg.width)
    model.encoder_depths = (2, 2, 2, 3, 3, 3, 3)
    model.decoder_depths = (3, 3, 3, 3, 3, 3, 3)
    model.block_types = ("res",) * 3 + ("evit",) * 4
    model.multiscales = ((),) * 3 + ((5,),) * 4
    model.head_dim = 32
    model.latent_channels = 128
    model.remat = True
    # Stage 1: images and 17-frame videos of 256x256 on average, 200k iterations. Learning rate,
    # warm-up, decay, clipping, EMA and the 1:1 image share are not stated.
    config.data.buckets = (
        *((17, h, w, 64) for h, w in _BUCKETS_256),
        *((1, h, w, 512) for h, w in _BUCKETS_256),
    )
    config.data.bucket_weights = (0.02, 0.08, 0.3, 0.08, 0.02) * 2
    common.long_run(config, steps=200_000, lr=1e-4)
    config.checkpoint.keep_every = 50_000


# One bucket per sixth of an octave of aspect ratio around 256x256 (height, width).
_BUCKETS_256 = ((384, 192), (320, 192), (256, 256), (192, 320), (192, 384))


def _demo(config, arg):
    model = _model(config)
    # 4x4x4 into 16 channels (12 to 1) instead of 64x64x4 into 128 (384 to 1), and no blocks at
    # full resolution, so that minutes on two cores show clips one recognises.
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
    common.demo_on_samples(config, bucket=(9, 64, 64, 4), steps=400, lr=3e-3)
