"""DC-AE, the image autoencoder that FSAE extends to video (Deep Compression Autoencoder, 32-128x).

``configs/dcae.py``        a small DC-AE on the frames of the sample clips, minutes on a laptop
``configs/dcae.py:paper``  the published models, for released weights and fine-tuning;
                           ``paper,model=f64c128-in-1.0`` names one of:
                           f32c32-sana-1.0, f32c32-in-1.0, f32c32-mix-1.0, f64c128-in-1.0,
                           f64c128-mix-1.0, f128c512-in-1.0, f128c512-mix-1.0
"""

from vidlatent.config import (
    check_choice,
    demo_on_samples,
    get_defaults,
    long_run,
    name_suffix,
    parse_arg,
)

# Latent channels and scale. -in and -mix differ only in their training images.
_RELEASED = {
    "f32c32-sana-1.0": (32, 0.41407),
    "f32c32-in-1.0": (32, 0.3189),
    "f32c32-mix-1.0": (32, 0.4552),
    "f64c128-in-1.0": (128, 0.2889),
    "f64c128-mix-1.0": (128, 0.4538),
    "f128c512-in-1.0": (512, 0.4883),
    "f128c512-mix-1.0": (512, 0.3620),
}


def get_config(arg: str = ""):
    arg = parse_arg(arg, presets=("demo", "paper"), model="f32c32-sana-1.0")
    check_choice("model", arg.model, _RELEASED)
    suffix = name_suffix(arg, model="f32c32-sana-1.0")
    config = get_defaults("dcae", arg.preset + suffix)
    config.recipe = "dcae"
    config.loss.l1 = 1.0
    _shared(config.model)
    {"demo": _demo, "paper": _paper}[arg.preset](config, arg)
    return config


def _shared(model):
    model.name = "dcae"
    model.norm_eps = 1e-5
    model.norm_affine = True
    model.decoder_norm_types = ()  # per stage rms | batch; empty: all rms
    model.decoder_activations = ()  # per stage silu | relu; empty: all silu
    model.latent_scale = 1.0
    model.conv_impl = "auto"
    model.norm_scale_init = 0.0  # residual branches start at zero; released weights replace it
    model.remat = False


def _paper(config, arg):
    model = config.model
    model.latent_channels, model.latent_scale = _RELEASED[arg.model]
    model.head_dim = 32
    if "sana" in arg.model:
        widths = (128, 256, 512, 512, 1024, 1024)
        model.encoder_depths = (2, 2, 2, 3, 3, 3)
        model.decoder_depths = (3, 3, 3, 3, 3, 3)
        model.multiscales = ((),) * 3 + ((5,),) * 3
        model.down_type, model.up_type = "conv", "interpolate"
    else:
        # An empty stage 0, no local branch, and batch norm (with its running statistics) in the
        # outer stages of the decoder.
        widths = (128, 256, 512, 512, 1024, 1024, 2048, 2048)
        widths = widths[: {32: 6, 128: 7, 512: 8}[model.latent_channels]]
        inner = len(widths) - 3
        model.encoder_depths = (0, 4, 8) + (2,) * inner
        model.decoder_depths = (0, 5, 10) + (2,) * inner
        model.multiscales = ((),) * len(widths)
        model.down_type, model.up_type = "shuffle", "shuffle"
        model.decoder_norm_types = ("batch",) * 3 + ("rms",) * inner
        model.decoder_activations = ("relu",) * 3 + ("silu",) * inner
    model.encoder_widths = model.decoder_widths = widths
    model.block_types = ("res",) * 3 + ("evit",) * (len(widths) - 3)
    model.remat = True
    # The papers' image data cannot be shipped here; batch size and schedule are common choices.
    config.data.buckets = ((1, 256, 256, 256),)
    long_run(config, steps=200_000, lr=1e-4)


def _demo(config, arg):
    model = config.model
    # 4x4 into 8 channels (6 to 1), with the published kinds of stages.
    model.encoder_widths = model.decoder_widths = (16, 32, 64)
    model.encoder_depths = model.decoder_depths = (0, 1, 1)
    model.block_types = ("res", "res", "evit")
    model.multiscales = ((), (), (5,))
    model.head_dim = 16
    model.latent_channels = 8
    model.down_type, model.up_type = "conv", "interpolate"
    demo_on_samples(config, bucket=(1, 64, 64, 16), steps=400, lr=3e-3)
