"""The checks that users run: they pass, and each of them fails once its formula is wrong."""

import json
import math
import subprocess
import sys

import jax.numpy as jnp
import pytest

from vidlatent.diffusion import distillation, guidance, samplers, sde
from vidlatent.kernels import conv3d
from vidlatent.selftest import devices
from vidlatent.selftest.check import CHECKS, Row, Skipped, register, run_check
from vidlatent.selftest.run import main


def verdicts(name):
    return {row.name.removeprefix(f"{name}/"): row.verdict for row in run_check(name)}


@pytest.mark.parametrize(
    "name",
    [
        "guidance",
        "halved steps",
        "order of convergence",
        pytest.param("score identity", marks=pytest.mark.slow),
        pytest.param("distribution matching", marks=pytest.mark.slow),
        pytest.param("one datum", marks=pytest.mark.slow),
        pytest.param("random steps", marks=pytest.mark.slow),
        pytest.param("kernels", marks=pytest.mark.slow),
        pytest.param("generator on all devices", marks=pytest.mark.slow),
        pytest.param("tokenizer on all devices", marks=pytest.mark.slow),
    ],
)
def test_what_is_right_passes(name):
    found = verdicts(name)
    assert found and set(found.values()) == {"pass"}, found


def test_every_check_is_tried_above():
    marks = test_what_is_right_passes.pytestmark[0].args[1]
    tried = [mark if isinstance(mark, str) else mark.values[0] for mark in marks]
    assert sorted(tried) == sorted(CHECKS)


# A wrong formula, the check that must see it, and rows that must fail.


def test_guidance_counted_twice_is_seen(monkeypatch):
    combine = guidance.combine
    monkeypatch.setattr(
        guidance, "combine", lambda f, scales, *more: combine(f, 1.0 + scales, *more)
    )
    found = verdicts("guidance")
    assert found == {"scale 1": "pass", "scale 3.5": "FAIL", "branches in turn": "pass"}
    monkeypatch.setattr(guidance, "_switch", lambda scales, every, plain: every)
    assert verdicts("guidance")["scale 1"] == "FAIL"


def test_a_wrong_target_of_two_steps_is_seen(monkeypatch):
    halve = distillation.halve_steps

    def wrong(teacher, z, sigmas):
        found = halve(teacher, z, sigmas)
        return found._replace(target=teacher(z, sigmas[0]))  # that of the first step alone

    monkeypatch.setattr(distillation, "halve_steps", wrong)
    assert verdicts("halved steps") == {"teacher's two steps": "pass", "student's one step": "FAIL"}


@pytest.mark.slow
def test_wrong_scores_are_seen(monkeypatch):
    """Errors that both networks share leave the optimum as it is, but not the way to it."""
    right = distillation.x0_from_velocity
    monkeypatch.setattr(distillation, "x0_from_velocity", lambda z, v, s: right(z, 0.9 * v, s))
    found = verdicts("score identity")
    for alpha in ("0.5", "1", "1.2"):
        assert found[f"alpha {alpha}: gradient"] == "FAIL", found
    monkeypatch.undo()
    loss = distillation.score_identity_loss

    def turned(teacher, fake, *given, **options):
        found = loss(teacher, fake, *given, **options)
        return found._replace(loss=-found.loss)

    monkeypatch.setattr(distillation, "score_identity_loss", turned)
    found = verdicts("score identity")
    assert "pass" not in found.values(), found
    match = distillation.distribution_matching_loss

    def swapped(teacher, fake, *given):
        return match(fake, teacher, *given)

    monkeypatch.setattr(distillation, "distribution_matching_loss", swapped)
    found = verdicts("distribution matching")
    assert "pass" not in found.values(), found


def test_wrong_weights_of_a_sampler_are_seen(monkeypatch):
    weights = samplers.data_weights

    def early(prediction, alphas, sigmas):
        of_x, of_f = weights(prediction, alphas, sigmas)
        return of_x, 0.98 * of_f

    monkeypatch.setattr(samplers, "data_weights", early)
    found = verdicts("order of convergence")
    assert found["ddim: limit"] == "FAIL" and found["euler: limit"] == "pass", found
    assert found["dpmpp_2m"] == "FAIL"


@pytest.mark.slow
def test_noise_without_its_drift_is_seen(monkeypatch):
    right = sde.make_random_steps

    def undamped(grid, *given):
        steps = right(grid, *given)
        return steps._replace(state=0 * steps.state + 1)

    monkeypatch.setattr(sde, "make_random_steps", undamped)
    found = verdicts("random steps")
    assert found["flow_sde 0.7: deviation"] == "FAIL" and found["ancestral: mean"] == "pass", found


@pytest.mark.slow
def test_a_wrong_kernel_is_seen(monkeypatch):
    right = conv3d._shifts

    def acausal(x, kernel, strides, padding):
        (before, after), *rest = padding
        return right(x, kernel, strides, ((after, before), *rest))

    monkeypatch.setattr(conv3d, "_shifts", acausal)
    found = verdicts("kernels")
    assert found["conv3d by channel: rows"] == "FAIL", found
    assert found["conv3d: taps"] == found["attention: splash"] == "pass"


@pytest.mark.slow
def test_a_step_that_differs_on_many_devices_is_seen(monkeypatch):
    run = devices._run_step

    def doubled(task, batch, mesh):
        loss, norm = run(task, batch, mesh)
        return loss, norm * (2.0 if mesh.size > 1 else 1.0)

    monkeypatch.setattr(devices, "_run_step", doubled)
    found = verdicts("generator on all devices")
    assert [v for k, v in found.items() if k.startswith("loss")] == ["pass"]
    assert found["gradient norm"] == "FAIL"


# What comes out.


@pytest.fixture
def own_check():
    """Registers a check for one test."""
    before = dict(CHECKS)
    yield register
    CHECKS.clear()
    CHECKS.update(before)


def test_the_exit_status_and_the_file_say_what_failed(own_check, tmp_path, capsys):
    @own_check("sums")
    def sums():
        yield "right", 2.0, 2.0, 0.0
        yield "nothing", jnp.nan, 0.0, 1.0

    @own_check("sums that break")
    def broken():
        yield "right", 1.0, 1.0, 0.0
        raise ValueError("out of memory")

    @own_check("sums elsewhere")
    def elsewhere():
        raise Skipped("one device")
        yield

    assert main(["--only=sums", f"--json={tmp_path / 'result.json'}"]) == 1
    text = capsys.readouterr().out
    assert "ValueError: out of memory" in text and "skipped: one device" in text
    assert "2 passed, 2 failed, 1 skipped" in text
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["failed"] == ["sums/nothing", "sums that break"] and not result["passed"]
    assert [row["result"] for row in result["rows"]] == ["pass", "FAIL", "pass", "FAIL", "skipped"]
    del CHECKS["sums"], CHECKS["sums that break"]
    assert main(["--only=sums", "--json=-"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_not_a_number_and_an_empty_check_fail(own_check):
    assert not Row("a", math.nan, 0.0, math.inf).passed
    assert not Row("a", 0.0, math.nan, 1.0).passed

    @own_check("empty")
    def empty():
        yield from ()

    assert run_check("empty")[0].verdict == "FAIL"


def test_as_a_module_it_ends_with_the_status():
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "vidlatent.selftest", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    done = run("--only=halved")
    assert done.returncode == 0 and "4 x cpu" in done.stdout, done.stderr[-2000:]
    assert "student's one step" in done.stdout
    done = run("--only=nonsense")
    assert done.returncode == 2 and "no check is called 'nonsense': " in done.stderr
