"""Arguments of the shipped configs: whatever is accepted changes the config."""

import pytest

from vidlatent import config as configs
from vidlatent.errors import VidlatentError

# Of each config the presets, and values of every argument that are not the default.
ARGUMENTS = {
    "fsae": (
        ("demo", "paper", "standard", "lite"),
        {
            "width": ("1024",),
            "form": ("standard", "lite"),
            "stage": ("2", "3", "vf", "standard", "lite"),
            "finetune": ("true",),
        },
    ),
    "dcae": (("demo", "paper"), {"model": ("f32c32-in-1.0", "f64c128-mix-1.0")}),
    "ivvae": (
        ("demo", "paper", "z4", "z8", "z16"),
        {
            "variant": ("ktc", "ktc_causal", "volumes", "volumes_plain", "causal", "gcconv"),
            "width": ("96",),
            "stage": ("1", "3", "4"),
        },
    ),
    "promag": (
        ("demo", "paper", "line", "square"),
        {
            "model": ("magvit2",),
            "grow": ("1", "2"),
            "mode": ("plain",),
            "k": ("8", "16"),
            "z": ("8",),
            "image": ("true",),
            "join": ("feature", "latent", "none"),
            "stage": ("0", "II", "III"),
            "gan": ("true",),
        },
    ),
    "reducio_vae": (
        ("demo", "paper"),
        {
            "time": ("2", "4"),
            "space": ("16", "32"),
            "content": ("first", "random", "none"),
            "discriminator": ("true",),
        },
    ),
    "fsvideo_dit": (
        ("demo", "paper"),
        {
            "stage": ("image", "target", "sft"),
            "first": ("true",),
            "text": ("true",),
            "memory": ("false",),
        },
    ),
    "latte": (("demo", "paper"), {"data": ("kinetics400", "sky", "faces"), "z": ("16",)}),
    "promag_dit": (
        ("demo", "paper", "paper,stage=2", "paper,stage=3"),
        {
            "stage": ("2", "3"),
            "k": ("8", "16"),
            "z": ("8",),
            "loss": ("flow",),
            "overlap": ("0",),
            "places": ("frame",),
        },
    ),
    "reducio_dit": (("demo", "paper"), {"stage": ("2", "3"), "attention": ("2d+1d",)}),
}
CASES = [
    (f"{name}:{preset}", f"{key}={value}")
    for name, (presets, arguments) in ARGUMENTS.items()
    for preset in presets
    for key, values in arguments.items()
    for value in values
    if f"{key}=" not in preset
]


def essence(spec):
    config = configs.load(spec).to_dict()
    return {key: value for key, value in config.items() if key not in ("name", "preset")}


def test_an_accepted_argument_changes_the_config():
    accepted = set()
    for base, argument in CASES:
        try:
            found = essence(f"{base},{argument}")
        except VidlatentError as error:
            assert "config argument" in str(error) and "\n" not in str(error), (base, argument)
            continue
        label = base.startswith("promag_dit:paper") and argument.startswith("k=")
        assert label or found != essence(base), (base, argument)
        accepted.add((base.partition(":")[0], argument.partition("=")[0]))
    # Each argument does something somewhere.
    wanted = {(name, key) for name, (_, arguments) in ARGUMENTS.items() for key in arguments}
    assert wanted - accepted == {("fsae", "finetune")}
    assert essence("fsae:demo,form=standard,finetune=true") != essence("fsae:demo,form=standard")


@pytest.mark.parametrize(
    "spec",
    [
        "fsvideo_dit:demo,stage=sft",
        "fsvideo_dit:paper,text=true",
        "fsae:demo,width=1024",
        "fsae:lite,form=standard",
        "fsae:demo,finetune=true",
        "dcae:demo,model=f64c128-in-1.0",
        "ivvae:demo,width=96",
        "latte:demo,z=16",
        "promag:demo,z=8",
        "promag:paper,gan=true",
        "promag_dit:demo,stage=3",
        "promag_dit:paper,overlap=0",
        "reducio_dit:demo,stage=2",
        "reducio_vae:paper,discriminator=true",
    ],
)
def test_an_argument_that_a_preset_ignores_is_refused(spec):
    with pytest.raises(VidlatentError, match="does nothing in"):
        configs.load(spec)


def test_a_default_may_be_spelt_out():
    for spec in ("fsvideo_dit:demo,stage=video,first=false", "promag:paper,stage=I", "fsae:demo"):
        assert configs.load(spec)


def test_configs_that_build_on_others_are_judged_by_their_own_arguments(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from vidlatent.config import load_base, parse_arg\n\n\n"
        "def get_config(arg=''):\n"
        "    arg = parse_arg(arg, ('demo',), steps=10, unread=1)\n"
        "    config = load_base('fsae:paper,width=1024')\n"
        "    config.train.steps = arg.steps\n"
        "    return config\n"
    )
    assert configs.load(f"{file}:demo,steps=20").train.steps == 20
    with pytest.raises(VidlatentError, match="config argument unread=2 does nothing"):
        configs.load(f"{file}:steps=20,unread=2")
