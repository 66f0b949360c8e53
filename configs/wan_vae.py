"""Wan's video autoencoders, to read and make latents of Wan2.1 (4x8x8) and Wan2.2 (4x16x16).

``configs/wan_vae.py:wan21``        Wan2.1's, 16 channels: for the released weights and fine-tuning
``configs/wan_vae.py:wan22``        Wan2.2's (TI2V-5B), 48 channels
``configs/wan_vae.py``              a small one on the sample clips, minutes on a laptop;
                                    ``demo,model=wan22`` of Wan2.2's kind

The released mean and deviation of each channel are part of the latents' identity; a generator of
Wan's is given them by ``--config.latents.normalisation=spec``.
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
    arg = parse_arg(arg, presets=("demo", "wan21", "wan22"), model="wan21")
    check_choice("model", arg.model, _MOMENTS)
    kind = arg.model if arg.preset == "demo" else arg.preset
    config = get_defaults("wan_vae", arg.preset + name_suffix(arg, model="wan21"))
    config.recipe = f"wan_vae {kind}"
    config.loss.l1 = 1.0
    model = config.model
    model.name = "wan_vae"
    model.shortcuts = kind == "wan22"  # around each level, without parameters
    model.pixel_patch = 2 if kind == "wan22" else 1  # pixels a side gathered into channels first
    model.up_form = "subpixel"  # nearest | subpixel: two equivalent ways to upsample
    model.residual_scale = 1.0
    model.conv_impl = "auto"
    model.remat = False
    model.row_limit = 3 * 2**27  # Wan2.1's: above this many bytes per array CPUs work in strips
    {"demo": _demo}.get(arg.preset, _released)(config, kind)
    return config


def _released(config, kind):
    model = config.model
    model.latent_channels = {"wan21": 16, "wan22": 48}[kind]
    model.width, model.decoder_width = {"wan21": (96, 96), "wan22": (160, 256)}[kind]
    model.multipliers = (1, 2, 4, 4)
    model.blocks = 2
    model.temporal_down = (1, 2)  # time halves after these levels
    model.latent_mean, model.latent_std = _MOMENTS[kind]
    model.remat = True
    # Wan's data, sizes and schedule of training are not published: these are common choices.
    config.data.buckets = ((17, 256, 256, 32),)
    long_run(config, steps=100_000, lr=1e-5)


def _demo(config, kind):
    model = config.model
    # 4x4x4 (Wan2.2's kind: 2x4x4) compression into 16 channels, and a narrow model, so that a few
    # minutes on two CPU cores give recognisable clips.
    model.latent_channels = 16
    model.width = model.decoder_width = {"wan21": 8, "wan22": 16}[kind]
    # Wan2.2's patch of pixels halves H and W once already.
    model.multipliers = {"wan21": (1, 2, 4), "wan22": (1, 1)}[kind]
    model.temporal_down = {"wan21": (0, 1), "wan22": (0,)}[kind]
    model.blocks = 1
    model.latent_mean = model.latent_std = ()
    model.up_form = "nearest"  # faster with so few channels
    demo_on_samples(config, bucket=(9, 64, 64, 2), steps=300, lr=3e-3)


# fmt: off
# Mean and deviation of each channel, as in Wan's released code (wan/modules/vae.py, vae2_2.py).
_MOMENTS = {
    "wan21": (
        (
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
            0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
        ),
        (
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
            3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
        ),
    ),
    "wan22": (
        (
            -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
            -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
            -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
            -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
            -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
            0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
        ),
        (
            0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
            0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
            0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
            0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
            0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
            0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
        ),
    ),
}
# fmt: on
