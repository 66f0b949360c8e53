"""The small proofs: what their arms share, what is measured and when something is concluded."""

import dataclasses
import inspect
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import alignment, content_frame, decoder_finetune, group_causal, proofs
from experiments.design import Arm, Difference, Experiment, Ratio, Run
from experiments.report import summarise, to_markdown, write_table_and_plot
from experiments.runner import Results, run_all
from vidlatent import config as configs
from vidlatent.data.split import VALIDATION, split_groups
from vidlatent.losses.vf import vf_term
from vidlatent.models.load import model_of
from vidlatent.models.tokenizers.base import Posterior
from vidlatent.spec import FrameRule

PROOFS = (content_frame, group_causal, alignment, decoder_finetune)
# Keys in which the arms of a proof may differ: what it is about.
OWN = {
    "content_frame": {"model.content", "model.latent_channels"},
    "group_causal": {"model.variant", "model.width"},
    "alignment": {"loss.vf.weight", "loss.vf.network"},
    "decoder_finetune": {
        "model.cross_stages",
        "model.noise_weight",
        "model.decoder_time",
        "model.decoder_widths",
        "optim.freeze",
        "train.init_kind",
    },
}
ANYWAY = {"preset", "recipe", "train.init_recipes", "train.steps"}


def config_of(arm):
    rate = {} if arm.leader else arm.settings[0]
    overrides = {**arm.overrides, "optim.lr": "1e-3", **rate, "train.steps": str(arm.steps)}
    return configs.load(arm.config, overrides)


@pytest.mark.parametrize("size", ["cpu", "gpu", "smoke"])
@pytest.mark.parametrize("proof", PROOFS)
def test_arms_differ_in_what_is_asked_alone(proof, size):
    design = proof.build(size)
    assert design.name == proof.__name__.rpartition(".")[2]
    assert design.seeds == (0, 1, 2) or size == "smoke"
    tuned = [arm for arm in design.arms if not arm.leader]
    assert all(arm.settings == tuned[0].settings for arm in tuned), "the same sweep for every arm"
    assert len(tuned[0].settings) >= 2 or size == "smoke"
    first = config_of(design.arms[0])
    for arm in design.arms:
        config = config_of(arm)
        with config.unlocked():
            config.optim.lr = first.optim.lr
        changed = configs.differences(configs.to_json(first), configs.to_json(config))
        keys = {line.partition(": ")[0] for line in changed}
        assert keys <= OWN[design.name] | ANYWAY, arm.name
        model = model_of(config)
        model.latent_spec.check_video(*config.data.buckets[0][:3])
        if arm.starts_from:
            assert config.train.init_recipes in ((),) or (
                config_of(design.arm(arm.starts_from)).recipe in config.train.init_recipes
            )
    tuned_columns = {difference.metric for difference in design.differences}
    assert tuned_columns <= set(design.columns)
    synthetic, data = first.data.synthetic, first.data
    names = {f"scene-{i:06d}": "" for i in range(synthetic.clips)}
    parts = split_groups(names, data.validation_share)
    held = sum(part == VALIDATION for part in parts.values())
    assert held >= data.validation_clips and len(parts) - held > data.validation_clips


@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_the_wide_latent_keeps_as_many_values(size):
    design = content_frame.build(size)
    kept = {}
    for arm in design.arms:
        config = config_of(arm)
        kept[arm.name] = content_frame._count_kept_values(config, model_of(config))
    assert sum(kept["none_wide"]) == sum(kept["middle"]) and kept["none_wide"][1] == 0
    assert kept["middle"] == kept["first"] == kept["random"]
    assert kept["none"] == (kept["middle"][0], 0)


def test_equal_further_steps():
    design = alignment.build("cpu")
    arms = {arm.name: arm for arm in design.arms}
    assert arms["aligned"].steps == arms["continued"].steps
    assert arms["aligned"].starts_from == arms["continued"].starts_from == "base"
    defaults = inspect.signature(vf_term).parameters
    assert config_of(arms["aligned"]).loss.vf.weight == 0.5
    assert defaults["cosine_margin"].default == 0.5 and defaults["distance_margin"].default == 0.25
    assert config_of(arms["aligned"]).networks.dinov2_tiny == "random"

    design = decoder_finetune.build("cpu")
    arms = {arm.name: arm for arm in design.arms}
    total = {name: arm.steps + arm.more_steps for name, arm in arms.items()}
    assert total["standard"] == total["continued"] == total["centred"]
    assert total["lite"] == total["continued_longer"] and arms["lite"].starts_from == "standard"
    assert all(config_of(a).optim.freeze == "encoder/" for n, a in arms.items() if n != "base")
    assert config_of(arms["centred"]).model.cross_stages == ()


