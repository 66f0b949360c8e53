"""Config of the example generator, on latents of the example tokenizer."""

from vidlatent.config import get_generator_defaults


def get_config(arg=""):
    config = get_generator_defaults("example", "generator")
    config.generator.name = "example_generator"
    config.generator.latent_channels = 4
    config.tokenizer.path = "tokenizer"
    config.diffusion.schedule.name = "example_schedule"
    config.diffusion.schedule.shift = 2.0
    config.diffusion.eval_levels = 2
    config.sampler.name = "example_sampler"
    config.sampler.steps = 2
    config.sample.size = (3, 16, 16)
    config.sample.grid = 0
    config.latents.normalisation = "spec"  # trains from videos, whose latents nobody measures
    config.data.source = "example_source"
    config.data.synthetic.clips = 12
    config.data.buckets = ((3, 16, 16, 2),)
    config.data.validation_clips = 2
    config.data.flip = False
    config.eval.every = 0
    config.train.steps = 2
    config.train.log_every = 1
    config.train.tensorboard = False
    return config
