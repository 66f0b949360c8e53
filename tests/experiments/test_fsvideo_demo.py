"""FSVideo's demo: what its parts are trained on, what is measured, and all of it from nothing."""

import json

import numpy as np
import pytest

import vidlatent
from experiments import fsvideo_demo
from experiments.fsvideo_demo import FRAMES, HIGH, LOW, SIZES, Demo, enlarge
from experiments.fsvideo_page import Clip, measure, show
from vidlatent.data.renderers.shapes import make_shape_scene, render_shape
from vidlatent.latents.pairs import halve_pixels
from vidlatent.models.load import model_of


def make_clip(index):
    scene = make_shape_scene(1, index, FRAMES)
    real = render_shape(scene, range(FRAMES), HIGH, HIGH)
    small = np.asarray(halve_pixels(real[None]))[0]
    return Clip(scene.label, real, small, small, enlarge(small), real, real)


def test_measures_tell_sharp_from_enlarged_and_moving_from_still():
    """The best base possible is blurred by enlarging it; a still frame shows no direction."""
    found = measure([make_clip(index) for index in range(8)])
    assert found["base"]["psnr"] == found["cascade"]["psnr"] == [100.0] * 8
    assert found["base"]["sharpness"] == found["cascade"]["sharpness"] == [1.0] * 8
    assert found["base"]["size"] == "9x32x32" and found["cascade"]["size"] == "9x64x64"
    assert "psnr" not in found["real clip"] and found["real clip"]["sharpness"] == [1.0] * 8
    enlarged = found["base + bicubic"]
    assert max(enlarged["sharpness"]) < 0.9 and 20 < min(enlarged["psnr"]) < 50
    assert enlarged["all"]["share"] == 1
    still = found["given frame, repeated"]
    assert still["colour"]["share"] == 1 and still["direction"]["share"] == 0
    assert max(still["psnr"]) < min(enlarged["psnr"])


def test_the_page_shows_students_beside_the_refiner(tmp_path):
    clips = [make_clip(index) for index in range(4)]
    few = {
        "refiner: 4 evaluations": [clip.real for clip in clips[:3]],
        "refiner, sida: 4 evaluations": [clip.bicubic for clip in clips[:3]],
    }
    facts = {"steps": {"sida": 7}, "seconds": {"sida": {"wall": 1.5, "processor": 2.5}}}
    show(tmp_path, clips, facts, Demo(tmp_path, SIZES["tiny"]).part_config("refiner"), few)
    stored = json.loads((tmp_path / "result.json").read_text())["students"]
    assert list(stored) == list(few)
    assert [min(kind["psnr"]) == 100 for kind in stored.values()] == [True, False]
    page = (tmp_path / "report.html").read_text()
    assert all(text in page for text in (*few, "at the same number of evaluations", "in few steps"))


@pytest.mark.parametrize("size", sorted(SIZES))
def test_parts_fit_together(size, tmp_path):
    """One space for all: the tokenizer's latents of both sizes, the refiner's twice the base's."""
    demo = Demo(tmp_path, SIZES[size])
    tokenizer, base = demo.tokenizer_config(), demo.part_config("base")
    upsampler, refiner = demo.part_config("upsampler"), demo.part_config("refiner")
    spec = model_of(tokenizer).latent_spec
    assert (spec.t, spec.h, spec.w) == (4, 4, 4)
    assert [bucket[1] for bucket in tokenizer.data.buckets] == [LOW, HIGH]
    assert base.data.buckets[-1][:3] == (FRAMES, LOW, LOW)
    assert refiner.data.buckets[-1][:3] == upsampler.data.buckets[-1][:3] == (FRAMES, HIGH, HIGH)
    assert {c.latents.normalisation for c in (base, upsampler, refiner)} == {"statistics"}
    assert refiner.refiner.base == refiner.train.init_from == str(tmp_path / "base")
    assert dict(refiner.generator) == dict(base.generator)
    assert (base.data.path, refiner.data.path) == (str(tmp_path / "small"), str(tmp_path / "pairs"))
    guidance, halved, sida = (demo.part_config(name) for name in ("guidance", "halved", "sida"))
    assert {c.sampler.steps for c in (guidance, halved, sida)} == {halved.distill.stages[-1]}
    assert guidance.distill.teacher == str(tmp_path / "refiner")
    assert halved.distill.teacher == sida.distill.teacher == str(tmp_path / "guidance")
    # The generator and the adversary begin within the run.
    options, seen = sida.distill.score, sida.data.buckets[-1][3] * (sida.train.steps // 2)
    assert max(options.generator_after, options.adversarial_after) <= seen


def test_lengths_are_read_or_refused(capsys):
    steps = SIZES["demo"].steps
    assert fsvideo_demo._read_steps(steps, ["base=7"]) == {**steps, "base": 7}
    for word in ("base", "decoder=3", "base=0"):
        assert fsvideo_demo.main(["--steps", word]) == 2
        assert f"--steps '{word}' is no PART=N: name one of tokenizer" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_the_demo_runs_from_nothing_to_its_page(tmp_path, capsys):
    words = ["--size=tiny", f"--workdir={tmp_path}"]
    assert fsvideo_demo.main(words) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["nfe"] == {"base": 4, "refiner": 2}
    cascade = result["measures"]["cascade"]
    assert cascade["size"] == "9x64x64" and len(cascade["psnr"]) == 4
    few = result["students"]
    assert list(few) == [
        f"refiner{name}: 4 evaluations" for name in ("", ", guidance", ", halved", ", sida")
    ]
    assert all(len(kind["psnr"]) == 4 for kind in few.values())
    trained = {"tokenizer", "pairs", "small", "base", "upsampler", "refiner"}
    trained |= {"guidance", "halved", "sida"}
    first = json.loads((tmp_path / "seconds.json").read_text())
    assert set(first) == {*trained, "cascade", "students"}
    assert result["seconds"] == first  # the page shows what was measured in this run
    page = (tmp_path / "report.html").read_text()
    assert all(str(part["wall"]) in page for part in first.values()) and "100.00" not in page
    assert page.count("<video") == 4 and "base + bicubic" in page
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 4
    capsys.readouterr()
    assert fsvideo_demo.main(words) == 0  # nothing but the videos is made again
    again = json.loads((tmp_path / "seconds.json").read_text())
    assert all(again[name] == first[name] for name in trained)
    assert json.loads((tmp_path / "result.json").read_text())["seconds"] == again
    remade = json.loads((tmp_path / "result.json").read_text())
    assert all(remade[name] == result[name] for name in ("measures", "students"))
    assert vidlatent.load_generator(tmp_path).nfe == result["nfe"]
