"""A set for a generator's preset: encoded as it says, and trained on without another word."""

import jax
import pytest

from tests.helpers.encode_cases import SHAPES, write_run
from tests.helpers.tiny_tokenizers import MODELS
from vidlatent import config as configs
from vidlatent.data import make_loader
from vidlatent.data.latent_set import read_header
from vidlatent.encode.for_generator import tokenizer_job
from vidlatent.encode.run import encode_set
from vidlatent.errors import VidlatentError

BUCKETS = ((5, 16, 16, 4), (5, 16, 32, 4), (1, 16, 16, 4))
VIDEOS = {key: value for key, value in SHAPES.items() if key.startswith("data.s")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encode") / "run"
    write_run(folder, configs.load("configs/ivvae.py"), MODELS["ivvae"])
    return folder


def test_a_set_for_a_preset_is_trained_on_without_another_word(run, tmp_path, caplog):
    keys = {"data.buckets": str(BUCKETS), "encode.pictures": "0", "encode.dtype": "bfloat16"}
    config = configs.load("fsvideo_dit:demo,text=true", VIDEOS | keys)
    assert encode_set(config, run, -1, str(tmp_path / "set")) == 0
    header = read_header(tmp_path / "set")
    assert header.source["buckets"] == [list(bucket[:3]) for bucket in BUCKETS]
    assert header.source["text"] and header.dtype == "bfloat16"
    assert all("text" in row["arrays"] for row in header.sizes) and len(header.sizes) == 2
    trained = configs.load("fsvideo_dit:demo,text=true", {"data.buckets": str(BUCKETS)})
    data = trained.data.to_dict() | {"path": str(tmp_path / "set")}
    caplog.set_level("INFO")
    with make_loader(data, split="train", rule=header.spec.lengths, seed=0) as loader:
        assert next(loader)["latent"].shape[0] == 4
    assert "bucket 5x16x32: it is left out" in caplog.text  # of the squares none is wide


def test_what_is_taken_from_the_preset(run):
    overrides = {
        "tokenizer.path": str(run),
        "tokenizer.chunks": "(5,1)",
        "tokenizer.sample": "true",
    }
    config = configs.load("promag_dit:paper,stage=2", overrides)
    job, workdir, step = tokenizer_job(config, run.parent / "elsewhere", -1)
    assert workdir == run and step == -1 and job.model.name == "ivvae"
    assert job.encode.chunks == (5, 1) and job.encode.draws == 1 and job.encode.text == "promag"
    assert (job.data.source, job.data.fps) == ("folder", 24.0)
    sizes = [bucket[:3] for bucket in job.data.buckets]
    assert sizes == [bucket[:3] for bucket in config.data.buckets]
    assert tokenizer_job(config, run, 7)[2] == 7


def test_batches_are_those_of_the_devices_that_encode(run, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    config = configs.load("fsvideo_dit:paper,stage=target", {"tokenizer.path": str(run)})
    batches = {bucket[:3]: bucket[3] for bucket in tokenizer_job(config, run, -1)[0].data.buckets}
    assert batches[121, 512, 512] == 2 and batches[1, 512, 512] == 256
    image = configs.load("fsvideo_dit:paper,stage=image", {"tokenizer.path": str(run)})
    assert tokenizer_job(image, run, -1)[0].data.buckets == image.data.buckets


def test_what_is_no_tokenizer_is_refused(run, tmp_path):
    config = configs.load("latte:demo")
    with pytest.raises(VidlatentError, match="needs the tokenizer's run, and .* is none: name it"):
        encode_set(config, tmp_path, -1, str(tmp_path / "set"))
    configs.write(config, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(VidlatentError, match="run of the generator latte, and encoding takes"):
        tokenizer_job(config, tmp_path, -1)
