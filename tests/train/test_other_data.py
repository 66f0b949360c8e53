"""A run belongs to its data: source and path are compared before a report or config is written."""

import json

import pytest

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.folders import default_folder
from vidlatent.train.identity import check_data


@pytest.fixture
def workdir(tmp_path):
    """A run on a folder."""
    configs.write(
        configs.load("fsae", {"data.source": "folder", "data.path": str(tmp_path / "clips")}),
        tmp_path,
    )
    return tmp_path


def load(workdir, path="clips", source="folder"):
    return configs.load("fsae", {"data.source": source, "data.path": f"{workdir}/{path}"})


def test_a_run_on_other_data_is_refused(workdir):
    saved = {"fingerprint": "a"}
    check_data(load(workdir), workdir, 40, saved, "b")  # files changed in the same place
    check_data(load(workdir, "moved"), workdir, 40, saved, "a")  # the same files elsewhere
    check_data(load(workdir, "other"), workdir, 40, None, "b")  # unknown, as of converted weights
    with pytest.raises(VidlatentError) as raised:
        check_data(load(workdir, "other"), workdir, 40, saved, "b")
    said = str(raised.value)
    assert f"is a run on the source folder in {workdir}/clips, at step 40 of " in said
    assert f"names the source folder in {workdir}/other: give another --workdir" in said
    assert said.endswith(f"--config.train.init_from={workdir}.")
    with pytest.raises(VidlatentError, match="names the source samples in"):
        check_data(load(workdir, source="samples"), workdir, 40, saved, "b")


def test_a_report_of_other_data_goes_elsewhere(workdir):
    own = workdir / "eval" / "step_40"
    assert default_folder(load(workdir), workdir, 40) == own
    assert default_folder(load(workdir, "./clips/"), workdir, 40) == own
    other = default_folder(load(workdir, "my other/"), workdir, 40)
    assert other == workdir / "eval" / "step_40_my_other"


def test_what_a_damaged_config_says_is_unknown(workdir):
    assert configs.is_readable(workdir)
    (workdir / "config.json").write_text(json.dumps({"data": 3}))
    assert not configs.is_readable(workdir)
    assert configs.find_other_data(load(workdir, "other"), workdir) == ""
