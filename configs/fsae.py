"""FSAE, FSVideo's autoencoder: 64x64x4 compression into 128 channels (FSVideo, section 2.1).

``configs/fsae.py``        a small FSAE on the sample clips, minutes on a laptop
``configs/fsae.py:paper``  the published size and the first training stage
                           (``paper,width=1024`` for the narrower deepest stage)
"""

from configs import common
from vidlatent.config import parse_arg


def get_config(arg: str = ""):
    arg = parse_arg(arg, presets=("demo", "paper"), width=2048)
    config = common.get_defaults("fsae", arg.preset)
    config.loss.l1 = 1.0
    {"demo": _demo, "paper": _paper}[arg.preset](config, arg)
    return config


def _model(config):
    """Fields shared by both presets; what the paper leaves open carries the recommended choice."""
    model = config.model
    model.name = "fsae"
    model.down_type = "conv"  # conv | shuffle
    model.up_type = "interpolate"  # interpolate | shuffle
    model.shortcut_order = "hwt"  # sub-index order of the 3D shortcuts: hwt | thw (not stated)
    model.time_padding = "replicate"  # left of frame 0: replicate | zeros (not stated)
    model.decoder_time = "causal"
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
    config.data.num_workers = 8
    config.train.steps = 200_000
    config.train.log_every = 50
    config.optim.lr = 1e-4
    config.optim.schedule = "constant"
    config.optim.warmup_steps = 2000
    config.checkpoint.every = 2000
    config.checkpoint.keep_every = 50_000
    config.eval.every = 5000


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
    model.up_form = "subpixel"
    common.demo_on_samples(config, bucket=(9, 64, 64, 4), steps=400, lr=3e-3)
