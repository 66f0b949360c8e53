"""Makes ``wan21.npz`` and ``wan22.npz``: narrow autoencoders of Wan's with random weights.

Needs torch and diffusers, which the package does not, so it is run in an environment of its own:

    python -m venv cases && cases/bin/pip install torch diffusers safetensors
    cases/bin/python tests/reference/wan_vae/make_case.py

Weights are float16 numbers and everything is computed in float64. A case holds ``config`` (the
arguments of Diffusers' class, and the number of parameters at the published width as
``published_parameters``), weights ``w/<name>``, ``video_u8``, ``mean``, ``logvar``, ``latent`` and
``decoded``, in PyTorch's order of axes.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKLWan

PUBLISHED = {
    "wan21": {},
    "wan22": {
        "base_dim": 160,
        "decoder_base_dim": 256,
        "z_dim": 48,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
    },
}
NARROW = {
    "wan21": {"base_dim": 4, "z_dim": 4},
    "wan22": {"base_dim": 3, "decoder_base_dim": 4, "z_dim": 6},
}
FRAMES, HEIGHT, WIDTH = 9, 32, 48


def count_published(name):
    with torch.device("meta"):
        model = AutoencoderKLWan(**PUBLISHED[name])
    return sum(parameter.numel() for parameter in model.parameters())


def draw_weights(model, rng):
    for name, parameter in model.named_parameters():
        x = rng.normal(size=tuple(parameter.shape))
        if name.endswith("gamma"):
            x = 1 + 0.2 * x
        elif name.endswith("bias"):
            x = 0.1 * x
        else:
            x = x / np.sqrt(parameter[0].numel())
        # The last convolution is small, so that nothing reaches the limits at which decode clips.
        x = x * (0.1 if name.startswith("decoder.conv_out") else 1)
        parameter.data = torch.from_numpy(x.astype(np.float16).astype(np.float64))


def make(name, seed):
    arguments = {**PUBLISHED[name], **NARROW[name]}
    model = AutoencoderKLWan(**arguments).double().eval()
    rng = np.random.default_rng(seed)
    draw_weights(model, rng)
    video = rng.integers(0, 256, (1, 3, FRAMES, HEIGHT, WIDTH)).astype(np.uint8)
    with torch.no_grad():
        posterior = model.encode(torch.from_numpy(video / 127.5 - 1)).latent_dist
        latent = rng.normal(size=tuple(posterior.mean.shape)).astype(np.float32)
        decoded = model.decode(torch.from_numpy(latent.astype(np.float64))).sample
    assert decoded.abs().max() < 1, "clipped"
    config = {
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "published_parameters": count_published(name),
        **{key: model.config[key] for key in sorted(model.config) if key[0] != "_"},
    }
    arrays = {"w/" + k: v.numpy().astype(np.float16) for k, v in model.state_dict().items()}
    found = {"mean": posterior.mean, "logvar": posterior.logvar, "decoded": decoded}
    arrays |= {key: value.numpy().astype(np.float32) for key, value in found.items()}
    path = Path(__file__).parent / f"{name}.npz"
    np.savez_compressed(path, config=json.dumps(config), video_u8=video, latent=latent, **arrays)
    print(path, path.stat().st_size, float(decoded.abs().max()), float(posterior.mean.abs().max()))


if __name__ == "__main__":
    for number, kind in enumerate(PUBLISHED):
        make(kind, number)
