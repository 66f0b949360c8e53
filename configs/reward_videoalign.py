"""VideoAlign's reward, trained on pairs of videos that people have judged (FSVideo 2.4.3).

``configs/reward_videoalign.py``         a tiny random network on small videos, to try a folder of
                                         pairs out: ``--config.data.path=judged`` (docs/rewards.md)
``configs/reward_videoalign.py:paper``   the published size and mix: adapters on the language model,
                                         the vision tower and the head in full, and three rows of
                                         the embedding; from converted weights,
                                         ``--config.train.init_from=videoalign.safetensors``
``paper,picture=true``                   it sees the given first frame before the video, as
                                         FSVideo's does; the next round starts from this one's
                                         workdir

What it trains is then the reward ``videoalign``: ``--config.networks.videoalign=<workdir>``.
"""

from vidlatent.config import get_defaults, long_run, parse_arg


def get_config(arg: str = ""):
    arg = parse_arg(arg, ("demo", "paper"), picture=False)
    config = get_defaults("reward_videoalign", arg.preset + ("-picture" if arg.picture else ""))
    config.task = "reward"
    config.recipe = "reward_videoalign"
    reward = config.rewards
    reward.use = ("videoalign",)
    reward.videoalign.picture = arg.picture
    # The published loss is of scores as the head gives them.
    reward.videoalign.mean, reward.videoalign.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    reward.ties = 5.0  # stated
    config.data.source = "pairs"
    config.data.flip = False
    config.data.validation_share = 0.1
    config.checkpoint.best_metric, config.checkpoint.best_mode = "accuracy", "max"
    optim = config.optim
    optim.schedule = "constant"
    optim.b1, optim.b2, optim.eps, optim.weight_decay = 0.9, 0.999, 1e-8, 0.0  # its trainer's
    optim.clip_norm = 1.0
    {"demo": _demo, "paper": _paper}[arg.preset](config)
    return config


def _demo(config):
    videoalign = config.rewards.videoalign
    videoalign.network, videoalign.tokenizer = "videoalign_tiny", "words"
    videoalign.least_pixels, videoalign.most_pixels = 784, 3136
    videoalign.bucket = 16
    config.networks.videoalign_tiny = "random"
    config.data.buckets, config.data.fps = ((9, 32, 32, 8),), 8.0
    config.train.steps, config.train.log_every = 200, 20
    config.optim.lr, config.optim.warmup_steps = 1e-3, 10
    config.optim.ema_decay = 0.98
    config.checkpoint.every = config.eval.every = 100


def _paper(config):
    # Stated: rank 64, alpha 128 on all projections of the language model, the vision tower and its
    # merger in full; the head, and of the embedding the tokens at which scores are read.
    lora = config.optim.lora
    lora.rank, lora.alpha, lora.targets = 64, 128.0, "text/blocks/.*kernel$"
    lora.dropout = 0.05
    lora.full = "visual/|head/"
    lora.rows = (("text/embedding/kernel", (151_657, 151_658, 151_659)),)
    # Stated: one rate for all, three epochs, 5 % of them warm-up. The number of steps is that of 16
    # pairs a step and 5000 judged pairs, which FSVideo does not state.
    long_run(config, steps=940, lr=2e-6)
    config.optim.warmup_steps = 47
    config.optim.ema_decay = 0.0  # none is stated
    config.optim.accumulate = 4  # stated
    config.data.buckets, config.data.fps = ((61, 384, 640, 16),), 24.0
    config.rewards.videoalign.quantize = "round"  # as published; no gradient reaches pixels here
    config.checkpoint.every = config.eval.every = 100
