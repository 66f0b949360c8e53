"""Every default value of every config, and what it means.

A system's file starts from ``get_defaults()`` and changes what differs. Code never falls back to a
default of its own: a key that is not here does not exist.
"""

from ml_collections import ConfigDict


def get_generator_defaults(name: str, preset: str) -> ConfigDict:
    """``get_defaults`` for a generator, whose best checkpoint is the one of least loss."""
    config = get_defaults(name, preset)
    config.checkpoint.best_metric, config.checkpoint.best_mode = "loss", "min"
    return config


def get_defaults(name: str, preset: str) -> ConfigDict:
    """All keys with their defaults; ``model`` and ``loss`` are filled by the system's file."""
    config = ConfigDict()
    config.name = name  # system; with the preset it names the default workdir
    config.preset = preset
    config.seed = 0  # of parameters, noise and data order
    config.model = ConfigDict()
    config.recipe = ""  # the training stage this is, such as "fsae 1"; a next stage asks for it
    config.loss = ConfigDict()  # term -> weight, or -> group of "weight" and the term's options
    config.discriminator = _discriminator()
    config.networks = _networks()
    config.data = _data()

    config.optim = _optimizer()
    config.optim.accumulate = 1  # micro-batches summed into one step
    config.optim.ema_decay = 0.999  # of the copy that is evaluated and served

    # Of generators: diffusion transformers on a tokenizer's latents.
    config.generator = ConfigDict()  # name of models/dit and its fields; empty: train a tokenizer
    config.tokenizer = _tokenizer()
    config.diffusion = _diffusion()
    config.conditions = _conditions()
    config.sampler = _sampler()
    config.sample = _sample()

    config.precision = ConfigDict()
    config.precision.compute = "auto"  # float32 | bfloat16 | auto: bfloat16 on TPU and GPU

    config.kernels = _kernels()

    config.mesh = ConfigDict()  # devices per axis; -1: those left that share every batch
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.context = 1
    config.mesh.tensor = 1

    config.train = _train()

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1000
    config.checkpoint.keep_latest = 2
    config.checkpoint.keep_every = 0  # also keep multiples of this step for good; 0: none
    config.checkpoint.keep_best = 1
    config.checkpoint.best_metric = "psnr"
    config.checkpoint.best_mode = "max"
    config.checkpoint.verify = "auto"  # digests on restore: off | sample | full | auto

    config.codec = _codec()
    config.encode = _encode()

    config.eval = _eval()
    config.plan = _plan()
    config.bench = _bench()
    return config


def suffix(arg: ConfigDict, **usual) -> str:
    """Names the arguments that are not as ``usual``, so that each variant has a workdir of its own:
    ``-content_first-discriminator``."""
    return "".join(
        f"-{name}" if arg[name] is True else f"-{name}_{arg[name]}"
        for name, value in usual.items()
        if arg[name] != value
    )


def demo_on_samples(config: ConfigDict, bucket: tuple, steps: int, lr: float) -> None:
    """What every demo shares: minutes on the sample clips with a report now and then."""
    config.data.source = "samples"
    config.data.buckets = (bucket,)
    config.data.validation_clips = 16
    config.train.steps = steps
    config.train.log_every = 20
    config.optim.lr = lr
    config.optim.warmup_steps = 20
    config.optim.ema_decay = 0.98
    config.checkpoint.every = 100
    config.eval.every = 100


def long_run(config: ConfigDict, steps: int, lr: float) -> None:
    """What the published-size presets share; the papers leave most of it open."""
    config.data.num_workers = 8
    config.train.steps = steps
    config.train.log_every = 50
    config.optim.lr = lr
    config.optim.schedule = "constant"
    config.optim.warmup_steps = 2000
    config.checkpoint.every = 2000
    config.eval.every = 5000


def generator_demo(config: ConfigDict) -> None:
    """What every generator's demo shares: minutes on latents of labelled shapes, 9 x 32 x 32."""
    config.data.source = "latents"
    config.data.buckets = ((9, 32, 32, 32),)
    config.data.validation_clips = 96
    config.train.steps = 1200
    config.train.log_every = 50
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 50
    config.optim.weight_decay = 0.01
    config.optim.ema_decay = 0.99
    config.checkpoint.every = 300
    config.eval.every = 300
    config.sample.size = (9, 32, 32)
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
    """Buckets of about ``side * side`` pixels: sides multiples of ``multiple``, areas from 0.8 to
    1.25 times that, one side at most twice the other."""
    most = 2 * side // multiple
    sizes = [(h * multiple, w * multiple) for h in range(1, most) for w in range(1, most)]
    kept = [
        (height, width)
        for height, width in sizes
        if 0.8 <= height * width / side**2 <= 1.25 and 0.5 <= height / width <= 2
    ]
    return tuple((frames, height, width, batch) for height, width in kept)


