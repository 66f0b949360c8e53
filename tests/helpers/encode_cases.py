"""A tokenizer's run without training, and jobs that encode shapes with it; also a killed process.

As a program: ``encode_cases.py RUN OUTPUT RECORDS key=value...`` is killed after so many records.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from vidlatent import config as configs
from vidlatent.convert.run import _write_workdir
from vidlatent.encode import shards as encode_write
from vidlatent.encode.run import encode_set
from vidlatent.models.load import abstract_params, model_of

SHAPES = {
    "data.source": "synthetic",
    "data.synthetic.kind": "shapes",
    "data.synthetic.clips": "11",
    "data.synthetic.frames": "13",
    "data.synthetic.height": "16",
    "data.synthetic.width": "16",
    "data.buckets": "((5, 16, 16, 4), (1, 16, 16, 4))",
    "encode.windows": "all",
    "encode.shards": "4",
    "encode.pictures": "0",
}


def write_run(folder, config, model=None):
    """A workdir with random parameters; returns the config."""
    if model is not None:
        with config.unlocked():
            config.model = configs.ConfigDict(model)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (rng.normal(size=x.shape) / 10).astype(x.dtype), abstract_params(model_of(config))
    )
    _write_workdir(config, folder, params)
    return params


def encode(run, output, **changes):
    """``--mode=encode`` of SHAPES, with ``encode_dtype='float32'`` for config.encode.dtype."""
    overrides = {key.replace("_", ".", 1): str(value) for key, value in changes.items()}
    config = configs.read(Path(run), SHAPES | overrides)
    return encode_set(config, Path(run), -1, str(output))


def files(folder):
    """Name -> content of the files of a set."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)  # as in the tests: other programs round otherwise
    run, output, records, *given = sys.argv[1:]
    add, written = encode_write.ShardWriter.add, []

    def add_or_die(self, *args):
        add(self, *args)
        written.append(1)
        if len(written) == int(records):
            os.kill(os.getpid(), signal.SIGKILL)

    encode_write.ShardWriter.add = add_or_die
    encode(run, output, **dict(pair.split("=") for pair in given))
