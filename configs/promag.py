"""ProMAG: a tokenizer with 4x8x8 compression grown to 8x8x8 and 16x8x8; its MAGVIT-v2 baseline.

``configs/promag.py``                a small 4x ProMAG on the sample clips, minutes on a laptop
``configs/promag.py:paper``          stage I at the published size (``z=8`` for the narrow latent)
``paper,stage=II``, ``stage=III``    (or ``grow=1``, ``grow=2``) grown to 8x, then to 16x;
                                     ``mode=plain`` grows without key frames, residual and adaptive
                                     norm, ``gan=true`` with the discriminator of stage I; the demo
                                     has one, small and from step 100, with ``gan=true`` alone
``paper,stage=0``                    (or ``image=true``) the image autoencoder that codes frame 0;
                                     ``join=latent`` and ``join=none`` use it otherwise or not
``configs/promag.py:paper,model=magvit2,k=16``  the baseline trained directly at 4x, 8x or 16x
``configs/promag.py:line``           videos one pixel high: the growth experiment on one core
``configs/promag.py:square``         64x64 videos: the growth experiment on a GPU

``k=16`` without ``model`` is a ProMAG built for 16x at once. All but ``z`` choose the same variants
of the other presets. A stage starts from the workdir of the one before it, which it leaves as it
is: ``--config.train.init_from=runs/promag-demo``. Stage I with ``join`` takes the image
autoencoder's there; with ``--config.train.init_kind=promag_image`` a model without ``join`` starts
as that image autoencoder applied to every fourth frame.
"""

from vidlatent.config import (
    VidlatentError,
    demo_on_samples,
    get_defaults,
    long_run,
    name_suffix,
    parse_arg,
)

_STAGES = ("0", "I", "II", "III")
_STAGE_FPS = (6.0, 12.0, 24.0)  # of the clips at 4x, 8x and 16x


def get_config(arg: str = ""):
    arg = parse_arg(
        arg,
        presets=("demo", "paper", "line", "square"),
        model="promag",
        grow=0,
        mode="full",
        k=4,
        z=16,
        image=False,
        join="",
        stage="",
        gan=False,
        spelt_out={"stage": "I"},
    )
    _read_stage(arg)
    direct = {4: 0, 8: 1, 16: 2}
    if arg.model not in ("promag", "magvit2") or arg.grow not in (0, 1, 2) or arg.k not in direct:
        raise VidlatentError(
            "configs/promag.py: model is promag or magvit2, grow 0, 1 or 2, k 4, 8 or 16."
        )
    stage = "0" if arg.image else _STAGES[1 + arg.grow]
    suffix = "" if stage == "I" else f"-stage_{stage}"
    suffix += name_suffix(arg, mode="full", k=4, z=16, join="", gan=False)
    config = get_defaults(arg.model, arg.preset + suffix)
    config.loss.l1 = 1.0
    _model(config, arg, extra=direct[arg.k])
    # The frame rate doubles with each stage, so that key frames keep the spacing that the previous
    # stage was trained on.
    config.data.fps = _STAGE_FPS[max(arg.grow, direct[arg.k])]
    config.optim.b2 = 0.99
    {"demo": _demo, "paper": _paper, "line": _line, "square": _square}[arg.preset](config, arg)
    _start(config, arg)
    if arg.preset in ("demo", "paper"):
        _stage(config, arg, stage)
    elif arg.gan:
        raise VidlatentError(f"config argument gan=true: {arg.preset} has no discriminator.")
    if not arg.image:
        # The models get worse beyond the 17 frames that they are trained on (appendix D).
        codec = config.codec
        codec.time, codec.chunk_frames, codec.overlap_frames = "chunks", 17, 4
    if arg.image:
        config.data.buckets = tuple((1, h, w, 8 * b) for _, h, w, b in config.data.buckets)
        config.data.fps = 0.0
    return config


def _read_stage(arg):
    """``stage=II`` is another name for ``grow=1``, ``stage=0`` for ``image=true``."""
    if not arg.stage:
        return
    if arg.stage not in _STAGES or arg.image or arg.grow:
        raise VidlatentError(
            f"config argument stage={arg.stage}: stages are 0, I, II and III, and take the place "
            "of image= and grow=."
        )
    arg.image = arg.stage == "0"
    arg.grow = max(0, _STAGES.index(arg.stage) - 1)