def _kernels() -> ConfigDict:
    """Forms of the kernels, to be named where one of them fails or another is quicker.

    ``auto`` goes by the platform, and the log says what it takes. A form that is named and cannot
    do it stops the program; of several, such as ``splash,xla``, the first that can runs.
    """
    kernels = ConfigDict()
    kernels.attention = "auto"  # of generators: xla | splash (TPU) | cudnn (GPU)
    kernels.qk_norm_rope = "auto"  # norm and rotation of queries and keys: xla | pallas (TPU)
    kernels.layer_mix = "auto"  # FSVideo's mixtures of earlier layers: xla | pallas (TPU)
    # native | taps | fold2d, of depthwise kernels native | shifts | rows; model.conv_impl, where
    # a tokenizer's is not auto, comes first
    kernels.conv3d = "auto"
    return kernels


def _optimizer() -> ConfigDict:
    """AdamW and its rate, of the model or of a discriminator."""
    optim = ConfigDict()
    optim.lr = 1e-4  # peak learning rate
    optim.schedule = "cosine"  # after warm-up: cosine | constant | linear (to zero)
    optim.final_lr_share = 0.0  # of the peak, at the last step
    optim.warmup_steps = 0
    optim.ramp = ()  # (step, factor) points of a further factor, straight lines between
    optim.b1 = 0.9
    optim.b2 = 0.95
    optim.eps = 1e-8
    optim.weight_decay = 1e-4  # on kernels only, never on norms and biases
    optim.clip_norm = 1.0  # global gradient norm; 0: no clipping
    optim.clip_after = 0  # clip only after so many steps
    optim.lr_factors = ()  # (expression for paths, factor of the rate), the first match counts
    optim.no_decay = ""  # expression for paths without weight decay, such as router_
    optim.freeze = ""  # expression for paths that are not trained, such as encoder/
    return optim


def _tokenizer() -> ConfigDict:
    """The tokenizer that a generator's latents come from and are decoded by."""
    tokenizer = ConfigDict()
    tokenizer.path = ""  # its workdir; may be empty for training on a latent data set
    tokenizer.step = -1  # checkpoint; -1: the newest
    tokenizer.sample = False  # encode a draw from the posterior, not its mean
    # (frames, overlap_frames) of chunks that clips are coded in, one after the other in time, and
    # decoded with blending (ProMAG); empty: videos are coded whole, a latent data set as it says
    tokenizer.chunks = ()
    return tokenizer


def _diffusion() -> ConfigDict:
    """Noise and loss of a generator's training."""
    diffusion = ConfigDict()
    diffusion.schedule = ConfigDict()  # name of diffusion.SCHEDULES and its options
    diffusion.huber_reduction = "sample"  # of flow matching: sample | token | element
    diffusion.huber_c0 = 0.00054
    diffusion.eval_levels = 8  # noise levels at which validation clips are scored
    return diffusion


def _conditions() -> ConfigDict:
    """What a generator is told beside the noisy latent, and how often it is not."""
    conditions = ConfigDict()
    conditions.drop = ConfigDict()  # condition -> share of the samples that train without it
    conditions.joint = 0.0  # share that train without any of those
    # What stands for a dropped text, where the generator has nothing of its own: "empty", the empty
    # text's states, which a set with texts holds, or "zeros", one token of zeros
    conditions.null_text = "zeros"
    # Latent of the content frame (Reducio-DiT): "latents", of the image autoencoder encode.content
    # (a data set stores them), or "pooled", means of squares, which need no network
    conditions.content = "latents"
    return conditions


