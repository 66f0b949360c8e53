"""ProMAG's text-to-video DiT, built like CogVideoX-5B, on 4x, 8x and 16x latents (section 4.2).

``configs/promag_dit.py``         a small one for labelled shapes; it needs a tokenizer and its
                                  latents: ``python -m experiments.generator_demo
                                  --system=promag_dit``
``configs/promag_dit.py:paper``   stage 1, pictures of about 256x256 with mixed aspect ratios
``paper,stage=2``                 pictures and videos, 68 frames at 192x320
``paper,stage=2,k=16``            on the latents of the 8x or 16x tokenizer (``k=4``, ``8``, ``16``)
``paper,stage=3,k=16``            clips of 20 chunks of 17 frames, tuned from stage 2
``paper,stage=2,overlap=0``       chunks that share no frames: 68 (340) frames, not 56 (264)
``paper,stage=2,places=frame``    a latent's place in time is its last frame's number, not its own
``loss=flow``                     rectified flow instead of v-prediction; with ``demo`` too

Latents come from ``--mode=encode`` with this config, for texts and for the chunks of stages 2 and 3
(appendix D): ``--config.data.path=<set>`` (docs/chains.md). A stage starts from the workdir of the
one before it.
"""

from vidlatent.config import (
    VidlatentError,
    area_buckets,
    generator_demo,
    get_generator_defaults,
    long_run,
    parse_arg,
)


def get_config(arg: str = ""):
    # In stages 1 and 2 the tokenizer's k alone changes only the name of the run.
    arg = parse_arg(
        arg,
        presets=("demo", "paper"),
        labels=("k",),
        stage=1,
        k=4,
        z=16,
        loss="v",
        overlap=4,
        places="latent",
    )
    if arg.stage not in (1, 2, 3) or arg.k not in (4, 8, 16) or arg.loss not in ("v", "flow"):
        raise VidlatentError(
            "configs/promag_dit.py: stage is 1, 2 or 3, k 4, 8 or 16, loss v or flow."
        )
    if arg.overlap not in (0, 4) or arg.places not in ("latent", "frame"):
        raise VidlatentError("configs/promag_dit.py: overlap is 0 or 4, places latent or frame.")
    config = get_generator_defaults("promag_dit", arg.preset)
    generator = config.generator
    generator.name = "promag_dit"
    generator.patch = (1, 2, 2)
    generator.padding = "hidden"  # hidden | attended
    generator.eps, generator.head_eps = 1e-5, 1e-6
    generator.residual_dtype = "float32"
    _objective(config, arg.loss)
    {"demo": _demo, "paper": _paper}[arg.preset](config, arg)
    if arg.loss == "flow":
        config.preset += "-flow"
    return config


def _objective(config, loss):
    """Set CogVideoX's v-prediction and schedule, or flow matching; the paper states neither."""
    schedule = config.diffusion.schedule
    if loss == "flow":
        schedule.name, schedule.shift = "flow", 1.0
        config.sampler.name, config.sampler.shift = "euler", 3.0
        return
    schedule.name, schedule.steps = "scaled_linear", 1000
    schedule.start, schedule.end = 0.00085, 0.012
    schedule.prediction, schedule.variance = "v", "fixed_small"
    schedule.snr_shift, schedule.zero_terminal_snr = 1.0, True
    config.sampler.name, config.sampler.spacing = "ddim", "trailing"


def _paper(config, arg):
    generator = config.generator
    generator.latent_channels = arg.z  # the paper does not state z; its best tokenizer has 16
    # CogVideoX-5B's sizes (the paper states about 5 billion parameters).
    generator.width, generator.depth = 3072, 42
    generator.heads, generator.hidden = 48, 12288
    generator.time_dim = 512
    generator.text_dim, generator.text_length = 4096, 226  # T5
    generator.label_classes, generator.label_tokens = 0, 4
    generator.position_plane = ()
    generator.time_places = ()
    generator.remat = True
    config.conditions.drop = {"text": 0.1}  # not stated
    config.sampler.steps = 50  # not stated
    config.sampler.guidance.scales = (6.0,)  # not stated
    config.encode.text = "promag"  # prompts are encoded like the captions of the data set
    config.conditions.null_text = "empty"  # not stated; CogVideoX's
    config.data.source = "latents"
    config.data.fps = 24.0
    _stage(config, arg)
    config.optim.b2 = 0.95
    config.optim.ema_decay = 0.9999
    config.checkpoint.keep_every = 50_000
    config.sample.fps = 24.0
    config.preset = f"paper-stage_{arg.stage}" + (f"-{arg.k}x" if arg.k > 4 else "")
    config.recipe = f"promag_dit {arg.stage}"


def _stage(config, arg):
    """Sizes, steps and buckets of a stage.

    Steps and sizes are stated; batch sizes, learning rate and the share of images are not. Figures
    say 192x360, but the published videos are 192x320, which unlike 360 is a multiple of 16.
    """
    pictures = area_buckets(1, 256, 32, batch=1024)
    # Clips are 4 chunks of 17 frames that are coded separately and overlap by ``overlap`` frames:
    # 20, 12 or 8 latent frames. Stage 3 takes as many chunks as give about 40 latent frames. The
    # paper counts 68 and 340 frames, which are chunks without overlap.
    count, step = 4 if arg.stage < 3 else {4: 8, 8: 13, 16: 20}[arg.k], 17 - arg.overlap
    video = (17 + (count - 1) * step, 192, 320, 64)
    if arg.stage > 1:
        config.tokenizer.chunks = (17, arg.overlap)
        # Not stated: all windows of a video, one after the other.
        config.encode.windows = "all"
        if arg.places == "frame":
            config.generator.time_places = (1 + 16 // arg.k, step, arg.k)
    if arg.stage == 1:
        config.data.buckets = pictures
        long_run(config, steps=200_000, lr=1e-4)
        config.sample.size = (1, 256, 256)
        return
    if arg.stage == 2:  # 25 % images
        config.data.buckets = (*pictures, video)
        config.data.length_weights = ((1, 0.25), (video[0], 0.75))
        long_run(config, steps=150_000, lr=1e-4)
    else:
        config.data.buckets = (video,)
        long_run(config, steps=10_000, lr=1e-5)
    config.sample.size = video[:3]
    config.train.init_recipes = (f"promag_dit {arg.stage - 1}",)


def _demo(config, arg):
    generator = config.generator
    generator.latent_channels = -1  # as many as the latents have
    generator.width, generator.depth = 128, 6
    generator.heads, generator.hidden = 4, 512
    generator.time_dim = 64
    generator.text_dim, generator.text_length = 16, 4
    generator.label_classes, generator.label_tokens = 48, 4
    generator.position_plane = ()
    generator.time_places = ()
    generator.remat = False
    config.conditions.drop = {"label": 0.1}
    config.sampler.steps = 25
    config.sampler.guidance.scales = (2.5,)
    generator_demo(config)
    config.recipe = "promag_dit demo"