def _stage(config, arg, stage):
    """The stage's recipe, the stages it may start from, and its losses (ProMAG, appendix B)."""
    config.recipe = _recipe(arg, stage)
    if arg.grow:
        config.train.init_recipes = (_recipe(arg, _STAGES[arg.grow]),)
    elif config.train.init_kind == "first_frame":
        config.train.init_recipes = (_recipe(arg, "0"),)
    if arg.preset == "demo":
        if arg.gan:
            _demo_discriminator(config, arg)
        return
    config.train.sample_latent = True
    config.loss.lpips_vgg = 1.0
    config.loss.kl = 1e-12
    # In growing stages the paper uses a discriminator only in its rows "w/ GAN", and does not state
    # the weight.
    if not arg.grow or arg.gan:
        _discriminator(config, arg)
        config.discriminator.optim.warmup_steps = 1000


def _recipe(arg, stage):
    """Name of a stage's recipe: the stage and all options that a following stage depends on."""
    words = [arg.model, stage]
    if arg.k != 4 and stage != "0":
        words.append(f"{arg.k}x")
    if arg.mode != "full" and stage in _STAGES[2:]:
        words.append(arg.mode)
    if arg.join and stage != "0":
        words.append(f"join={arg.join}")
    return " ".join(words)


def _discriminator(config, arg):
    """Add Stable Diffusion's discriminator, applied to video.

    Its kernel size in time and its first step are not stated. Nothing is stated about stage 0,
    which gets the losses of stage I.
    """
    discriminator = config.discriminator
    discriminator.model.name = "patch2d" if arg.image else "patch3d"
    if not arg.image:
        discriminator.model.time_kernels = (3, 3, 3, 3, 3)
    discriminator.weight = 0.1
    discriminator.optim.b2 = 0.99
    discriminator.optim.weight_decay = 1e-4


def _demo_discriminator(config, arg):
    _discriminator(config, arg)
    config.discriminator.model.width = 16
    config.discriminator.start_step = 100
    config.discriminator.optim.lr = 1e-3


def _start(config, arg):
    """How a stage is initialised, and which parameters it freezes."""
    join = "none" if arg.image else config.model.first_frame_join
    # A growing stage trains only its new blocks and the 1x1x1 layers at the latent.
    frozen = ["image"] if join != "none" else []
    if arg.grow:
        frozen += ["encoder", "decoder", *(f"grow{i}" for i in range(1, arg.grow))]
    config.optim.freeze = f"({'|'.join(frozen)})/" if frozen else ""
    if arg.grow:
        config.train.init_kind = "grown"
    elif join != "none":
        config.train.init_kind = "first_frame"


def _model(config, arg, extra):
    """Fields shared by all presets. Where the paper is silent, they are our recommendation."""
    baseline = arg.model == "magvit2"
    model = config.model
    model.name = arg.model
    model.norm_kind = "group" if baseline else "rms"  # rms | std_no_shift | group
    model.norm_axes = "hw"  # hw: each frame alone | thw: no longer causal, so no streaming
    model.norm_eps = 1e-6
    model.time_padding = "zeros"  # before frame 0: zeros | replicate (not stated)
    model.drop_mode = "final" if baseline else "each"  # each up layer | at the decoder's end
    model.stem = "conv3" if baseline else "post1x1"
    model.decoder_ada = "position" if baseline else "none"  # none | position | pooled
    # Frame 0 by the frozen image encoder of stage 0: feature | latent | none
    joins = arg.preset == "paper" and not baseline
    model.first_frame_join = arg.join or ("feature" if joins else "none")
    model.image = arg.image
    model.line = arg.preset == "line"
    model.grow = arg.grow
    model.grow_mode = arg.mode  # full | plain: without key frames, residual and adaptive norm
    model.ada_mode = "position"  # adaptive norm of the added blocks: position | pooled | none
    model.zero_init_residual = False  # True: a grown model starts with its key frames' latents
    model.extra_multipliers = (4,) * extra  # levels of a directly trained 8x or 16x model
    model.logvar_init = -6.0
    model.tile_size = 0  # tiles of the decoder's convolutions for large pictures; 0: none
    model.tile_overlap = 0
    model.tile_mode = "halo"  # halo: exact | literal: as the paper words it
    model.tile_dead_zone = 0  # of literal tiles: positions at inner edges that the blend leaves out
    model.latent_scale = 1.0  # a generator sees scale * (latent - shift)
    model.latent_shift = 0.0
    model.conv_impl = "auto"
    model.remat = False