class Copy:
    """A tokenizer that shows its content frame all the time; its latent is two plane numbers."""

    latent_spec = types.SimpleNamespace(rule=FrameRule(16, 16))
    condition_kind = "content"

    def apply(self, variables, x, *, method, condition=None):
        if method == "encode":
            return Posterior(x.mean(axis=(2, 3), keepdims=True)), None
        return jnp.repeat(condition[:, None], 16, axis=1), None


def test_the_random_content_frame_is_scored_everywhere():
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (5, 8, 16, 4, 4, 3)).astype(np.uint8)
    masks = np.ones((5, 8), np.float32)
    masks[-1, 4:] = 0
    batches = [{"video": v, "mask": m} for v, m in zip(video, masks, strict=True)]
    found, places = content_frame._score_frames(Copy(), {}, batches, "random")
    assert found.shape == (36, 16)
    assert places.tolist() == [i % 16 for i in range(36)]
    assert (found.argmax(axis=1) == places).all(), "the frame that is shown is the best one"
    found, places = content_frame._score_frames(Copy(), {}, batches, "middle")
    assert set(places) == {7} and (found.argmax(axis=1) == 7).all()


def test_the_dimension_of_a_plane(monkeypatch):
    # Clips are two numbers each: red and green of all frames.
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (300, 1, 1, 1, 3)) * np.array([1, 1, 0])
    video = np.broadcast_to(colours, (300, 9, 2, 2, 3)).astype(np.uint8)
    batches = [{"video": video, "mask": np.arange(300) < 290}]
    monkeypatch.setattr(alignment, "model_of", lambda config: Copy())
    monkeypatch.setattr(alignment, "abstract_params", lambda model: {})
    monkeypatch.setattr(alignment, "load_params", lambda *args, **kinds: {})
    monkeypatch.setattr(alignment, "load_held_out", lambda config, rule, seed: iter(batches))
    config = configs.load("configs/fsae.py")
    scores = {"scores": {"psnr": 20.0, "psnr_constant_colour": 15.0}}
    found = alignment.measure(config, "", 0, scores)
    assert found["points"] == 290 and len(found["dimension_by_scale"]) == 6
    for kind in ("", "_first_frames", "_pixels"):
        assert found[f"dimension{kind}"] == pytest.approx(2, abs=0.35)
        assert np.exp(found[f"log_dimension{kind}"]) == pytest.approx(found[f"dimension{kind}"])
    assert found[proofs.GATE_METRIC] == 5.0


def test_places_of_a_group():
    groups = {"n": [4] * 4, "ssim": [0.8, 0.9, 0.95, 0.85], "psnr": [20.0, 21.0, 22.0, 21.5]}
    groups |= {"ssim_max_margin": 0.15, "psnr_max_margin": 2.0}
    scores = {
        "scores": {"psnr": 21.0, "psnr_constant_colour": 12.0},
        "by_frame_position": {"ssim": [0.9] * 17, "psnr": [21.0] * 17},
        "by_group_position": groups,
    }
    found = group_causal.measure(None, None, 0, scores)
    assert found["ssim_place_1"] == 0.8 and found["ssim_max_margin"] == 0.15
    assert found[proofs.GATE_METRIC] == 9.0


