"""The generators' demo and the layer-memory comparison: what is asked, measured and kept equal."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import generator_demo, layer_memory
from experiments.generator_demo import TOKENIZERS, Demo, chance_shares, measure_label_accuracy
from vidlatent import config as configs
from vidlatent.data.renderers.shapes import LABELS, make_shape_scene, render_shape
from vidlatent.latents.space import generator_of
from vidlatent.models.load import model_of


def clips(count=24):
    scenes = [make_shape_scene(0, index, 9) for index in range(count)]
    return [(scene.label, render_shape(scene, range(9), 32, 32)) for scene in scenes]


def test_obedience_counts_what_is_read():
    real = clips()
    assert measure_label_accuracy(real)["all"] == {"share": 1.0, "standard_error": 0.0}
    mirrored = measure_label_accuracy([(label, video[:, :, ::-1]) for label, video in real])
    assert mirrored["colour"]["share"] == mirrored["shape"]["share"] == 1.0
    sideways = np.mean([label.endswith(("left", "right")) for label, _ in real])
    assert mirrored["direction"]["share"] == pytest.approx(1 - sideways)
    dark = measure_label_accuracy([(label, np.zeros_like(video)) for label, video in real])
    assert dark["all"]["share"] == 0 and dark["rows"][0]["read"]["colour"] == ""
    assert chance_shares()["all"] == pytest.approx(1 / len(LABELS))


def test_shapes_are_told_apart_through_a_blur_of_a_radius_s_third_and_noise():
    rng = np.random.default_rng(0)
    blurred = []
    for label, video in clips(48):
        video = np.float32(video)
        for axis in (1, 2) * 6:  # [1, 2, 1] / 4, six times over rows and columns
            video = (np.roll(video, 1, axis) + np.roll(video, -1, axis)) / 4 + video / 2
        rough = video + rng.normal(0, 10, video.shape)
        blurred.append((label, np.uint8(np.clip(rough, 0, 255))))
    assert measure_label_accuracy(blurred)["all"]["share"] == 1


@pytest.mark.parametrize("system", sorted(TOKENIZERS))
def test_demo_s_tokenizer_makes_the_generator_s_latents(system, tmp_path):
    demo = Demo(system, tmp_path, 3, 4, 96, 1, {"optim.lr": "1e-4"})
    config, tokenizer = demo.generator_config(), demo.tokenizer_config()
    spec, model = model_of(tokenizer).latent_spec, generator_of(config)
    assert spec.channels == model.latent_channels and config.optim.lr == 1e-4
    shape = spec.latent_shape(tuple(config.data.buckets[-1][:3]))
    assert all(size % part == 0 for size, part in zip(shape[:3], model.patch, strict=True))
    assert not tokenizer.data.flip and config.generator.label_classes == len(LABELS)
    if "content" in model.reads:
        assert spec.h // model.content_factor * model.content_factor == spec.h


def test_arms_of_the_comparison_differ_in_the_memory_alone():
    about = {"generator.memory", "optim.lr_factors", "optim.no_decay", "preset"}
    for size in ("cpu", "gpu", "smoke"):
        design = layer_memory.build(size, Path("data"))
        plain, memory = design.arms
        assert plain.settings == memory.settings and plain.steps == memory.steps
        texts = [configs.to_json(configs.load(arm.config, arm.overrides)) for arm in design.arms]
        changed = {line.split(":")[0] for line in configs.differences(*texts)}
        assert changed == about
    found = layer_memory.measure(None, None, 0, {"scores": {"loss": 0.5}, "by_level": []})
    assert found["minus_loss"] == -0.5 and found["log_loss"] == pytest.approx(np.log(0.5))


@pytest.mark.slow
def test_the_demo_runs_from_nothing_to_its_report(tmp_path, capsys):
    words = f"--workdir={tmp_path} --steps=2 --tokenizer_steps=1 --clips=192 --samples=1"
    small = ("--config.generator.depth=2", "--config.generator.width=32")
    words = [*words.split(), *small, "--config.sampler.steps=2", "--config.sample.grid=0"]
    assert generator_demo.main(words) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["follows"]["generated"]["n"] == 48 and result["nfe"] == 4
    assert set(result["seconds"]) == {"tokenizer", "latents", "generator", "samples"}
    for file in ("report.html", "contact_sheet.png", "table.md"):
        assert (tmp_path / file).stat().st_size > 200
    assert "through the tokenizer" in capsys.readouterr().out
    assert generator_demo.main(words) == 0  # nothing is done twice but the samples
    assert set(json.loads((tmp_path / "result.json").read_text())["seconds"]) == {"samples"}
