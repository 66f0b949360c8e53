"""Frame rules, the latent's identity, shape checks and registries."""

import dataclasses

import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.registry import Registry
from vidlatent.spec import FrameRule, LatentSpec, check_parts, check_shape

FSAE = LatentSpec("fsae", 128, 4, 64, 64, FrameRule(1, 4))


def test_parts_that_do_not_divide_name_the_nearest_that_do():
    for parts in (1, 2, 4, 8):
        check_parts("heads", parts, "width", 64, step=2, least=6)
    for (parts, width, step, least), said in (
        ((3, 100, 1, 1), "heads 3 does not divide width 100: use heads 2 or 4, or width 99 or 102"),
        ((3, 100, 2, 6), "of 2 channels, at least 6: use heads 2 or 5, or width 96 or 102"),
        ((16, 64, 2, 6), "use heads 8, or width 96"),
        ((0, 64, 1, 1), "heads 0 does not divide width 64: use heads 1"),
        ((7, 5, 1, 1), "use heads 5, or width 7"),
    ):
        with pytest.raises(VidlatentError, match=rf"{said}\.$"):
            check_parts("heads", parts, "width", width, step=step, least=least)


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


def test_latents_of_chunks_follow_each_other():
    spec = dataclasses.replace(FSAE, h=8, w=8).in_chunks((17, 4), "key")
    assert [t for t in range(60) if spec.lengths.legal(t)] == [1, 17, 30, 43, 56]
    counts = [spec.latent_shape((frames, 16, 24))[0] for frames in (1, 17, 56, 69)]
    assert counts == [1, 5, 20, 25] and spec.latent_shape((56, 16, 24)) == (20, 2, 3, 128)
    assert [spec.lengths.ceil(t) for t in (0, 1, 2, 17, 18, 60)] == [1, 1, 17, 17, 30, 69]
    assert spec.lengths.nearest(9) == (1, 17) and str(spec.lengths) == "1 or 17+13k"
    with pytest.raises(VidlatentError, match="68 frames do not fit the rule 1 or 17.13k: use 56"):
        spec.check_video(68, 16, 16)
    assert LatentSpec.from_json(spec.to_json()) == spec and spec.whole.in_chunks((), "key").t == 4
    # What was stored before there were chunks keeps its name.
    assert "chunks" not in FSAE.to_json() and spec.whole.hash != spec.hash
    fixed = LatentSpec("reducio", 16, 4, 32, 32, FrameRule(16, 16)).in_chunks((16, 0), "key")
    assert not fixed.lengths.legal(1) and fixed.latent_shape((32, 32, 32))[0] == 8


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        ((16, 4), r"key=\(16, 4\): .* no clips of fsae, which takes 1.4k: use 13 or 17"),
        ((1, 0), "use 5"),
        ((17, 9), "cannot share 9: use 0 to 8"),
        ((17,), "give .frames, overlap_frames."),
    ],
)
def test_impossible_chunks_are_named(chunks, says):
    with pytest.raises(VidlatentError, match=says):
        FSAE.in_chunks(chunks, "key")


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
            ("x", 1, 8, 8, 8, FrameRule(1, 8), 2.0, 1.0, "bfloat16", (17, 4), ((0.0,), (1.0,))),
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
