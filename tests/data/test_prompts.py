"""Prompts as data: texts and classes, and pictures that nobody may learn from."""

import numpy as np
import pytest

from tests.helpers.generator_runs import tiny, tokenizer_run
from vidlatent import config as configs
from vidlatent.data.loader import make_loader
from vidlatent.data.sources.prompts import read_rows
from vidlatent.encode.run import encode_set
from vidlatent.encode.statistics import measure_latents
from vidlatent.errors import VidlatentError
from vidlatent.spec import FrameRule
from vidlatent.train.tasks.generator import GeneratorTask

CLASSES = '{"classes": ["square", "circle"]}\n'
ROWS = '{"prompt": "a red square", "label": "square"}\n\n{"prompt": "a dot", "label": "circle"}\n'


def written(folder, text, name="prompts.jsonl"):
    (folder / name).write_text(text)
    return str(folder / name)


def test_lists_are_read(tmp_path):
    rows = [("square", "a red square"), ("circle", "a dot")]
    assert read_rows(written(tmp_path, CLASSES + ROWS)) == (rows, ("square", "circle"))
    assert read_rows(written(tmp_path, ROWS)) == (rows, ())
    found = read_rows(written(tmp_path, " one \n\ntwo\n", "prompts.txt"))
    assert found == ([("", "one"), ("", "two")], ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "holds no prompt"),
        (CLASSES, "holds no prompt"),
        ('["a"]', "line 1: each line is"),
        ('{"prompt": "a"}\n{"file": "a.png"}', "line 2: each line is"),
        ("{}", "line 1: each line is"),
        (CLASSES + '{"label": "star"}', "'star' is none of its classes"),
    ],
)
def test_other_lists_are_refused(tmp_path, text, message):
    with pytest.raises(VidlatentError, match=message):
        read_rows(written(tmp_path, text))
    with pytest.raises(VidlatentError, match="is no list of prompts"):
        read_rows(str(tmp_path / "nowhere.jsonl"))


def config_of(places, text=CLASSES + ROWS, **keys):
    path = written(places, text)
    keys = {"data__source": "prompts", "data__buckets": "((1, 8, 8, 2),)", **keys}
    return tiny(places / "tokenizer", "videos", data__path=path, data__flip="true", **keys)


def test_a_batch_has_texts_classes_and_grey_pictures(tmp_path):
    data = config_of(tmp_path, data__validation_share="0.0").data.to_dict()
    with make_loader(data, split="train", rule=FrameRule(1, 2), seed=0) as loader:
        batch = next(loader)
        assert loader.labels == ("square", "circle")  # as named, not sorted
    assert batch["video"].shape == (2, 1, 8, 8, 3) and np.unique(batch["video"]).tolist() == [128]
    known = {"a red square": 0, "a dot": 1}
    assert [known[text] for text in batch["caption"]] == batch["label"].tolist()
    data["buckets"] = ((3, 8, 8, 2),)
    with pytest.raises(VidlatentError, match="give buckets of one frame"):
        make_loader(data, split="train", rule=FrameRule(1, 2), seed=0)


def test_nothing_learns_from_the_pictures(tmp_path):
    tokenizer_run(tmp_path / "tokenizer")
    with pytest.raises(VidlatentError, match="holds prompts without pictures, and the task 'gener"):
        GeneratorTask(config_of(tmp_path))


def test_a_tokenizer_s_moments_are_not_those_of_grey_pictures(tmp_path):
    tokenizer_run(tmp_path / "tokenizer")
    config = configs.read(tmp_path / "tokenizer")
    with config.unlocked():
        config.data.update(
            source="prompts", path=written(tmp_path, ROWS), buckets=((1, 8, 8, 2),), fps=0
        )
    with pytest.raises(VidlatentError, match="measure them on videos first, by --mode=latents"):
        encode_set(config, tmp_path / "tokenizer", -1, str(tmp_path / "set"))
    with pytest.raises(VidlatentError, match="grey pictures, which say nothing of latents"):
        measure_latents(config, tmp_path / "tokenizer", -1)
