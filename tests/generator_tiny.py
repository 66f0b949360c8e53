"""A config so small that a generator trains in seconds; ``:latents`` reads a latent data set.

The tokenizer is one whose workdir ``tests.train.generators.tokenizer_run`` makes.
"""

from vidlatent.config import load_base, parse_arg


def get_config(arg: str = ""):
    arg = parse_arg(arg, presets=("videos", "latents"), first=False, text=False)
    flags = (f"{name}={'true' if arg[name] else 'false'}" for name in ("first", "text"))
    config = load_base("fsvideo_dit:" + ",".join(("demo", *flags)))
    config.name, config.preset = "tiny_generator", arg.preset
    generator = config.generator
    generator.patch = (1, 1, 1)
    generator.width, generator.depth, generator.heads, generator.hidden = 16, 2, 2, 16
    generator.freq_dim = 8
    generator.label_tokens = 1
    data = config.data
    data.source = "synthetic" if arg.preset == "videos" else "latents"
    if arg.preset == "videos":
        config.latents.normalisation = "spec"
    data.synthetic.kind = "shapes"
    data.synthetic.clips, data.synthetic.frames = 96, 3
    data.synthetic.height = data.synthetic.width = 8
    data.flip = False
    data.buckets = ((3, 8, 8, 8),)
    data.validation_clips = 8
    config.optim.warmup_steps = 2
    config.optim.lr = 3e-3
    config.train.steps = 12
    config.train.log_every = 4
    config.train.tensorboard = False
    config.eval.every = 0
    config.diffusion.eval_levels = 3
    config.checkpoint.every = 4
    config.sampler.steps = 4
    config.sample.size = (3, 8, 8)
    config.sample.batch = 3
    config.sample.grid = 2
    return config
