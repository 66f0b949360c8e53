"""Programs end by a sentence, whatever chain of causes an error has."""

import pytest

from vidlatent.errors import VidlatentError
from vidlatent.report.ending import end_by
from vidlatent.train.init_from import load_initial_params


def test_an_error_that_is_its_own_cause_ends_too(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    error = VidlatentError("no such thing.")
    error.__cause__ = error
    assert end_by(error) == 2
    assert capsys.readouterr().err.startswith("error: no such thing.")


def test_a_missing_file_is_not_its_own_cause(tmp_path):
    with pytest.raises(VidlatentError, match="no weights file at") as raised:
        load_initial_params(str(tmp_path / "a.safetensors"), {}, dict, family="fsae")
    assert raised.value.__cause__ is not raised.value
