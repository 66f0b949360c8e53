"""VBench's totals against figures that a paper prints with its scores by dimension."""

import json
from pathlib import Path

import pytest

from vidlatent.errors import VidlatentError
from vidlatent.evaluate.vbench import main
from vidlatent.evaluate.vbench_prompts import main as write_prompts
from vidlatent.metrics.vbench import IMAGE_TO_VIDEO, TEXT_TO_VIDEO, compute_totals
from vidlatent.sample.outputs import name_video
from vidlatent.sample.requests import make_requests, read_prompts

DIMENSIONS = TEXT_TO_VIDEO.dimensions
# Reducio-DiT (supplement), in per cent and in the order of DIMENSIONS.
REDUCIO = (98.05, 99.13, 98.77, 27.78, 64.02, 67.67, 98.45)
REDUCIO += (91.49, 69.91, 92.60, 89.06, 52.85, 54.90, 25.16, 26.40, 28.87)
SCORES = {name: score / 100 for name, score in zip(DIMENSIONS, REDUCIO, strict=True)}


def test_totals_as_printed():
    found = compute_totals(SCORES)
    assert found["quality"] == pytest.approx(0.8224, abs=1e-4)
    # Printed 78.00 and 81.39: seven hundredths from what the printed scores give.
    assert found["semantic"] == pytest.approx(0.7800, abs=1e-3)
    assert found["total"] == pytest.approx(0.8139, abs=5e-4)
    best = {name: rule.greatest for name, rule in DIMENSIONS.items()}
    assert compute_totals(best) == {kind: pytest.approx(1.0) for kind in found}
    least = {name: rule.least for name, rule in DIMENSIONS.items()}
    assert compute_totals(least) == {kind: pytest.approx(0.0) for kind in found}
    still = compute_totals(SCORES | {"dynamic_degree": 0.0})["quality"]
    assert found["quality"] - still == pytest.approx(0.5 * 0.2778 / 6.5)


def test_from_the_files_that_vbench_writes(tmp_path, capsys):
    files = []
    for number, part in enumerate((dict(list(SCORES.items())[:9]), dict(list(SCORES.items())[9:]))):
        file = tmp_path / f"{number}_eval_results.json"
        listed = {name: [score, [{"video": "a-0.mp4"}]] for name, score in part.items()}
        file.write_text(json.dumps(listed if number else part))
        files.append(str(file))
    assert main(files) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 19 and lines[-3].split() == ["quality", "82.24"]
    assert main(files[:1]) == 1 and "overall_consistency lack" in capsys.readouterr().err
    (tmp_path / "odd.json").write_text("[1]")
    assert main([str(tmp_path / "odd.json")]) == 1
    assert "holds no VBench results" in capsys.readouterr().err
    assert main(["nowhere.json"]) == 1 and "no file nowhere.json" in capsys.readouterr().err


# Raw scores that FSVideo's totals could be made of; the totals below are worked by hand.
I2V = {
    "i2v_subject": 0.9802,
    "i2v_background": 0.9801,
    "camera_motion": 0.45,
    "subject_consistency": 0.9573,
    "background_consistency": 0.9685,
    "motion_smoothness": 0.9893,
    "dynamic_degree": 0.52,
    "aesthetic_quality": 0.6458,
    "imaging_quality": 0.7076,
}


def test_image_to_video_totals():
    found = compute_totals(I2V)
    subject, background = (0.9802 - 0.1462) / 0.8538, (0.9801 - 0.2615) / 0.7385
    assert found["i2v"] == pytest.approx((subject + background + 0.1 * 0.45) / 2.1)
    quality = (0.9573 - 0.1462) / 0.8538 + (0.9685 - 0.2615) / 0.7385 + 0.6458 + 0.7076
    quality += (0.9893 - 0.706) / 0.2915 + 0.5 * 0.52
    assert found["quality"] == pytest.approx(quality / 5.5)
    assert list(found) == ["i2v", "quality", "total"]
    # FSVideo, table 3: 88.12 is the mean of 95.39 and 80.85.
    assert found["total"] == pytest.approx((found["i2v"] + found["quality"]) / 2)
    assert IMAGE_TO_VIDEO.weights == {"i2v": 1, "quality": 1}
    for end in ("least", "greatest"):
        ends = {name: getattr(rule, end) for name, rule in IMAGE_TO_VIDEO.dimensions.items()}
        value = float(end == "greatest")
        assert compute_totals(ends) == {kind: pytest.approx(value) for kind in found}
    with pytest.raises(VidlatentError, match="VBench-I2V has no dimension 'temporal_flickering'"):
        compute_totals(I2V | {"temporal_flickering": 0.9})
    with pytest.raises(VidlatentError, match="VBench-I2V's totals.*camera_motion lack"):
        compute_totals({name: v for name, v in I2V.items() if name != "camera_motion"})


