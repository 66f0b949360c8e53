"""Reading the Reducio cases: weights, fields and arrays in our layouts."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.layers.positions import interleaved_sincos
from vidlatent.models.tokenizers.reducio import build_reducio
from vidlatent.models.tokenizers.reducio.names import REDUCIO_TABLE
from vidlatent.weights.importer import export_names, import_params


def channels_last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def pixels(x):
    return channels_last(x.astype(np.float32) / 127.5 - 1)


def fields_of(meta: dict) -> dict:
    """Our model fields from the case's constructor arguments."""
    video = meta["ddconfig"] if "ddconfig" in meta else {}
    frame = meta["ddconfig_2d"] if "ddconfig_2d" in meta else {}
    z = video["z_channels"] if video else 1
    fields = {"latent_channels": z, "width": video["ch"] if video else frame["ch"]}
    if video:
        levels = len(video["ch_mult"])
        fields |= {
            "multipliers": video["ch_mult"],
            "blocks": video["num_res_blocks"],
            "time_factor": 2 ** video["f_t"],
            "space_factor": 2 ** (video["f_s"] if "f_s" in video else levels - 1),
            "frames": video["temp_res"],
            "fuse": video["ch_fuse"],
            "fuse_middle": video["fuse_mid"],
            "fuse_window": _sides(video["window_size"]),
        }
    if frame:
        fields |= {
            "content_width": frame["ch"],
            "content_multipliers": frame["ch_mult"],
            "content_blocks": frame["num_res_blocks"],
        }
    else:
        fields |= {"content": "none"}
    return fields


def _sides(window) -> tuple[int, int]:
    """Rows and columns of a window, which a case gives by one side or by both."""
    return tuple(window) if isinstance(window, list) else (window, window)


def with_sinusoids(tensors: dict, names: dict) -> dict:
    """The fixed tables, which the cases leave out."""
    tables = {
        name: interleaved_sincos(shape[1], shape[3])[None, :, None]
        for name, shape in names.items()
        if name.endswith("pos_embed")
    }
    return {**tensors, **tables}


@functools.cache
def fast_program(model, method):
    """A compiled method. Each runs once: compiling them is what takes time."""

    def call(params, *args, **kwargs):
        return model.apply({"params": params}, *args, **kwargs, method=method)

    return jax.jit(call, compiler_options={"xla_backend_optimization_level": 0})


class Case:
    """A case file; ``model`` and ``params`` where it is of a whole network."""

    def __init__(self, path):
        with np.load(path) as stored:
            arrays = {key: stored[key] for key in stored.files}
        self.meta = json.loads(str(arrays["meta"]))
        exponents = self.meta["weight_exp"] if "weight_exp" in self.meta else {}
        self.tensors = {
            key.removeprefix("w/"): np.ldexp(
                value.astype(np.float32), -exponents[key.removeprefix("w/")]
            )
            for key, value in arrays.items()
            if key.startswith("w/")
        }
        self.io = {k.removeprefix("io/"): v for k, v in arrays.items() if k.startswith("io/")}

    def load(self, fields=None, prefix=""):
        """Build the model and read the weights, whose names lack ``prefix``."""
        self.model = build_reducio(fields or fields_of(self.meta), jnp.float32)
        spec = self.model.latent_spec
        video = jax.ShapeDtypeStruct((1, spec.rule.first, spec.h, spec.w, 3), jnp.float32)
        self.shapes = jax.eval_shape(self.model.init, jax.random.key(0), video)["params"]
        self.names = export_names(self.shapes, REDUCIO_TABLE)
        tensors = {prefix + name: value for name, value in self.tensors.items()}
        tensors = tensors if prefix else with_sinusoids(tensors, self.names)
        self.params = import_params(tensors, REDUCIO_TABLE, self.shapes, partial=bool(prefix))
        return self

    def run(self, method, *args, **fields):
        return fast_program(self.model.clone(**fields), method)(self.params, *args)

    @property
    def video(self):
        return pixels(self.io["video_u8"])

    @property
    def frame(self):
        return self.video[:, int(self.io["content_index"])]
