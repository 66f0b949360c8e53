"""Published numbers in the presets, and a workdir of its own for every variant."""

import functools
import inspect

import pytest

from tests.helpers.recipes import DEMOS, PAPER
from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.losses.reconstruction import outlier
from vidlatent.losses.vf import vf_term

OFF = {"discriminator.model": {}}
# Config keys, grouped by where they are published. What a paper does not state is not listed.
FSAE_LOSS = {"loss.l1": 1.0, "loss.lpips_vgg": 0.1}
FSAE_DISCRIMINATOR = {
    "discriminator.model.name": "multiscale3d",
    "discriminator.loss": "non_saturating",
    "discriminator.weight": 0.1,
}
MAGVIT_DISCRIMINATOR = {
    "discriminator.r1_weight": 10.0,
    "discriminator.optim.b1": 0.0,
    "discriminator.optim.b2": 0.99,
}
REDUCIO_LOSS = {
    "loss.l1": 1.0,
    "loss.lpips_vgg": 0.1,
    "loss.kl": 1e-6,
    "loss.outlier": 1.0,
    "discriminator.loss": "hinge",
    "discriminator.model.name": "patch3d",
    "discriminator.weight": 0.05,
    "discriminator.scale": 0.5,
    "discriminator.start_step": 5000,
    "discriminator.adaptive_layer": "decoder/conv_out/kernel",
    "discriminator.adaptive_terms": ("l1", "lpips_vgg"),
}
REDUCIO_RATES = {
    "optim.schedule": "linear",
    "optim.final_lr_share": 0.01,
    "optim.b1": 0.5,
    "optim.b2": 0.9,
    "optim.eps": 1e-8,
    "optim.weight_decay": 0.0,
    "optim.clip_norm": 0.0,
    "optim.ema_decay": 0.0,
    "discriminator.optim.lr": 0.1 * 4e-5,
    "discriminator.optim.ramp": ((4999, 0.1), (5999, 1.0)),
    "discriminator.optim.b1": 0.5,
    "discriminator.optim.b2": 0.9,
    "discriminator.optim.clip_norm": 0.0,
    "data.fps": 16.0,
}
REDUCIO_TABLE = {"optim.lr": 4e-5, "train.steps": 1_000_000}
IVVAE_LOSS = {"loss.l1": 1.0, "loss.lpips_vgg": 1.0}
PROMAG_LOSS = {"loss.l1": 1.0, "loss.lpips_vgg": 1.0, "loss.kl": 1e-12}
PROMAG_ADAM = {
    "optim.lr": 1e-4,
    "optim.b1": 0.9,
    "optim.b2": 0.99,
    "optim.weight_decay": 1e-4,
}
PROMAG_DISCRIMINATOR = {
    "discriminator.loss": "hinge",
    "discriminator.weight": 0.1,
    "discriminator.r1_weight": 0.0,
    **{f"discriminator.{key}": value for key, value in PROMAG_ADAM.items()},
}


def mean_kl(channels):
    """Equation 5 sums over images of 256x256: z * 32^2 latents against 3 * 256^2 values."""
    return {"weight": 3e-6 * channels * 32**2 / (3 * 256**2), "reduction": "mean"}


