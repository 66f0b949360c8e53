"""A config so small that training it to the end takes seconds; ``:workers``, ``:discriminator``."""

from vidlatent.config import load_base, parse_arg


def get_config(arg: str = ""):
    arg = parse_arg(arg, presets=("tiny", "workers", "discriminator"))
    config = load_base("fsae:demo")
    config.name, config.preset = "tiny", arg.preset
    model = config.model
    model.encoder_widths = model.decoder_widths = (8, 16, 16)
    model.encoder_depths = model.decoder_depths = (1, 1, 1)
    model.block_types = ("res", "res", "evit")
    model.multiscales = ((), (), (5,))
    model.head_dim = 8
    model.up_form = "nearest"
    model.latent_channels = 8
    data = config.data
    data.source = "synthetic"
    data.synthetic.clips, data.synthetic.frames = 12, 13
    data.synthetic.height, data.synthetic.width = 40, 48
    data.buckets = ((5, 16, 16, 2), (1, 16, 32, 4))
    data.num_workers = 2 if arg.preset == "workers" else 0
    config.optim.warmup_steps = 2
    config.train.steps = 40
    config.train.log_every = 5
    config.train.tensorboard = False
    config.eval.every = 20
    data.validation_clips = 4
    config.eval.pictures = 2
    config.checkpoint.every = 10
    if arg.preset == "discriminator":
        config.discriminator.model.name = "patch3d"
        config.discriminator.model.width = 8
        config.discriminator.model.time_kernels = (3, 3, 1, 1)
        config.discriminator.adaptive_layer = "decoder/conv_out/kernel"
        config.discriminator.lecam_weight = 0.01
        config.discriminator.r1_weight = 10.0
        config.discriminator.r1_every = 4
        config.discriminator.images = False
        config.discriminator.start_step = 3
        config.recipe = "tiny discriminator"
        config.train.steps = 12
        config.checkpoint.every = 4
        config.eval.every = 0
    return config
