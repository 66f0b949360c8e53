"""The PyTorch side of ``benchmarks/vs_torch.py``; runs in an environment with torch.

    python torch_models.py <name in NETWORKS> weights.safetensors '<arguments>' <threads>

Weights have their published names. IV-VAE is a plain functional network written for this
measurement, which gets one group of frames at a time as the released code does. DC-AE is Diffusers'
AutoencoderDC, the block of Wan is its WanTransformerBlock; for Reducio-VAE see
``torch_reducio.py``.

Each line of JSON on standard input says what to run once; it is answered by a line with the seconds
of wall time and of processor time.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch_reducio import Reducio


class IVVAE:
    """Frames are the batch: arrays ``[T, C, H, W]``, halves A and B along C."""

    def __init__(self, weights):
        self.w = weights
        self.size = {}
        for name in weights:
            part = ".".join(name.split(".")[:2])
            if part.endswith(("downsamples", "upsamples")):
                index = int(name.split(".")[2]) + 1
                self.size[part] = max(self.size.get(part, 0), index)

    def conv(self, x, name, **options):
        weight = self.w[name + ".weight"]
        weight = weight[:, :, 0] if weight.ndim == 5 else weight
        return F.conv2d(x, weight, self.w[name + ".bias"], **options)

    def paired(self, x, name, group):
        """Plain convolution beside a group causal one."""
        past = self.cache.get(name, x[:1])
        self.cache[name] = x[-1:].clone()
        groups = x.split(group if len(x) > 1 else 1)
        window = []
        for frames in groups:
            window.append(torch.cat([past, frames, torch.zeros_like(past)]))
            past = frames[-1:]
        window = torch.stack(window).transpose(1, 2)
        weight, bias = self.w[name + ".conv_3d.weight"], self.w[name + ".conv_3d.bias"]
        motion = F.conv3d(window, weight, bias, padding=(0, 1, 1)).transpose(1, 2).flatten(0, 1)
        return torch.cat([self.conv(x, name + ".conv_2d", padding=1), motion], 1)

    def norm(self, x, name):
        halves = [F.normalize(half, dim=1) * half.shape[1] ** 0.5 for half in x.chunk(2, 1)]
        return torch.cat(halves, 1) * self.w[name + ".gamma"][:, 0]

    def conv3(self, x, name, group):
        if name + ".conv.weight" in self.w:
            return self.conv(x, name + ".conv", padding=1)
        return self.paired(x, name, group)

    def block(self, x, name, group):
        y = self.conv3(F.silu(self.norm(x, name + ".residual.0")), name + ".residual.2", group)
        y = self.conv3(F.silu(self.norm(y, name + ".residual.3")), name + ".residual.6", group)
        if name + ".shortcut.conv.weight" in self.w:
            x = self.conv(x, name + ".shortcut.conv")
        elif name + ".shortcut.conv_2d.weight" in self.w:
            x = self.pair_of_1x1(x, name + ".shortcut")
        return x + y

    def pair_of_1x1(self, x, name):
        return torch.cat([self.conv(x, f"{name}.conv_{k}") for k in ("2d", "3d")], 1)

    def attention(self, x, name):
        outputs = []
        for half, branch in zip(x.chunk(2, 1), ("Attention_2d", "Attention_3d"), strict=True):
            at = f"{name}.{branch}"
            h = F.normalize(half, dim=1) * half.shape[1] ** 0.5 * self.w[at + ".norm.gamma"]
            q, k, v = self.conv(h, at + ".to_qkv").flatten(2).transpose(1, 2).chunk(3, -1)
            h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(half.shape)
            outputs.append(half + self.conv(h, at + ".proj"))
        return torch.cat(outputs, 1)

    def down(self, x, name):
        parts = [
            self.conv(F.pad(half, (0, 1, 0, 1)), f"{name}.resample_{k}.1", stride=2)
            for half, k in zip(x.chunk(2, 1), ("2d", "3d"), strict=True)
        ]
        if name + ".time_conv.weight" in self.w and len(x) > 1:
            weight, bias = self.w[name + ".time_conv.weight"], self.w[name + ".time_conv.bias"]
            merged = F.conv3d(parts[1].transpose(0, 1)[None], weight, bias, stride=(2, 1, 1))
            parts = [parts[0][::2], merged[0].transpose(0, 1)]
        return torch.cat(parts, 1)

    def up(self, x, name, first):
        a, b = x.chunk(2, 1)
        if name + ".time_conv.weight" in self.w and not first:
            pairs = torch.stack(self.conv(b, name + ".time_conv").chunk(2, 1), 1)
            a, b = a.repeat_interleave(2, 0), pairs.flatten(0, 1)
        parts = [
            self.conv(F.interpolate(half, scale_factor=2), f"{name}.resample_{k}.1", padding=1)
            for half, k in zip((a, b), ("2d", "3d"), strict=True)
        ]
        return torch.cat(parts, 1)

    def run(self, x, part, group, first=False):
        """The modules of ``part`` in order; the group's length follows the resampling."""
        side = part.split(".")[0]
        for i in range(self.size.get(part, 3)):
            name = f"{part}.{i}"
            if name + ".resample_2d.1.weight" in self.w:
                timed = name + ".time_conv.weight" in self.w
                x = self.down(x, name) if side == "encoder" else self.up(x, name, first)
                if timed:
                    group = group // 2 if side == "encoder" else group * 2
            elif name + ".Attention_2d.to_qkv.weight" in self.w:
                x = self.attention(x, name)
            else:
                x = self.block(x, name, group)
        return x

    def encode(self, video):
        self.cache, means = {}, []
        for chunk in (video[:1], *(video[1:].split(4) if len(video) > 1 else ())):
            x = self.paired(chunk, "encoder.conv1", 4)
            x = self.run(self.run(x, "encoder.downsamples", 4), "encoder.middle", 1)
            x = F.silu(self.norm(x, "encoder.head.0"))
            views = []
            for reach in (0, 1, 3, 6, 9, 12):
                options = {"padding": reach, "dilation": max(reach, 1)}
                views.append(
                    self.conv(x, f"encoder.head.2.PAC_{reach}.conv", **options).chunk(2, 1)
                )
            x = torch.cat([view[half] for half in (0, 1) for view in views], 1)
            x = self.pair_of_1x1(self.conv(x, "encoder.head.2.PAC_conv.conv"), "conv1")
            means.append(torch.cat(x.chunk(4, 1)[::2], 1))
        return torch.cat(means)

    def decode(self, latent):
        self.cache, frames = {}, []
        for i, z in enumerate(latent.split(1)):
            x = self.conv(self.pair_of_1x1(z, "conv2"), "decoder.conv1.conv", padding=1)
            x = self.run(self.run(x, "decoder.middle", 1), "decoder.upsamples", 1, i == 0)
            x = F.silu(self.norm(x, "decoder.head.0"))
            a, b = self.paired(x, "decoder.head.2", 4).chunk(2, 1)
            frames.append(torch.cat([a[:1], b[1:]]))
        return torch.cat(frames)


