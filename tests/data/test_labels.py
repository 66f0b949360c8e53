"""Labels and captions: of rendered shapes, folders and TFDS, in the loader's batches."""

import json

import numpy as np
import pytest

from vidlatent.data import make_index, make_loader
from vidlatent.data.renderers.shapes import (
    LABELS,
    label_of,
    make_shape_scene,
    read_label,
    render_shape,
)
from vidlatent.errors import VidlatentError


def test_read_label_is_exact_on_rendered_clips():
    for height, width in ((24, 24), (32, 48), (64, 40)):
        for index in range(2 * len(LABELS)):
            scene = make_shape_scene(3, index, 17)
            video = render_shape(scene, range(17), height, width)
            assert label_of(*read_label(video)) == scene.label
            assert label_of(*read_label(video[4:9])) == scene.label


def test_labels_come_in_equal_numbers():
    labels = [make_shape_scene(1, index, 9).label for index in range(2 * len(LABELS))]
    assert sorted(labels[: len(LABELS)]) == sorted(labels[len(LABELS) :]) == sorted(LABELS)
    assert labels[: len(LABELS)] != labels[len(LABELS) :]
    assert make_shape_scene(1, 5, 9) == make_shape_scene(1, 5, 9) != make_shape_scene(2, 5, 9)


def test_what_cannot_be_told_is_left_open():
    assert read_label(np.full((4, 16, 16, 3), 20, np.uint8)) == ("", "", "")
    scene = make_shape_scene(0, 0, 9)
    still = render_shape(scene, [2.0] * 4, 32, 32)
    assert read_label(still) == (scene.colour, scene.shape, "")
    assert read_label(still[:1])[2] == ""
    with pytest.raises(VidlatentError, match="T H W C"):
        read_label(still[0])


def test_a_shape_stays_inside_and_is_seen_by_decoders_that_blur():
    rng = np.random.default_rng(0)
    for index in range(len(LABELS)):
        scene = make_shape_scene(9, index, 9)
        video = render_shape(scene, range(9), 40, 56)
        border = np.concatenate(
            [video[:, [0, -1]].reshape(-1, 3), video[:, :, [0, -1]].reshape(-1, 3)]
        )
        assert (border == border[0]).all()
        rough = np.clip(video + rng.normal(0, 6, video.shape), 0, 255).astype(np.uint8)
        assert label_of(*read_label(rough)) == scene.label


@pytest.mark.parametrize("workers", [0, 1])
def test_shapes_are_delivered_with_their_labels(tools, workers):
    options = tools.options(
        flip=False, num_workers=workers, synthetic={"kind": "shapes"}, buckets=((9, 32, 32, 4),)
    )
    with make_loader(options, split="train", rule=tools.rule, seed=2) as loader:
        assert loader.labels == LABELS
        for _ in range(3):
            batch = next(loader)
            assert batch["label"].dtype == np.int32 and batch["label"].shape == (4,)
            for video, number, caption in zip(
                batch["video"], batch["label"], batch["caption"], strict=True
            ):
                assert label_of(*read_label(video)) == LABELS[number] == caption


def test_mirroring_would_make_labels_wrong(tools):
    with pytest.raises(VidlatentError, match="data.flip"):
        make_index(tools.options(synthetic={"kind": "shapes"}))


def test_padding_has_no_label(tools):
    options = tools.options(flip=False, synthetic={"kind": "shapes"}, validation_share=0.2)
    options |= {"validation_clips": 3, "buckets": ((5, 32, 32, 4),)}
    with make_loader(options, split="validation", rule=tools.rule, seed=2) as loader:
        (batch,) = loader
    assert batch["mask"].tolist() == [1, 1, 1, 0]
    assert (batch["label"] >= 0).tolist() == [True, True, True, False]
    assert batch["caption"][3] == ""


def write_folder(tools, path):
    for name in ("a/x.png", "a/y.png", "b/z.png", "top.png"):
        (path / name).parent.mkdir(exist_ok=True)
        tools.write_picture(path / name, 16, 16)
    (path / "a" / "x.txt").write_text("a thing\n")
    (path / "a" / "y.txt").write_text("not this one")
    rows = [{"file": "a/y.png", "caption": "another thing"}, {"file": "top.png", "label": "c"}]
    (path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")


def test_captions_and_labels_of_a_folder(tools, tmp_path):
    write_folder(tools, tmp_path)
    options = tools.options(source="folder", path=str(tmp_path), buckets=((1, 16, 16, 4),))
    index = make_index(options)
    assert index.labels == ("c",)
    assert [clip.caption for clip in index.clips] == ["a thing", "another thing", "", ""]
    index = make_index(options | {"labels": "folders"})
    assert index.labels == ("a", "b", "c")
    assert [clip.label for clip in index.clips] == ["a", "a", "b", "c"]
    options |= {"labels": "folders", "validation_share": 0.0}
    prints = set()
    for caption in ("a thing", "something else"):
        (tmp_path / "a" / "x.txt").write_text(caption)
        with make_loader(options, split="whole", rule=tools.rule, seed=0) as loader:
            (batch,) = loader
            prints.add(loader.fingerprint)
        assert batch["label"].tolist() == [0, 0, 1, 2]
        assert batch["caption"] == [caption, "another thing", "", ""]
    assert len(prints) == 2


def test_a_list_of_files(tools, tmp_path):
    write_folder(tools, tmp_path)
    (tmp_path / "lists").mkdir()
    lines = ["../b/z.png", "", str(tmp_path / "a" / "x.png"), "../nowhere.png"]
    (tmp_path / "lists" / "some.txt").write_text("\n".join(lines))
    options = tools.options(source="folder", path=str(tmp_path / "lists" / "some.txt"))
    index = make_index(options)
    assert [clip.path for clip in index.clips] == ["../a/x.png", "../b/z.png"]
    assert [clip.caption for clip in index.clips] == ["a thing", ""]
    assert [(bad.path, bad.reason) for bad in index.bad] == [("../nowhere.png", "missing")]
    options |= {"buckets": ((1, 16, 16, 2),), "validation_share": 0.0}
    with make_loader(options, split="whole", rule=tools.rule, seed=0) as loader:
        assert next(loader)["mask"].all()
    rows = [{"file": "../b/z.png", "label": "z"}, {"file": "../b/../b/z.png"}]
    (tmp_path / "lists" / "some.jsonl").write_text("\n".join(map(json.dumps, rows[:1])))
    options["path"] = str(tmp_path / "lists" / "some.jsonl")
    assert make_index(options).labels == ("z",)
    (tmp_path / "lists" / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(VidlatentError, match="line 2: ../b/z.png is named a second time"):
        make_index(options)


def test_a_captions_file_that_is_none(tools, tmp_path):
    write_folder(tools, tmp_path)
    options = tools.options(source="folder", path=str(tmp_path))
    for line in ("{", '["file"]', '{"caption": "of nothing"}', "3"):
        (tmp_path / "captions.jsonl").write_text('{"file": "top.png"}\n' + line)
        with pytest.raises(VidlatentError, match="captions.jsonl, line 2"):
            make_index(options)


def test_sources_without_words_are_what_they_were(tools):
    with make_loader(tools.options(), split="train", rule=tools.rule, seed=5) as loader:
        assert set(next(loader)) == {"video", "mask", "clip", "start", "skipped"}
        # Runs from before labels existed resume without a warning.
        assert loader.fingerprint.startswith("111bd7d63bc3ef8dc5dd563bb63822817108")
