"""The chains of docs/chains.md at a size that compiles in seconds: videos, starts, configs."""

import jax
import numpy as np
from PIL import Image

from tests.helpers.clips import pictures, write_clip
from tests.helpers.generator_nets import inputs, parameters
from tests.helpers.recipes import shrink
from tests.helpers.reducio_nets import image_vae
from vidlatent.models.generators import build_generator
from vidlatent.models.load import abstract_params, model_of
from vidlatent.models.tokenizers import build
from vidlatent.weights.files import save_params

SIZES = ((24, 32), (32, 24))  # of all buckets; both divide into every tiny model's cells
CLASSES = ("boats", "birds")
_TEXT = {"text_dim": 16, "text_length": 6}
_WIDTHS = {"width": 24, "depth": 2, "heads": 2, "hidden": 16, "remat": False}
_GENERATORS = {
    "wan": {**_WIDTHS, **_TEXT, "condition_channels": 4, "freq_dim": 8, "image_dim": 8},
    "latte": {**_WIDTHS, "freq_dim": 8, "label_classes": len(CLASSES)},
    "reducio_dit": {**_WIDTHS, **_TEXT, "freq_dim": 8, "image_dim": 8, "image_tokens": 1}
    # Latents of 2x2 pixels are finer than the image autoencoder's of 8x8: means of squares instead.
    | {"content_channels": 4, "content_factor": 1, "content_scale": 1.0, "pixels_per_latent": 2}
    | {"content_side": 1},
    "promag_dit": {**_WIDTHS, **_TEXT, "width": 32, "time_dim": 12},
}


def write_videos(folder, frames=40):
    """Clips of three shapes in folders that name their classes, and pictures, all with captions."""
    # The hash of these names leaves wide and tall clips for training and for validation.
    shapes = ((48, 64), (64, 48), (40, 40))
    for number in range(12):
        place = folder / CLASSES[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        video = pictures(frames, *shapes[number % len(shapes)], seed=number)
        write_clip(place / f"shot{number}.mp4", video, rate=24)
        (place / f"shot{number}.txt").write_text(f"{CLASSES[number % 2]} number {number}\n")
    for number in range(4):
        frame = pictures(1, 48, 64, seed=100 + number)[0]
        Image.fromarray(frame).save(folder / CLASSES[0] / f"picture{number}.png")
    return folder


def shrink_tokenizer(config):
    frames, *_ = shrink(config)
    if config.recipe == "ivvae 1":  # the image VAE of one branch
        config.model.latent_channels = 2
    if config.model.name == "reducio":
        frames = config.model.frames = 16  # as published
    _shrink_run(config, frames)
    with config.unlocked():
        config.data.fps = 0.0  # the clips are too short for frames taken six a second
    return config


def shrink_generator(config, tokenizer):
    """A generator's config, for training and encoding; ``tokenizer`` is the config of its own."""
    # As many as the network of the Fréchet distance reads, or as a clip of Reducio-VAE has.
    frames = 16 if config.generator.name == "reducio_dit" else 9
    chunks = config.tokenizer.chunks
    with config.unlocked():
        config.generator.update(_GENERATORS[config.generator.name])
        config.generator.latent_channels = tokenizer.model.latent_channels
        if config.generator.name == "reducio_dit":
            config.conditions.content, config.encode.content = "pooled", ""
        if config.encode.text:
            wide = config.encode.text == "wan"
            config.encode.text_network = "umt5_tiny" if wide else "t5_tiny"
            config.encode.tokenizer = "words"
        if config.encode.image:
            config.encode.image = "clip_tiny"
        config.encode.pictures, config.encode.measure_batches = 0, 2
        config.sampler.steps = 2
        config.sample.batch = 2
    # Two chunks where the papers take four or twenty.
    _shrink_run(config, 2 * chunks[0] - chunks[1] if chunks else frames)
    with config.unlocked():
        config.sample.size = config.data.buckets[0][:3]
    return config


def _shrink_run(config, frames):
    """Two steps on two shapes; one length of videos, and pictures where the preset has them."""
    with config.unlocked():
        data, lengths = config.data, {bucket[0] for bucket in config.data.buckets}
        kept = [frames] * (max(lengths) > 1) + [1] * (min(lengths) == 1)
        data.buckets = tuple((length, *size, 2) for length in kept for size in SIZES)
        if data.length_weights:
            data.length_weights = tuple((length, 1 / len(kept)) for length in kept)
        data.bucket_weights, data.num_workers = (), 0
        data.validation_share, data.validation_clips = 0.2, 2
        config.train.steps = config.train.log_every = 2
        config.train.tensorboard = False
        config.checkpoint.every = config.eval.every = 0
        config.eval.pictures, config.eval.preservation = 1, False
        config.optim.warmup_steps = 0


def write_start(config, folder):
    """The published file that a preset starts from, with random weights; its path."""
    file = folder / f"{config.train.init_kind}.safetensors"
    if config.train.init_kind == "image":
        model = {**config.model.to_dict(), "name": "dcae", "temporal_down": (), "remat": False}
        fields = {"encoder_widths", "decoder_widths", "encoder_depths", "decoder_depths", "name"}
        fields |= {"block_types", "multiscales", "head_dim", "latent_channels", "temporal_down"}
        shapes = abstract_params(build({key: model[key] for key in fields}))
        save_params(file, _draw(shapes), family="dcae")
    elif config.train.init_kind == "reducio_image":
        save_params(file, image_vae(abstract_params(model_of(config))), family="sd_vae")
    else:
        fields = {"latent_channels": 4, "patch": (1, 2, 2), "image_dim": 0, "content_channels": 0}
        model = build_generator(config.generator).clone(**fields)
        save_params(file, parameters(model, *inputs(model)), family="pixart")
    return file


def _draw(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: (rng.normal(size=x.shape) / 10).astype(np.float32), shapes)