class DCAE:
    def __init__(self, weights, config):
        from diffusers import AutoencoderDC

        self.net = AutoencoderDC(**config)
        self.net.load_state_dict(weights)
        self.net.eval()

    def encode(self, video):
        return self.net.encode(video, return_dict=False)[0]

    def decode(self, latent):
        return self.net.decode(latent, return_dict=False)[0]


class WanBlock:
    def __init__(self, weights, config):
        from diffusers.models.transformers import transformer_wan as wan

        fixed = {"qk_norm": "rms_norm_across_heads", "cross_attn_norm": True}
        self.net = wan.WanTransformerBlock(**config, **fixed)
        self.net.load_state_dict({k.removeprefix("blocks.0."): w for k, w in weights.items()})
        self.net.eval()
        self.rotary = wan.WanRotaryPosEmbed(config["dim"] // config["num_heads"], (1, 1, 1), 1024)

    def forward(self, states, text, time, *tables):
        return self.net(states, text, time, tables)

    def prepared(self, states, text, time, grid):
        """Arrays as they are; of the tokens' grid the tables of rotary positions."""
        return states, text, time, *self.rotary(torch.empty(1, 1, *grid.tolist()))


def channels_second(*arrays):
    return [array.movedim(-1, 1).contiguous() for array in arrays]


def channels_last(array):
    return array.movedim(1, -1)


# Name -> network, given its weights by published name and the constructor arguments of ``MODELS``.
NETWORKS = {
    "ivvae": lambda weights, config: IVVAE(weights),
    "dcae": DCAE,
    "reducio": lambda weights, config: Reducio(weights),
    "wan-block": WanBlock,
}


def once(function, inputs):
    """The result; the seconds of wall time and of processor time."""
    start = time.perf_counter(), time.process_time()
    y = function(*inputs)
    return y, (time.perf_counter() - start[0], time.process_time() - start[1])


def main():
    name, weights, config, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    net = NETWORKS[name](load_file(weights), json.loads(config))
    block = isinstance(net, WanBlock)
    inputs = {}
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        # "files" are there the first time that something is called: what it reads, and writes to.
        told = json.loads(line)
        call, files = told["call"], told["files"]
        with torch.inference_mode():
            if files:
                arrays = [torch.from_numpy(array) for array in np.load(files[0]).values()]
                inputs[call] = (net.prepared if block else channels_second)(*arrays)
            result, seconds = once(getattr(net, call), inputs[call])
        if files:
            np.save(files[1], (result if block else channels_last(result)).numpy())
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