def _sampler() -> ConfigDict:
    """How a generator's latents are drawn. Keys of other solvers than the one named are not read,
    so that it can be changed by name alone."""
    sampler = ConfigDict()
    sampler.name = "euler"  # euler | fresh | ddim | ancestral | unipc | dpmpp_2m
    sampler.steps = 30
    # Of the noise levels: clean | diffusers_unipc | wan_unipc | diffusers_euler of flow matching,
    # even | stride | trailing | continuous of DDPM; empty: the first of these
    sampler.spacing = ""
    sampler.shift = 0.0  # of flow matching's levels; 0: the schedule's
    sampler.order = 2  # of unipc: 1 | 2 | 3
    sampler.solver_type = "bh2"  # of unipc: bh1 | bh2
    sampler.corrector = True  # of unipc
    sampler.eta = 0.0  # of ddim: 1 is ancestral
    guidance = sampler.guidance = ConfigDict()
    guidance.scales = ()  # one number for each link of the chain; empty: no guidance
    # For each link, the conditions that the less conditioned side does without; empty: all
    guidance.drops = ()
    guidance.interval = ()  # (low, high) noise levels between which to guide; empty: all
    guidance.rescale = 0.0  # share of the result brought back to the unguided contrast
    guidance.negative = ""  # text in place of a dropped one, at sampling; empty: the model's null
    guidance.batched = True  # both sides in one evaluation; False: less memory
    sampler.cache_conditions = True  # compute what does not change over the steps once
    # Large products in 8 bits, planned and measured so too; log and samples.json of --mode=sample
    # tell the PSNR of latents against those without
    sampler.fp8 = False
    cache = sampler.cache = ConfigDict()  # skip evaluations where the state hardly moved
    cache.threshold = 0.0  # summed relative change up to which to skip; 0: never
    cache.polynomial = (1.0, 0.0)  # from a change of the state to one of the output
    cache.max_skips = 4
    return sampler


def _sample() -> ConfigDict:
    """What --mode=sample makes, and what is shown while training."""
    sample = ConfigDict()
    sample.prompts = ()  # texts, names or numbers of classes; empty: every class
    sample.count = 1  # videos of each
    sample.seed = 0  # of the first video; each later one has the next
    sample.size = ()  # frames, height, width; empty: the last of data.buckets
    sample.batch = 4  # videos whose latents are drawn together
    sample.fps = 0.0  # of the files; 0: that of the latents' clips
    # Name files as VBench asks, <prompt>-<k>.mp4; --prompts=<its prompts by dimension> makes its
    # folders, one a dimension
    sample.vbench = False
    sample.clamp_first = False  # put the given first frame's latent into the result
    sample.grid = 4  # videos shown at each evaluation while training; 0: none
    return sample


def _train() -> ConfigDict:
    train = ConfigDict()
    train.steps = 1000
    train.stop_at = 0  # save and leave after this step, for queues with a time limit
    train.init_from = ""  # weights file or workdir to start from; empty: random
    train.init_kind = ""  # how another model's weights become this one's; empty: they are its own
    train.init_table = "auto"  # naming of the weights file
    train.init_recipes = ()  # recipes of the workdirs it may start from; empty: any
    train.sample_latent = False  # decode a draw from the posterior, not its mean
    # Frames of more than patch_above pixels decode a random patch of so many cells a side
    train.patch_cells = 0  # 0: never (a cell is 8x8 pixels in the published FSAE)
    train.patch_above = 0
    train.patch_latents = 0  # of a patch: latent frames, from the first on; 0: all
    train.patch_encoder = False  # whether their gradient goes on into the encoder
    train.log_every = 10
    train.max_bad_steps = 10  # consecutive non-finite steps before the run stops
    train.tensorboard = True
    train.profile_at = 0  # first step of a profiler trace; 0: none
    train.profile_steps = 5
    return train


def _eval() -> ConfigDict:
    score = ConfigDict()
    score.every = 1000  # steps between evaluations while training; 0: only at the end
    score.pictures = 4  # clips shown in contact sheets and side-by-side videos
    score.preservation = True  # score information preservation, pixels in [-1, 1]
    # Scores of --mode=eval beside PSNR and SSIM: lpips_vgg, lpips_alex, fvd_i3d, fvd_videomae,
    # is_c3d, psnr_reducio, ssim_reducio, lpips_reducio; see vidlatent/evaluate/scores.py
    score.metrics = ()
    score.training_metrics = ()  # the same while training; each costs time then
    score.is_splits = 10  # parts of an inception score, fewer than 2 clips in each: one part
    score.random_networks = False  # look through small random networks instead, to try things out
    # Of --mode=eval: score all clips of the data as a paper did, beside its own figures:
    # fsae_table2 | promag_table1 | promag_table1_360 | ivvae_s1 | reducio_main; empty: off
    score.protocol = ""
    score.leave_out = ()  # scores of the protocol to do without, such as ("fvd_videomae",)
    score.clips = 0  # of the protocol: so many clips, spread over the data; 0: all
    # Of --mode=reconstruct: PSNR, SSIM, seams, both videos side by side, a contact sheet. At
    # 1280x720 that takes longer than small codecs do
    score.compare = True
    # Of --mode=eval: draw how much each layer of a generator with memory weighs each earlier state
    score.layer_memory = False
    # Source clips whose latents' intrinsic dimension --mode=eval estimates; 0: none
    score.gride_clips = 0
    return score