PINNED = (
    ("FSVideo 2.2.1", "fsae:paper", {**FSAE_LOSS, **OFF, "train.steps": 200_000}),
    (
        "FSVideo 2.2.1",
        "fsae:paper,stage=2",
        FSAE_LOSS | FSAE_DISCRIMINATOR | {"train.steps": 200_000},
    ),
    (
        "FSVideo 2.2.1",
        "fsae:paper,stage=3",
        FSAE_LOSS | FSAE_DISCRIMINATOR | {"train.steps": 200_000},
    ),
    ("FSVideo 2.2.1", "fsae:paper", {"model.latent_channels": 128, "model.temporal_down": (0, 1)}),
    (
        "MAGVIT's discriminator, of which FSVideo 2.2.1 has the weights",
        "fsae:paper,stage=2",
        MAGVIT_DISCRIMINATOR,
    ),
    (
        "MAGVIT's discriminator, of which FSVideo 2.2.1 has the weights",
        "fsae:paper,stage=3",
        MAGVIT_DISCRIMINATOR,
    ),
    ("FSVideo 3.1", "fsae:paper", {"optim.b1": 0.9, "optim.b2": 0.95}),
    ("FSVideo 2.2.2, equation 4", "fsae:paper,stage=vf", {"loss.vf.weight": 0.5}),
    (
        "FSVideo 2.2.2",
        "fsae:paper,stage=vf",
        {"loss.vf.network": "dinov2_vitl14", **FSAE_LOSS, **FSAE_DISCRIMINATOR},
    ),
    (
        "FSVideo 2.2.3",
        "fsae:standard",
        {
            "model.noise_weight": 0.05,
            "model.cross_stages": (2, 3, 4, 5, 6),
            "model.decoder_time": "centred",
            "optim.freeze": "encoder/",
        },
    ),
    ("FSVideo 2.2.3", "fsae:lite", {"model.decoder_time": "group", "optim.freeze": "encoder/"}),
    ("Reducio's released code", "reducio_vae:paper", REDUCIO_LOSS | REDUCIO_RATES),
    ("Reducio, supplement, table 1", "reducio_vae:paper", REDUCIO_TABLE),
    ("Reducio, supplement, table 1", "reducio_vae:paper", {"data.buckets": ((16, 256, 256, 32),)}),
    (
        "Reducio, supplement, table 1",
        "reducio_vae:paper,time=2",
        REDUCIO_TABLE | {"data.buckets": ((16, 256, 256, 24),)},
    ),
    *(
        ("IV-VAE, supplement, equation 5", f"ivvae:{z},stage={stage}", {**IVVAE_LOSS, **OFF})
        for z in ("z4", "z16")
        for stage in (1, 2, 3)
    ),
    (
        "IV-VAE, supplement, equation 5",
        "ivvae:paper,stage=4",
        {**IVVAE_LOSS, "discriminator.weight": 0.8, "discriminator.model.name": "patch3d"},
    ),
    *(
        ("IV-VAE, supplement, equation 5", f"ivvae:z{z},stage=3", {"loss.kl": mean_kl(z)})
        for z in (4, 8, 16)
    ),
    ("IV-VAE, supplement, equation 5", "ivvae:z16,stage=1", {"loss.kl": mean_kl(8)}),
    *(
        (
            "IV-VAE, as secondary sources have it",
            f"ivvae:paper,stage={stage}",
            {"train.steps": steps},
        )
        for stage, steps in ((1, 200_000), (2, 500_000), (3, 200_000), (4, 100_000))
    ),
    ("ProMAG, appendix B", "promag:paper", PROMAG_LOSS | PROMAG_ADAM | PROMAG_DISCRIMINATOR),
    (
        "ProMAG, appendix B",
        "promag:paper,model=magvit2",
        PROMAG_LOSS | PROMAG_ADAM | PROMAG_DISCRIMINATOR,
    ),
    *(
        (
            "ProMAG, appendix B",
            f"promag:paper,stage={stage}",
            {"train.steps": steps, "data.fps": fps, "data.buckets": ((17, 256, 256, 32),)},
        )
        for stage, steps, fps in (("I", 300_000, 6), ("II", 100_000, 12), ("III", 100_000, 24))
    ),
    *(
        ("ProMAG, appendix B", f"promag:paper,stage={stage}", PROMAG_LOSS | PROMAG_ADAM | OFF)
        for stage in ("II", "III")
    ),
    (
        "ProMAG, table 1, w/ GAN",
        "promag:paper,stage=II,gan=true",
        PROMAG_LOSS | PROMAG_DISCRIMINATOR,
    ),
)


@functools.cache
def loaded(spec):
    return load(spec).to_dict()