def test_image_to_video_from_files(tmp_path, capsys):
    file = tmp_path / "i2v_eval_results.json"
    file.write_text(json.dumps({name: [score, []] for name, score in I2V.items()}))
    assert main([str(file)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 12 and lines[0] == ["i2v_subject", "98.02"]
    assert [line[0] for line in lines[-3:]] == ["i2v", "quality", "total"]


@pytest.fixture
def info(tmp_path):
    """Three prompts of VBench-I2V in its layout, and their pictures."""
    (tmp_path / "crop").mkdir()
    rows = []
    for number, dimensions in enumerate(
        (["i2v_subject", "motion_smoothness"], ["i2v_background"], ["camera_motion"])
    ):
        name = f"a scene {number}.jpg"
        (tmp_path / "crop" / name).touch()
        prompt = f"a scene {number}" + ", camera pans left" * (number == 2)
        rows.append({"prompt_en": prompt, "dimension": dimensions, "image_name": name})
    file = tmp_path / "info.json"
    file.write_text(json.dumps(rows))
    return file


def test_prompts_with_pictures_are_sampled(info, tmp_path, capsys):
    images, out = f"--images={tmp_path / 'crop'}", tmp_path / "out"
    assert write_prompts([str(info), images, f"--output={out}"]) == 0
    assert "prompts.jsonl: 3 prompts" in capsys.readouterr().out
    # Dimensions share videos, so each prompt is there once, five videos each as VBench asks.
    requests = make_requests(read_prompts(str(out / "prompts.jsonl")), count=5, seed=1)
    assert len(requests) == 15 and requests[0].image == str(tmp_path / "crop" / "a scene 0.jpg")
    taken = set()
    names = [name_video(r.prompt, r.number, taken, vbench=True) for r in requests]
    assert names[9:11] == ["a scene 1-4.mp4", "a scene 2, camera pans left-0.mp4"]

    out = tmp_path / "dimensions"
    assert write_prompts([str(info), images, f"--output={out}", "--by_dimension"]) == 0
    requests = make_requests(read_prompts(str(out)), count=1, seed=1)
    assert sorted((r.folder, Path(r.image).name) for r in requests) == [
        ("camera_motion", "a scene 2.jpg"),
        ("i2v_background", "a scene 1.jpg"),
        ("i2v_subject", "a scene 0.jpg"),
        ("motion_smoothness", "a scene 0.jpg"),
    ]
    out = tmp_path / "one"
    write_prompts([str(info), images, f"--output={out}", "--dimensions=camera_motion"])
    assert len(read_prompts(str(out / "prompts.jsonl"))) == 1


def test_mistakes_in_prompts_are_named(info, tmp_path, capsys):
    out = f"--output={tmp_path / 'out'}"
    for arguments, words in (
        ([str(info)], "give their folder by --images"),
        ([str(info), f"--images={tmp_path}"], "no picture"),
        ([str(info), f"--images={tmp_path / 'crop'}", "--dimensions=i2v"], "no dimension 'i2v'"),
        ([str(tmp_path / "none.json")], "there is no file"),
    ):
        assert write_prompts([*arguments, out]) == 1 and words in capsys.readouterr().err
    info.write_text('{"prompt": 1}')
    assert write_prompts([str(info), out]) == 1
    assert "no list of VBench's prompts" in capsys.readouterr().err


def test_mistakes_are_named():
    with pytest.raises(VidlatentError, match="no dimension 'colour': did you mean 'color'"):
        compute_totals({"colour": 0.5})
    with pytest.raises(VidlatentError, match="color = 89.0 is outside"):
        compute_totals(SCORES | {"color": 89.0})