def _plan() -> ConfigDict:
    """What --mode=plan compiles for a topology."""
    plan = ConfigDict()
    # train; of a tokenizer encode | decode, of a generator sample | nfe (one evaluation of it)
    plan.what = "train"
    plan.bucket = ()  # frames, height, width, batch; empty: that of data.buckets with most pixels
    plan.memory_gib = 0.0  # of a device; 0: what the hardware has
    plan.tries = 6  # changes tried when it does not fit; each is compiled
    # That the compiler spends on the speed of machine code: -1 to 1. At -1 a convolution compiles
    # ten times as fast; memory and traffic come out within some 7 %
    plan.effort = 0.0
    # Config of the tokenizer, such as fsae:paper, for a generator whose latents are not there yet
    plan.tokenizer = ""
    return plan


def _bench() -> ConfigDict:
    """What --mode=bench measures on the devices that are there."""
    bench = ConfigDict()
    # Programs as in plan, and loop: the training loop with its data; empty: all of the model's
    bench.what = ()
    bench.bucket = ()  # as in plan
    bench.warmup = 2  # runs that do not count
    bench.repeats = 10
    bench.inputs = 3  # different inputs, in turn
    bench.loop_steps = 100  # of the loop
    return bench


def _discriminator() -> ConfigDict:
    discriminator = ConfigDict()
    discriminator.model = (
        ConfigDict()
    )  # name of models/discriminators and its fields; empty: no discriminator
    discriminator.loss = "hinge"  # hinge | non_saturating
    discriminator.weight = 0.1  # of the generator's adversarial loss
    discriminator.scale = 1.0  # of the discriminator's own loss
    discriminator.start_step = 0  # before it neither player feels the other
    discriminator.warmup_steps = 0  # linear growth of the weight after start_step
    discriminator.images = True  # judge batches of single frames too
    # Weight relative to the gradients at one layer: weight * |d reconstruction| / |d adversarial|
    discriminator.adaptive_layer = (
        ""  # expression for its path: decoder/conv_out/kernel; empty: fixed
    )
    discriminator.adaptive_terms = ()  # loss terms that count as reconstruction; empty: all
    discriminator.r1_weight = 0.0  # gamma of the gradient penalty on real clips
    discriminator.r1_every = 16  # steps from one penalty to the next; it counts so many times more
    discriminator.r1_crop = (17, 256, 256)  # largest frames, height, width it is taken on
    discriminator.lecam_weight = 0.0
    discriminator.lecam_decay = 0.999
    discriminator.inherit = True  # go on with that of init_from's run, if it has the same one
    discriminator.optim = _optimizer()
    discriminator.optim.schedule = "constant"
    discriminator.optim.weight_decay = 0.0
    return discriminator


def _networks() -> ConfigDict:
    """Weights files of frozen networks; ``random`` is random weights, for trying things out."""
    from vidlatent.models.pretrained import NETWORKS

    # Stand-ins have no weights but random ones.
    return ConfigDict({n: "random" if n.endswith("_tiny") else "" for n in NETWORKS.names()})


def _codec() -> ConfigDict:
    """How --mode=reconstruct and ``vidlatent.load_codec`` cut long and large videos."""
    codec = ConfigDict()
    # stream: piece by piece as if coded whole | windows: the same for decoders that look ahead |
    # chunks: each by itself, blended where they overlap | auto: the first of these that is possible
    codec.time = "auto"
    codec.groups = 2  # frame groups (Reducio: clips) in a piece of a stream
    # Pieces that one call runs, in a loop on the device, when so many are on hand: the memory of
    # one piece, fewer calls; 0: 1 on a CPU, else 4
    codec.scan_groups = 0
    codec.window_latents = 16  # latent frames that a window adds
    codec.chunk_frames = 0  # of a chunk; 0: 17, or the nearest length below that fits
    codec.overlap_frames = -1  # shared by neighbouring chunks; -1: 4
    # whole | strips: of rows, exact (IV-VAE) | layers: convolution by convolution, exact (ProMAG) |
    # layers_literal: as its paper words it | tiles: with exact margins (FSAE) or evenly spread and
    # blended (Reducio) | tiles_published: as in its released code | auto: the largest parts that
    # fit into the memory at hand; the log says which, and why
    codec.space = "auto"
    codec.memory_gb = 0.0  # memory that auto counts on; 0: what is free
    codec.strip_mb = 0.0  # of the largest array of a strip; 0: 384
    codec.layer_positions = 0  # side of a tile in positions of each layer's map; 0: 64
    codec.layer_overlap_positions = -1  # shared by neighbouring tiles; -1: 0, literal 4
    codec.layer_dead_positions = -1  # at a literal tile's inner edges, left out; -1: 1
    codec.tile_pixels = 0  # distance of the tiles; 0: 256, FSAE 512
    # that a tile reads beyond that; -1: a quarter of it (FSAE: what makes tiles exact, always)
    codec.tile_overlap_pixels = -1
    return codec


