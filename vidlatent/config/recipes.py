"""What several configs share: the demos, long runs, and DDPM's noise prediction."""

from ml_collections import ConfigDict

__all__ = [
    "area_buckets",
    "demo_on_samples",
    "distil_guidance",
    "distil_scores",
    "follow_rewards",
    "generator_demo",
    "halve_steps",
    "long_run",
    "noise_prediction",
    "raise_rewards",
]


def demo_on_samples(config: ConfigDict, bucket: tuple, steps: int, lr: float) -> None:
    """A tokenizer's demo: minutes on the sample clips, with a report every 100 steps."""
    config.data.source = "samples"
    config.data.buckets = (bucket,)
    config.data.validation_clips = 16
    config.train.steps = steps
    config.train.log_every = 20
    config.optim.lr = lr
    config.optim.warmup_steps = 20
    # The average of some 50 steps: a longer one would remember the start of so short a run.
    config.optim.ema_decay = 0.98
    config.checkpoint.every = 100
    config.eval.every = 100


def long_run(config: ConfigDict, steps: int, lr: float) -> None:
    """Presets of published sizes; the papers leave most of these values open."""
    config.data.num_workers = 8
    config.train.steps = steps
    config.train.log_every = 50
    config.optim.lr = lr
    config.optim.schedule = "constant"
    config.optim.warmup_steps = 2000
    config.checkpoint.every = 2000
    config.eval.every = 5000


def generator_demo(config: ConfigDict) -> None:
    """A generator's demo: minutes on latents of labelled shapes, 9 frames of 32 x 32."""
    config.data.source = "latents"
    config.data.buckets = ((9, 32, 32, 32),)
    config.data.validation_clips = 96
    config.train.steps = 1200
    config.train.log_every = 50
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 50
    config.optim.weight_decay = 0.01
    # The average of some 100 steps, for a run of 1200.
    config.optim.ema_decay = 0.99
    config.checkpoint.every = 300
    config.eval.every = 300
    config.sample.fps = 8.0
    config.sample.batch = 16


def noise_prediction(config: ConfigDict) -> None:
    """DDPM of 1000 steps, betas 1e-4 to 0.02, noise and a learned range of the variance (IDDPM)."""
    schedule = config.diffusion.schedule
    schedule.name, schedule.steps = "linear", 1000
    schedule.start, schedule.end = 1e-4, 0.02
    schedule.prediction, schedule.variance = "epsilon", "learned_range"


def area_buckets(
    frames: int, side: int, multiple: int, batch: int
) -> tuple[tuple[int, int, int, int], ...]:
    """Buckets of about ``side * side`` pixels.

    Sides are multiples of ``multiple``, one at most twice the other; areas are 0.8 to 1.25 times
    that of the square.
    """
    # Enough where `multiple` divides `side`: by the limits below no side is longer than
    # sqrt(2 * 1.25) = 1.6 times the square's.
    most = 2 * side // multiple
    sizes = [(h * multiple, w * multiple) for h in range(1, most) for w in range(1, most)]
    kept = [
        (height, width)
        for height, width in sizes
        if 0.8 <= height * width / side**2 <= 1.25 and 0.5 <= height / width <= 2
    ]
    return tuple((frames, height, width, batch) for height, width in kept)


def distil_guidance(config: ConfigDict, scale: float, guided: str, follows: str) -> None:
    """The stage after ``follows``: guidance becomes part of the generator (FSVideo 2.4.3).

    Args:
      scale: that is built in.
      guided: the condition that is guided; the others are kept in both branches.
      follows: recipe that it starts from.
    """
    config.task = "distill_guidance"
    config.distill.scales, config.distill.drops = (scale,), ((guided,),)
    config.sampler.guidance.scales = config.sampler.guidance.drops = ()
    # A few samples keep the velocity without the condition (not stated).
    config.conditions.drop[guided] = 0.05
    _follow(config, "cfg", follows)


def halve_steps(config: ConfigDict, stages: tuple[int, ...], follows: str) -> None:
    """The stage after ``follows``: progressive distillation to fewer and fewer steps."""
    config.task = "distill_progressive"
    config.distill.stages = stages
    flow = config.diffusion.schedule.name == "flow"
    config.sampler.name, config.sampler.steps = "euler" if flow else "ddim", stages[-1]
    config.sampler.guidance.scales = config.sampler.guidance.drops = ()
    _follow(config, "progressive", follows)
    # In every stage from the peak to 0 (Salimans and Ho 2022).
    config.optim.schedule = "linear"


