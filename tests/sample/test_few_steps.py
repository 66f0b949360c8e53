"""A distilled generator is sampled as it was distilled, whatever the config asks; no network."""

import dataclasses

import pytest

from tests.helpers.distillation import set_keys
from tests.helpers.generator_steps import config_of
from vidlatent.errors import VidlatentError
from vidlatent.files import write_json
from vidlatent.latents.distilled import FILE, BuiltInGuidance, Distilled, describe_grid
from vidlatent.sample.few_steps import settle_sampler

DIT = "fsvideo_dit"
FIXED = BuiltInGuidance((2.5,), (), "null", (("label",),))
TOLD = BuiltInGuidance((), (0.0, 6.0), "condition")
PLACE = {"workdir": "runs/teacher", "step": 1}


def asked(**keys):
    config = config_of(DIT, sampler__name="euler", sampler__steps=8)
    with config.unlocked():
        config.sampler.guidance.scales = ()
        set_keys(config, keys)
    return config


def known(guidance=None, **keys):
    return Distilled(guidance, ((0, describe_grid(asked(**keys), 8)),), PLACE)


@pytest.mark.parametrize(
    ("built_in", "keys", "message"),
    [
        (
            known(),
            {"sampler__guidance__scales": (4.0,)},
            r"scales=\(4.0,\), but this generator learned its steps without guidance",
        ),
        (known(), {"sampler__steps": 4}, "steps=4, but this generator was distilled to 8"),
        (known(sampler__name="ddim"), {}, "name='euler', but .* with 'ddim'"),
        (
            known(sampler__name="ddim"),
            {"sampler__name": "ddim", "sampler__eta": 1.0},
            "sampler.eta=1.0, but this generator was distilled to 8 steps with 0.0",
        ),
        (known(), {"sampler__shift": 7.0}, "sampler.shift=7.0, but"),
        (known(), {"diffusion__schedule__shift": 7.0}, "schedule.shift=7.0, but"),
        (known(FIXED), {"sampler__guidance__scales": (4.0,)}, "cannot be guided otherwise"),
        (known(FIXED), {"sampler__guidance__negative": "dull"}, "negative='dull' says how two"),
        (known(FIXED), {"sampler__guidance__interval": (0.1, 0.9)}, "evaluated once: set it to"),
        (known(TOLD), {"sampler__guidance__rescale": 0.7}, "evaluated once: set it to 0.0"),
        (known(TOLD), {}, "takes one scale from 1 to 7 as an input"),
        (known(TOLD), {"sampler__guidance__scales": (7.5,)}, "takes one scale from 1 to 7"),
        (known(TOLD), {"sampler__guidance__scales": (2.0, 3.0)}, "takes one scale from 1 to 7"),
    ],
)
def test_what_was_not_distilled_is_refused(built_in, keys, message):
    with pytest.raises(VidlatentError, match=message):
        settle_sampler(asked(**keys), built_in, 1)
    settle_sampler(asked(**keys, sampler__force=True), built_in, 1)


def test_what_was_distilled_is_sampled():
    assert settle_sampler(asked(), known(), 1).sampler.guidance.scales == ()
    # What is built in may be asked for, and is then no guidance on top.
    found = settle_sampler(asked(sampler__guidance__scales=(2.5,)), known(FIXED), 1)
    assert found.sampler.guidance.scales == ()
    found = settle_sampler(asked(sampler__guidance__scales=(7.0,)), known(TOLD), 1)
    assert found.sampler.guidance.scales == (7.0,)
    # Only ddim reads eta.
    settle_sampler(asked(sampler__eta=1.0), known(), 1)


def test_files_from_before_eta_are_read(tmp_path):
    built_in = known(FIXED)
    stored = dataclasses.asdict(built_in)
    del stored["grids"][0][1]["eta"]
    write_json(tmp_path / FILE, stored)
    assert Distilled.load(tmp_path) == built_in