def shown(tmp_path, first, second, gate=None, seeds=(0, 1, 2), ratios=()):
    """The report on two arms with these scores by seed."""
    arms = (Arm("a", "", 5), Arm("b", "", 5))
    design = Experiment(
        "test",
        "A test",
        arms,
        seeds=(0, 1, 2),
        columns={"psnr": "PSNR", "ssim": "SSIM"},
        differences=(Difference("a", "b", "psnr", 0.2), Difference("a", "b", "ssim")),
        ratios=ratios,
        gate=gate,
        gate_metric="over",
        decimals={"ssim": 4},
        tried_metrics=("ssim",),
    )
    results = Results(tmp_path / "results")
    for arm, values in zip(arms, (first, second), strict=True):
        for seed in seeds:
            metrics = {"psnr": values[seed], "ssim": values[seed] / 100, "over": 5.0}
            result = {"metrics": metrics, "seconds": 1.0, "clips_seen": 5, "machine": {}}
            results.write(Run(arm, {}, seed), {**result, "parameters": {"all": 9, "trained": 9}})
    summary = summarise(design, results)
    return summary, to_markdown(design, summary)


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        ((20.5, 20.6, 20.7), "higher"),
        ((22.0, 22.1, 22.3), "lower"),
        ((20.9, 20.9, 20.9), "tie"),
        ((19.0, 19.0, 21.1), "tie"),
    ],
)
def test_when_something_is_concluded(tmp_path, second, verdict):
    first = (21.0, 21.0, 21.0)
    summary, text = shown(tmp_path, first, second, gate=("a", 4.0))
    judged, bare = summary["differences"]
    assert judged["verdict"] == verdict and "verdict" not in bare
    assert f"| {verdict} |" in text and "0.2100 ± 0.0000" in text
    assert "over of a at least 4: 5.00, passed" in text
    _, failed = shown(tmp_path, first, second, gate=("a", 6.0))
    assert "gate failed" in failed and f"| {verdict} |" not in failed


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        ((10.5, 10.4, 10.3), "holds"),
        ((9.5, 9.4, 9.3), "fails"),
        ((10.5, 10.4, 9.9), "tie"),
        ((10.05, 10.05, 10.05), "tie"),
    ],
)
def test_when_a_ratio_is_below_its_limit(tmp_path, second, verdict):
    """All seeds, and the mean by more than the margin: 10 over each of these must be below 1."""
    ratios = (
        Ratio("one", "a psnr", "b psnr", 1.0, 0.01),
        Ratio("two", "a ssim", "a psnr"),
        Ratio("three", "a psnr", "absent psnr", 1.0),
    )
    summary, text = shown(tmp_path, (10.0,) * 3, second, ratios=ratios)
    judged, bare = summary["ratios"]
    assert judged["verdict"] == verdict and f"| {verdict} |" in text
    assert judged["values"] == [10.0 / value for value in second]
    assert "verdict" not in bare and bare["mean"] == pytest.approx(0.01)
    summary, text = shown(tmp_path / "one", (10.0,), (20.0,), seeds=(0,), ratios=ratios)
    assert "holds" not in text


def test_nothing_is_concluded_from_some_seeds(tmp_path):
    summary, text = shown(tmp_path, (21.0,), (20.0,), seeds=(0,))
    assert summary["differences"] == [] or (summary["differences"][0]["verdict"] == "too few seeds")
    assert "| higher |" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("proof", "keep"),
    [
        (content_frame, ("random",)),
        (group_causal, ("gcconv",)),
        (alignment, ("base", "aligned")),
        (decoder_finetune, ("base", "standard", "lite")),
    ],
)
def test_at_smoke_size(proof, keep, tmp_path, one_device):
    design = proof.build("smoke")
    design = dataclasses.replace(design, arms=tuple(a for a in design.arms if a.name in keep))
    assert run_all(design, tmp_path) == 0
    summary = write_table_and_plot(design, tmp_path)
    assert summary["missing"] == [] and (tmp_path / "plot.png").stat().st_size > 5000
    assert json.loads((tmp_path / "table.json").read_text()) == summary
    row = summary["arms"][-1]
    assert row["arm"] == keep[-1] and proofs.GATE_METRIC in row["metrics"]
    wanted = {
        "content_frame": {"psnr_by_distance", "psnr_shown_middle", "content_values"},
        "group_causal": {"ssim_by_place", "ssim_max_margin"},
        "alignment": {"dimension_by_scale", "log_dimension_first_frames"},
        "decoder_finetune": {"psnr_by_frame", "psnr_without_frame_0"},
    }[design.name]
    assert wanted <= set(row["metrics"])
    if len(keep) > 1:
        folder = tmp_path / "runs" / keep[-1]
        (config,) = (configs.read(path.parent) for path in folder.glob("*/*/config.json"))
        assert f"/runs/{keep[-2]}/" in config.train.init_from