def distil_scores(config: ConfigDict, kind: str, steps: int, train_steps: int, lr: float) -> None:
    """The stage after guidance or halved steps: few steps by score distillation.

    Args:
      kind: ``'sida'`` or ``'dmd'`` (``config.distill.score``).
      steps: of the student.
      train_steps: updates of the generator.
      lr: of both networks.
    """
    before, score = config.recipe, config.distill.score
    config.task, score.kind = "distill_score", kind
    config.sampler.name, config.sampler.steps = "euler", steps
    config.sampler.guidance.scales = config.sampler.guidance.drops = ()
    # All three networks get all conditions (specification of the method; not stated by FSVideo).
    config.conditions.drop = {}
    for optim in (config.optim, config.distill.optim):
        optim.lr, optim.schedule, optim.warmup_steps = lr, "constant", 0
        # Published: no momentum, and no bound on the norm.
        optim.b1, optim.b2, optim.weight_decay, optim.clip_norm = 0.0, 0.999, 0.0, 0.0
        if kind == "dmd":  # of DMD2's code
            optim.b1, optim.weight_decay, optim.clip_norm = 0.9, 0.01, 10.0
    # Parameters of the same kind learn alike in both.
    own = config.distill.optim
    own.lr_factors, own.no_decay = config.optim.lr_factors, config.optim.no_decay
    if kind == "dmd":  # of DMD2's code for SDXL in four steps
        config.sampler.name, score.fake_updates, score.levels = "fresh", 5, "uniform"
        score.adversarial_weight, score.discriminator_weight = 5e-3, 1e-2
        score.generator_after = score.adversarial_after = 0
    config.train.steps = train_steps * (1 + score.fake_updates)
    # The loss says nothing of progress.
    config.checkpoint.best_metric = "frechet_latents"
    _follow(config, kind, f"{before} cfg")
    config.recipe = f"{before} {kind}"
    config.train.init_recipes = (f"{before} progressive", f"{before} cfg")


def raise_rewards(config: ConfigDict, rewards: tuple[str, ...], follows: tuple[str, ...]) -> None:
    """The stage after one of ``follows``: policy updates by rewards, MixGRPO (FSVideo 2.4.3).

    Optimizer and number of steps are MixGRPO's.
    """
    flow = config.diffusion.schedule.name == "flow"
    # Flow-SDE is of flows alone.
    config.rl.noise = "flow_sde" if flow else "cps"
    if config.sampler.steps > 10:
        config.rl.window.size, config.rl.eta = 4, 0.7
    _tune_by_rewards(config, "grpo", rewards, follows, lr=1e-5)
    config.optim.b1, config.optim.b2, config.optim.eps = 0.9, 0.999, 1e-8
    config.optim.weight_decay = 1e-4
    # Conditions are those of sampling: none is dropped.
    config.conditions.drop = ConfigDict()


def follow_rewards(config: ConfigDict, rewards: tuple[str, ...], follows: tuple[str, ...]) -> None:
    """The stage after one of ``follows``: gradients of rewards, ReFL (FSVideo 2.4.3).

    The loss of the data beside it keeps optimizer and dropped conditions of the stage before.
    """
    _tune_by_rewards(config, "refl", rewards, follows, lr=2e-6)


def _tune_by_rewards(
    config: ConfigDict,
    task: str,
    rewards: tuple[str, ...],
    follows: tuple[str, ...],
    lr: float,
) -> None:
    config.task = task
    flow = config.diffusion.schedule.name == "flow"
    config.sampler.name = "euler" if flow else "ddim"
    config.rewards.use = rewards
    long_run(config, steps=300, lr=lr)
    config.train.log_every = 1
    config.checkpoint.every = config.eval.every = 25
    config.checkpoint.best_metric, config.checkpoint.best_mode = "reward", "max"
    config.optim.clip_norm, config.optim.ema_decay = 1.0, 0.99
    _follow(config, task, follows[0])
    config.train.init_recipes = follows


def _follow(config: ConfigDict, stage: str, follows: str) -> None:
    config.preset += f"-stage_{stage}"
    config.recipe = f"{follows.removesuffix(' cfg')} {stage}"
    config.train.init_recipes = (follows,)
    config.train.init_kind = ""
    config.optim.warmup_steps = 0
