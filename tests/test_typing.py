"""Frame rules, the latent's identity, shape checks and registries."""

import dataclasses

import numpy as np
import pytest

from vidlatent.registry import Registry
from vidlatent.typing import FrameRule, LatentSpec, VidlatentError, check_shape

FSAE = LatentSpec("fsae", 128, 4, 64, 64, FrameRule(1, 4))


def test_frame_rule():
    rule = FrameRule(1, 4)
    assert [t for t in range(12) if rule.legal(t)] == [1, 5, 9]
    assert rule.nearest(7) == (5, 9)
    assert rule.nearest(0) == (1, 1)
    assert [rule.ceil(t) for t in (1, 2, 5, 6)] == [1, 5, 5, 9]
    assert rule.groups(17) == 4
    with pytest.raises(VidlatentError, match="169 or 173"):
        rule.groups(171)


@pytest.mark.parametrize(
    ("video", "latent"),
    [
        ((1, 64, 64), (1, 1, 1, 128)),
        ((17, 256, 256), (5, 4, 4, 128)),
        ((61, 512, 512), (16, 8, 8, 128)),
        ((121, 768, 1280), (31, 12, 20, 128)),
    ],
)
def test_latent_shape(video, latent):
    assert FSAE.latent_shape(video) == latent


def test_fixed_window_rule():
    spec = LatentSpec("reducio", 16, 4, 32, 32, FrameRule(16, 16))
    assert spec.latent_shape((16, 256, 256)) == (4, 8, 8, 16)


def test_compression_of_fsae_is_384():
    assert FSAE.compression == 384.0


@pytest.mark.parametrize(
    ("video", "says"),
    [
        ((16, 256, 256), "13 or 17"),
        ((17, 720, 1280), "704 or 768"),
        ((17, 256, 32), "width 32 .* use 64"),
    ],
)
def test_illegal_sizes_name_the_nearest(video, says):
    with pytest.raises(VidlatentError, match=says):
        FSAE.check_video(*video)


def test_spec_hash_sees_every_field_and_survives_json():
    assert LatentSpec.from_json(FSAE.to_json()) == FSAE
    changed = [
        dataclasses.replace(FSAE, **{field.name: value})
        for field, value in zip(
            dataclasses.fields(FSAE),
            ("x", 1, 8, 8, 8, FrameRule(1, 8), 2.0, 1.0, "bfloat16"),
            strict=True,
        )
    ]
    assert len({FSAE.hash, *(spec.hash for spec in changed)}) == len(changed) + 1


def test_check_shape():
    x = np.zeros((2, 5, 8, 8, 3))
    assert check_shape(x, "B T H H C", C=3) == {"B": 2, "T": 5, "H": 8, "C": 3}
    with pytest.raises(VidlatentError, match="axis C"):
        check_shape(x, "B T H W C", C=4)
    with pytest.raises(VidlatentError, match="5 axes"):
        check_shape(x, "T H W C")


def test_registry_suggests():
    table = Registry("sampler")
    table.register("euler", "math:sqrt")
    assert table.get("euler")(4) == 2
    with pytest.raises(VidlatentError, match="unknown sampler 'eular': did you mean 'euler'?"):
        table.get("eular")
    with pytest.raises(ValueError, match="twice"):
        table.register("euler", 1)
