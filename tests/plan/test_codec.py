"""Plans of the codec: pieces, windows, tiles, and what is tried when frames are too large."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from vidlatent.config import load
from vidlatent.models.load import model_of
from vidlatent.parallel.mesh import make_mesh
from vidlatent.plan.codec import build_decode
from vidlatent.plan.hardware import HARDWARE, parse_topology
from vidlatent.plan.run import make_plan
from vidlatent.plan.search import propose_changes
from vidlatent.plan.topology import get_devices

TINY = str(Path(__file__).parent.parent / "tiny.py")
WINDOWS = {"model.decoder_time": "centred", "codec.window_latents": "2"}


def planned(what, bucket, **keys):
    keys = {key.replace("__", "."): value for key, value in keys.items()}
    keys |= {"plan.what": what, "plan.bucket": str(bucket)}
    where = parse_topology("cpu:1")
    return make_plan(load(TINY, keys), where, get_devices(where))


@pytest.mark.parametrize("what", ["encode", "decode"])
def test_a_stream_is_planned_by_the_piece(what):
    (row,) = planned(what, (13, 16, 16, 1))["attempts"]
    assert row["about"] == "a later piece of a clip, 8x16x16" and row["frames"] == 8
    parts = row["memory"]["parts"]
    assert parts["caches"] > 0 and row["memory"]["arguments"] >= sum(parts.values())


def one_device(config):
    return make_mesh(dict.fromkeys(config.mesh, 1), jax.devices()[:1])


def values(program, seed=0):
    rng = np.random.default_rng(seed)
    rest = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), program.arguments[1:]
    )
    return jax.jit(program.initial[0])(), *rest


def test_a_window_is_decoded_with_what_lies_around_it():
    config = load(TINY, WINDOWS)
    program = build_decode(config, one_device(config), (13, 16, 16, 1))
    assert program.frames == 13 and program.carries is None
    assert program.about == "a window of 13 frames and those around it, 4 latents of 16x16"
    params, latent, condition = values(program)
    video = program.function(params, latent, condition)
    model = model_of(config)
    given = {"condition": condition} if condition is not None else {}
    whole = model.apply({"params": params}, latent, method="decode", **given)
    whole = whole[0] if isinstance(whole, tuple) else whole
    np.testing.assert_allclose(video, whole, atol=1e-5)


def test_of_tiles_the_outer_stages_of_one_are_planned():
    keys = {"codec.space": "tiles", "codec.tile_pixels": "16"}
    config = load(TINY, WINDOWS | keys)
    program = build_decode(config, one_device(config), (13, 64, 64, 1))
    assert program.about.startswith("outer stages of one of 16 tiles, ")
    assert program.frames == 13 / 16
    video = jax.eval_shape(program.function, *program.arguments)
    side = video.shape[2]
    assert 16 < side < 64 and video.shape == (1, 13, side, side, 3)


def test_frames_that_do_not_fit_are_cut_up(monkeypatch):
    whole = planned("decode", (5, 256, 256, 1))["attempts"][0]["memory"]
    small = dataclasses.replace(HARDWARE["cpu"], memory=0.7 * whole["total"])
    monkeypatch.setitem(HARDWARE, "cpu", small)
    first, *_, last = planned("decode", (5, 256, 256, 1))["attempts"]
    assert not first["fits"] and last["fits"]
    assert last["overrides"]["codec.space"] == "tiles"
    assert last["overrides"]["codec.tile_pixels"] < 256


def test_only_what_is_not_named_is_tried():
    one = dict.fromkeys(("data", "fsdp", "context", "tensor"), 1)
    size = (5, 512, 512, 1)
    sides = [keys["codec.tile_pixels"] for keys in propose_changes(load(TINY), "decode", one, size)]
    assert sides == [384, 256, 192, 128]
    named = load(TINY, {"codec.space": "whole"})
    assert list(propose_changes(named, "decode", one, size)) == []
    reducio = load("configs/reducio_vae.py")
    # Cut by a rule already: cutting is no choice that memory has.
    assert list(propose_changes(reducio, "encode", one, (16, 512, 512, 1))) == []
    program = build_decode(reducio, one_device(reducio), (16, 512, 512, 1))
    assert program.about == "one of 4 tiles of a clip, 16x320x320" and program.frames == 4
