"""Config of the example tokenizer, on the example source."""

from vidlatent.config import get_defaults


def get_config(arg=""):
    config = get_defaults("example", "tokenizer")
    config.task = "example_task"
    config.model.name = "example_tokenizer"
    config.model.latent_channels = 4
    config.loss.l1 = 1.0
    config.loss.example_loss = {"weight": 0.1, "power": 2.0}
    config.discriminator.model.name = "example_discriminator"
    config.eval.metrics = ("example_metric",)
    config.eval.every = 0
    config.eval.pictures = 1
    config.data.source = "example_source"
    config.data.synthetic.clips = 12
    config.data.buckets = ((3, 16, 16, 2),)
    config.data.validation_clips = 2
    config.data.flip = False
    config.train.steps = 2
    config.train.log_every = 1
    config.train.tensorboard = False
    return config
