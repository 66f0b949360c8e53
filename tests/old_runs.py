"""What is measured of the runs in ``tests/fixtures``, which older versions of the package wrote.

``test_old_runs.py`` compares these numbers with those that the version which wrote the runs gave.
Checkpoints and latent sets are read here with the libraries that define their file formats, so that
nothing depends on how the package reads them. To write the expected numbers, at the commit that
made a fixture: ``python -m tests.old_runs tests/fixtures/<commit>``.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
FINISHED = 42  # the runs were stopped at step 40 of 42
PROMPT = "red square moving left"
# Of a step folder, what is no part of the training state.
_BESIDE = ("meta", "digests")


def unpack(fixture, folder):
    """The runs of a fixture under their names: tokenizer, latents, generator; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for archive in sorted(fixture.glob("*.tar.gz")):
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    exported = fixture / "tokenizer.safetensors"
    (folder / exported.name).write_bytes(exported.read_bytes())
    return folder


def run(folder, *flags):
    """The command line in ``folder``, which the runs' paths are relative to; what it logged."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "vidlatent.main", *flags],
        cwd=folder,
        env={"JAX_PLATFORMS": "cpu", **os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def load_generator(workdir):
    """The public way to a generator; before there was one, the class behind it."""
    import vidlatent

    if hasattr(vidlatent, "load_generator"):
        return vidlatent.load_generator(workdir)
    from vidlatent.sample.generator import Generator

    return Generator.from_workdir(workdir)


def renamed(name):
    """Names that newer versions give to curves and parts of the state, as the fixture has them."""
    return name.replace("discriminator", "critic")


def training_curves(workdir):
    """``train/...`` of each of the two steps after the fixture's, without the machine's speed."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["step"] > 40 and "train/loss" in row]
    assert [row["step"] for row in rows] == [41, 42]
    speed = ("per_second", "wait_share")
    return [
        {
            renamed(name): value
            for name, value in row.items()
            if name.startswith("train/") and not name.endswith(speed)
        }
        for row in rows
    ]


def validation_scores(workdir):
    """``val/...`` of the end of the run, of the averaged parameters."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (scores,) = [
        {name: value for name, value in row.items() if name.startswith("val/")}
        for row in rows
        if row["step"] == FINISHED and any(name.startswith("val/") for name in row)
    ]
    return scores


def state_figures(workdir, step):
    """Of each array in a checkpoint its root mean square and a sum that depends on the order."""
    import orbax.checkpoint as ocp

    figures = {}
    for item in sorted((workdir / "checkpoints" / str(step)).iterdir()):
        if not item.is_dir() or item.name in _BESIDE:
            continue
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.restore(item)
        for name, leaf in _leaves(renamed(item.name), tree):
            x = np.asarray(leaf, np.float64).ravel()
            order = np.cos(np.arange(x.size) + 1.0)
            rms, ordered = np.sqrt(np.mean(x**2)), x @ order / np.sqrt(x.size)
            figures[name] = [float(rms), float(ordered)]
    return figures


def _leaves(name, tree):
    if not isinstance(tree, dict):
        yield name, tree
        return
    for key, child in tree.items():
        yield from _leaves(f"{name}/{key}", child)


def scores_of(folder, output):
    """PSNR, SSIM and whatever else ``--mode=eval`` finds of the tokenizer, of all and by clip."""
    run(folder, "--mode=eval", "--workdir=tokenizer", f"--output={output}")
    found = json.loads((folder / output / "scores.json").read_text())
    by_clip = [[row["psnr"], row["ssim"]] for row in found["by_clip"]]
    return {"scores": found["scores"], "by_clip": by_clip}


def clip():
    """Seven frames of a moving pattern, uint8 ``[7, 18, 20, 3]``: neither size fits exactly."""
    t, y, x, c = np.meshgrid(*map(np.arange, (7, 18, 20, 3)), indexing="ij")
    wave = np.sin(0.5 * x + 0.7 * t + c) * np.cos(0.4 * y - 0.3 * t)
    return np.round(127.5 + 120 * wave).astype(np.uint8)


def coded(workdir):
    """``(latent, frames)`` of ``clip()`` through ``load_codec``."""
    import vidlatent

    codec = vidlatent.load_codec(workdir)
    latent = codec.encode(clip())
    return latent.latent, codec.decode(latent)


def encode_again(folder, output):
    """Encode the fixture's clips once more into ``output``; what was logged."""
    return run(
        folder,
        "--mode=encode",
        "--workdir=tokenizer",
        f"--output={output}",
        "--config.data.synthetic.clips=24",
        "--config.encode.pictures=0",
    )


def records(latents):
    """The latents of a set in its order, ``[windows, t, h, w, c]``, and the rows about them."""
    import safetensors.numpy
    from array_record.python.array_record_module import ArrayRecordReader

    found, rows = [], []
    for file in sorted(latents.glob("*.array_record")):
        reader = ArrayRecordReader(str(file))
        found += [safetensors.numpy.load(record)["latent"] for record in reader.read_all()]
        reader.close()
        rows += json.loads(file.with_suffix(".json").read_text())["windows"]
    return np.stack(found), rows


def sample(workdir):
    """``(latent, frames)`` of one video, drawn from seed 3; decoded by the run's tokenizer."""
    generator = load_generator(workdir)
    ((request, latent),) = generator.latents(generator.requests([PROMPT], seed=3))
    return np.asarray(latent), np.concatenate(list(generator.decode(request, latent)))


def set_key(workdir, key, value):
    """Change a key of ``config.json``, under the name that the fixture's version had for it."""
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    *parents, leaf = key.split(".")
    node = config
    for name in parents:
        node = node[name]
    assert leaf in node
    node[leaf] = value
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def resume(folder, name):
    """Train a run for its two last steps, one line of the curves for each; what was logged."""
    return run(folder, f"--workdir={name}", "--config.train.log_every=1")


def _record(fixture):
    with tempfile.TemporaryDirectory() as temporary:
        folder = unpack(fixture, Path(temporary))
        os.chdir(folder)
        numbers = {"eval": scores_of(folder, "scores")}
        arrays = {}
        arrays["codec_latent"], arrays["codec_frames"] = coded("tokenizer")
        arrays["sample_latent"], arrays["sample_frames"] = sample("generator")
        set_key(folder / "generator", "sampler.eight_bits", True)
        arrays["sample_latent_fp8"], _ = sample("generator")
        set_key(folder / "generator", "sampler.eight_bits", False)
        # A resumed tokenizer is no longer the one that the latents were made by.
        for name in ("generator", "tokenizer"):
            resume(folder, name)
            numbers[name] = {
                "curves": training_curves(folder / name),
                "validation": validation_scores(folder / name),
                "state": state_figures(folder / name, FINISHED),
            }
    text = json.dumps(numbers, indent=1, sort_keys=True)
    (fixture / "expected.json").write_text(text + "\n")
    np.savez_compressed(fixture / "expected.npz", **arrays)


if __name__ == "__main__":
    _record(Path(sys.argv[1]).resolve())