def _encode() -> ConfigDict:
    """How --mode=encode makes a latent data set of config.data."""
    encode = ConfigDict()
    # Of each clip, for each number of frames among the buckets: one (its middle) | all
    encode.windows = "one"
    encode.stride = 0  # frames from window to window; 0: as many as the longest bucket has
    encode.dtype = "float16"  # float16 | bfloat16 | float32; the header states the error
    encode.draws = 0  # draws from the posterior stored of each window; 0: its mean
    # (frames, overlap_frames) of chunks that windows are coded in, such as (17, 4): their latents
    # follow each other in time; empty: windows are coded whole. A single frame is a picture
    encode.chunks = ()
    encode.shards = 0  # files; 0: of about 128 MiB
    encode.text = ""  # store states of the captions for this system: wan | reducio | promag
    encode.text_network = ""  # of config.networks; empty: the system's own
    encode.tokenizer = ""  # its tokenizer.json; "words": numbers by hash, for stand-ins
    encode.image = ""  # store tokens of a frame by this one of config.networks
    # Store the latent of the content frame (of frame 0 where there is none) by this one: sd_vae
    encode.content = ""
    encode.content_draw = True  # a draw from the posterior, as Reducio's code has it; False: mean
    encode.pictures = 4  # windows decoded into contact_sheet.png; 0: none
    # Several commands share the work by shards, one for each index; count 0: as JAX's processes do
    encode.process_index = 0
    encode.process_count = 0
    return encode


def _data() -> ConfigDict:
    data = ConfigDict()
    data.source = "folder"  # folder | samples | tfds | synthetic | latents
    data.path = ""  # folder of videos and images, the TFDS data_dir, or a latent data set
    data.tfds_name = ""
    data.tfds_field = "video"  # field holding an encoded video or image
    data.tfds_label = ""  # field holding the class
    data.tfds_caption = ""  # field holding a caption
    # Of folders: classes are named by captions.jsonl, or, with "folders", by the first sub-folder
    data.labels = ""
    data.buckets = ()  # ((frames, height, width, global batch size), ...)
    # Of a clip: nearest aspect ratio | inward: the next one towards the square (Reducio's code)
    data.bucket_rule = "nearest"
    data.bucket_weights = ()  # one per bucket; empty: clip lengths alike, then by their clips
    data.fps = 0.0  # target frame rate; 0: each file's own
    # random | centre | resized: a random half or more of the frame, stretched by at most 4/3
    data.crop = "random"
    # area: averaged when smaller, bicubic when larger | bilinear: with antialiasing, as torchvision
    data.resize = "area"
    data.flip = True  # mirror half of the training clips
    data.validation_share = 0.1  # of the files, chosen by a hash of their name
    data.validation_clips = 64  # windows scored, at most, for each clip length
    data.num_workers = 0  # decoding processes; 0: threads of this one
    data.read_threads = 2
    data.prefetch = 4  # batches decoded ahead
    data.memory_mb = 256  # sets that fit, at bucket size, are decoded once and kept; 0: never
    data.decode_timeout_s = 20.0  # longest time for one window
    data.max_pixels = 4096 * 4096  # of one frame
    data.bad_clip_budget = 0.05  # share of bad draws at which the run stops with their list
    data.bad_clip_window = 1000  # ... counted over so many draws
    data.index_cache = ""  # file that remembers what probing found; empty: in the workdir
    data.verify = "auto"  # before the run: header | decode (each clip whole) | auto
    data.synthetic = ConfigDict()
    data.synthetic.clips = 512
    data.synthetic.frames = 33
    data.synthetic.height = 96
    data.synthetic.width = 96
    data.synthetic.shapes = 5  # moving shapes in a scene, at most
    data.synthetic.fps = 24.0
    # scenes: camera and shapes | paths: speeds in pixels a frame | shapes: one with a label
    data.synthetic.kind = "scenes"
    data.synthetic.speed = 0.25  # of paths, pixels a frame
    data.synthetic.turns = 0.0  # of paths, abrupt turns of a shape a frame; 0: smooth
    return data
