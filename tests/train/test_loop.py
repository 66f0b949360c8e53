"""The training loop: what it logs, what it refuses, and what it writes to the workdir."""

import json
from pathlib import Path

import pytest

from tests.helpers.clips import pictures, write_clip
from tests.helpers.events import read_events
from vidlatent.checkpoint.digests import leaf_paths
from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.models.load import abstract_params, model_of
from vidlatent.report.writers import read_metrics
from vidlatent.train.loop import INTERRUPTED, train
from vidlatent.weights.files import load_params

TINY = Path(__file__).parent.parent / "tiny.py"

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


def tiny(**overrides):
    values = {"train.steps": "8", "train.log_every": "2", "eval.every": "4"}
    return load(str(TINY), values | {k.replace("__", "."): v for k, v in overrides.items()})


def test_run_leaves_config_curves_checkpoint_and_profile(workdir):
    config = tiny(
        train__profile_at="3",
        train__profile_steps="2",
        train__stop_at="8",
        train__tensorboard="true",
        train__histograms="4",
    )
    assert train(config, workdir) == INTERRUPTED
    assert json.loads((workdir / "config.json").read_text()) == json.loads(
        json.dumps(config.to_dict())
    )
    curves = read_metrics(workdir / "metrics.jsonl")
    assert curves["train/loss"][0] == [2, 4, 6, 8] and curves["val/psnr"][0] == [4, 8]
    assert all(0 <= share <= 1 for share in curves["train/data_wait_share"][1])
    assert list((workdir / "profile").rglob("*.xplane.pb"))
    assert (workdir / "checkpoints" / "8").is_dir()
    check_histograms(workdir, config)


def check_histograms(workdir, config):
    """Of every parameter and its update, at steps 4 and 8; those of the last are the saved ones."""
    found = {
        (step, value.tag): value.histo
        for step, value in read_events(workdir / "tensorboard")
        if value.HasField("histo")
    }
    params = leaf_paths(load_params(workdir, abstract_params(model_of(config)), family="fsae"))
    kinds = ("params/model", "updates/model")
    assert set(found) == {
        (s, f"{kind}/{name}") for s in (4, 8) for kind in kinds for name in params
    }
    for name, value in params.items():
        told = found[8, f"params/model/{name}"]
        assert told.num == value.size == sum(told.bucket)
        assert found[8, f"updates/model/{name}"].max != 0


def test_other_latents_need_another_workdir(workdir):
    before = json.loads((workdir / "config.json").read_text())["data"]["buckets"]
    with pytest.raises(VidlatentError, match="another --workdir"):
        train(tiny(model__temporal_down="(0,)", data__buckets="((3, 16, 16, 2),)"), workdir)
    assert json.loads((workdir / "config.json").read_text())["data"]["buckets"] == before


def test_other_widths_are_named(workdir):
    with pytest.raises(VidlatentError, match="conv_out"):
        train(tiny(model__decoder_widths="(16, 16, 16)"), workdir)


def test_changed_settings_are_said_and_the_run_goes_on(workdir, caplog):
    with caplog.at_level("INFO", logger="absl"):
        assert train(tiny(train__steps="10", optim__lr="1e-4"), workdir) == 0
    assert "optim.lr: 0.003 -> 0.0001" in caplog.text
    assert "resuming at step 8 of 10" in caplog.text
    assert (workdir / "eval" / "step_10" / "report.html").stat().st_size > 10_000


def test_a_finished_run_keeps_its_config_and_refuses_other_data(workdir, tmp_path):
    def read():
        return [file.read_bytes() for file in (workdir / "config.json", report)]

    report = workdir / "eval" / "step_10" / "scores.json"
    before = read()
    for number in range(6):
        write_clip(tmp_path / f"{number}.mp4", pictures(13, 40, 48, seed=number))
    other = tiny(train__steps="10", data__source="folder", data__path=str(tmp_path))
    with pytest.raises(VidlatentError, match="is a run on the source synthetic"):
        train(other, workdir)
    assert read() == before
    assert train(tiny(train__steps="10", optim__lr="2e-4"), workdir) == 0
    assert read()[0] == before[0]


def test_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(VidlatentError, match="accumulate 3 does not divide the batch of 2"):
        train(tiny(optim__accumulate="3", data__buckets="((5, 16, 16, 2),)"), tmp_path)


def test_a_refused_start_leaves_no_folder(tmp_path):
    workdir = tmp_path / "refused"
    with pytest.raises(VidlatentError, match="config.train.init_kind is 'image'"):
        train(tiny(train__init_kind="image"), workdir)
    with pytest.raises(VidlatentError, match="elsewhere"):
        train(tiny(train__init_from=str(tmp_path / "elsewhere")), workdir)
    with pytest.raises(VidlatentError, match="config.data.buckets"):
        train(tiny(data__buckets="((4, 16, 16, 2),)"), workdir)
    assert not workdir.exists()