def _paper(config, arg):
    model = config.model
    model.latent_channels = arg.z
    model.width = 128
    model.multipliers = (1, 2, 2, 4)
    model.temporal_down = (1, 2)
    model.blocks = model.grow_blocks = 4
    model.groups = 32
    model.remat = True
    config.data.buckets = ((17, 256, 256, 32),)
    # A directly trained model gets as many steps as all ProMAG stages together (not stated).
    direct_steps = {4: 300_000, 8: 400_000, 16: 500_000}
    long_run(config, steps=100_000 if arg.grow else direct_steps[arg.k], lr=1e-4)
    # Warm-up, schedule, clipping and EMA are not stated.
    config.optim.warmup_steps = 1000
    config.checkpoint.keep_every = 50_000


def _demo(config, arg):
    model = config.model
    # 4x4x4 compression into 16 channels (12:1) instead of 4x8x8 into 16 (48:1), and a narrow model,
    # so that a few minutes on two CPU cores give recognisable clips.
    model.latent_channels = 16
    model.width = 16
    model.multipliers = (1, 2, 4)
    model.temporal_down = (0, 1)
    model.blocks = model.grow_blocks = 1
    model.groups = 8
    demo_on_samples(config, bucket=(17, 48, 48, 1), steps=300, lr=1e-3)


def _line(config, arg):
    model = config.model
    model.latent_channels = 8
    model.width = 8
    model.multipliers = (1, 4, 4)
    model.temporal_down = (0, 1)
    model.conv_impl = "fold2d"  # faster on CPUs with few channels
    model.blocks = model.grow_blocks = 1
    model.groups = 8
    config.data.buckets = ((17, 1, 32, 16),)
    _rendered(config, clips=6000, shapes=3, speed=0.12)
    config.data.synthetic.height, config.data.synthetic.width = 1, 32
    config.data.validation_share = 0.07
    config.data.validation_clips = 384
    config.data.read_threads = 1
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 50
    config.train.steps = 300 if arg.grow else 900


def _square(config, arg):
    model = config.model
    model.latent_channels = 16
    model.width = 32
    model.blocks = model.grow_blocks = 2
    model.groups = 8
    model.multipliers = (1, 2, 2, 4)
    model.temporal_down = (1, 2)
    config.data.buckets = ((17, 64, 64, 8),)
    # Each shape turns abruptly about every 12 frames, which interpolation cannot predict.
    _rendered(config, clips=20_000, shapes=4, speed=0.45)
    config.data.synthetic.turns = 1 / 12
    config.data.synthetic.height, config.data.synthetic.width = 64, 64
    config.data.validation_share = 0.03
    config.data.validation_clips = 512
    config.data.num_workers = 8
    config.optim.lr = 6e-4
    config.optim.warmup_steps = 100
    config.train.steps = 2000 if arg.grow else 6000


def _rendered(config, clips, shapes, speed):
    """Use clips rendered at 24 fps; a stage at a lower rate takes exactly every n-th frame."""
    config.data.source = "synthetic"
    synthetic = config.data.synthetic
    synthetic.kind = "paths"
    synthetic.clips, synthetic.frames, synthetic.shapes = clips, 97, shapes
    synthetic.speed = speed
    # With a constant learning rate, a short run is exactly the beginning of a longer one.
    config.optim.schedule = "constant"
    config.train.log_every = 50
    config.train.tensorboard = False
    config.checkpoint.every = 2000
    config.eval.every = 0
    config.eval.pictures = 0
    config.eval.preservation = False