@pytest.mark.parametrize(("source", "spec", "numbers"), PINNED)
def test_published_numbers(source, spec, numbers):
    for key, value in numbers.items():
        found = functools.reduce(dict.__getitem__, key.split("."), loaded(spec))
        assert found == (pytest.approx(value) if type(value) is float else value), (source, key)


def test_published_numbers_in_the_terms_themselves():
    margins = inspect.signature(vf_term).parameters
    assert margins["cosine_margin"].default == 0.5  # FSVideo 2.2.2, equation 4
    assert margins["distance_margin"].default == 0.25
    assert inspect.signature(outlier).parameters["radius"].default == 3.0  # Reducio's code


def test_sizes_and_lengths_of_fsae():
    """Frames and average sizes of FSVideo 2.2.1; 171 frames are no 1 + 4 n, 169 are."""
    for stage, frames, side in (("1", 17, 256), ("2", 61, 512), ("3", 121, 1024)):
        buckets = loaded(f"fsae:paper,stage={stage}")["data"]["buckets"]
        largest = max(h * w for _, h, w, _ in buckets)
        assert 1.0 <= largest / side**2 < 1.2
        assert any((t, h, w) == (frames, side, side) for t, h, w, _ in buckets)
        assert any(t == 1 for t, *_ in buckets)
    assert {(169, 256, 256), (9, 704, 704)} <= {bucket[:3] for bucket in buckets}
    assert len({round(h / w, 2) for t, h, w, _ in buckets if t == 121}) == 3


VARIANTS = (
    "fsae:paper,width=1024",
    "fsae:lite,width=1024",
    "fsae:demo,form=standard",
    "fsae:demo,form=lite",
    *(
        f"reducio_vae:{preset},content={c}"
        for preset in ("demo", "paper")
        for c in ("first", "none")
    ),
    "reducio_vae:demo,content=none,discriminator=true",
    *(f"ivvae:demo,variant={v}" for v in ("causal", "gcconv", "ktc")),
    "ivvae:z4",
    "ivvae:z16,width=96",
    "promag:paper,z=8",
    "promag:paper,join=latent",
    "promag:demo,k=16",
    "promag:demo,mode=plain",
    *(f"promag:{size}{grow}" for size in ("line", "square") for grow in ("", ",grow=1", ",grow=2")),
    "dcae:paper",
    "dcae:paper,model=f64c128-in-1.0",
)


def test_no_two_variants_share_a_workdir():
    known = {}
    for spec in (*PAPER, *DEMOS, *VARIANTS):
        config = dict(loaded(spec))
        place = f"{config['name']}-{config.pop('preset')}"
        assert known.setdefault(place, config) == config, (spec, place)
        assert "/" not in place and " " not in place
    for spec, place in (
        ("promag:paper,stage=II", "paper-stage_II"),
        ("promag:demo,grow=1,gan=true", "demo-stage_II-gan"),
        ("reducio_vae:demo,content=first,discriminator=true", "demo-content_first-discriminator"),
        ("fsae:demo,stage=2", "demo-stage_2"),
        ("ivvae:paper,variant=causal,stage=3", "paper-stage_3-variant_causal"),
    ):
        assert loaded(spec)["preset"] == place


def test_every_demo_of_a_discriminator_has_one():
    for spec in DEMOS:
        asked = any(
            word in spec for word in ("gan=true", "discriminator=true", "stage=2", "stage=4")
        )
        discriminator = loaded(spec)["discriminator"]
        assert bool(discriminator["model"]) == asked, spec
        assert not asked or discriminator["start_step"] < loaded(spec)["train"]["steps"]
    for size in ("line", "square"):
        with pytest.raises(VidlatentError, match=f"gan=true: {size} has no discriminator"):
            load(f"promag:{size},gan=true")
    with pytest.raises(VidlatentError, match="variant=image: image VAEs are stage=1"):
        load("ivvae:paper,variant=image")
