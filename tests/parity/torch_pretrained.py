"""Published frozen networks in PyTorch, with random weights under their published names.

    python torch_pretrained.py <network> weights.npz io.npz

Runs in an environment with torch. Writes the weights as the published files name them, the input
(``x``, and ``y`` for a pair; channels first, in [-1, 1]) and what comes out (``out``, and
``features`` where a score looks at those).
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

VGG = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]
MIXED = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


def uniform(*shape):
    return torch.rand(shape) * 2 - 1


def unit(x):
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def lpips(trunk, taps):
    layers, channels = trunk
    heads = [torch.rand(1, size, 1, 1) for size in channels]
    x, y = uniform(2, 3, 97, 128), uniform(2, 3, 97, 128)
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]

    def features(h):
        h = (h - shift) / scale
        for number, layer in enumerate(layers):
            h = layer(h)
            if number in taps:
                yield unit(h)

    pairs = zip(features(x), features(y), heads, strict=False)
    out = sum(F.conv2d((a - b).square(), head).mean((1, 2, 3)) for a, b, head in pairs)
    weights = {f"features.{name}": value for name, value in layers.state_dict().items()}
    weights |= {f"lin{number}.model.1.weight": head for number, head in enumerate(heads)}
    return weights, {"x": x, "y": y, "out": out}


def vgg():
    layers, width = [], 3
    for size in VGG:
        if size:
            layers += [nn.Conv2d(width, size, 3, padding=1), nn.ReLU()]
            width = size
        else:
            layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers), (64, 128, 256, 512, 512)


def alexnet():
    layers = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for width, size in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(width, size, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers), (64, 192, 384, 256, 256)


def same(x, window, strides):
    pads = []
    for size, taps, step in zip(x.shape[2:], window, strides, strict=True):
        total = max(taps - (size % step or step), 0)
        pads = [total // 2, total - total // 2, *pads]  # torch lists the last axis first
    return F.pad(x, pads)


def pool(x, window, strides):
    return F.max_pool3d(same(x, window, strides), window, strides)


class Unit(nn.Module):
    def __init__(self, width, size, window=(1, 1, 1), strides=(1, 1, 1)):
        super().__init__()
        self.form = window, strides
        self.conv3d = nn.Conv3d(width, size, window, strides, bias=False)
        self.bn = nn.BatchNorm3d(size)
        nn.init.kaiming_normal_(self.conv3d.weight)
        nn.init.uniform_(self.bn.weight, 0.7, 1.3)
        nn.init.normal_(self.bn.bias, std=0.1)
        self.bn.running_mean.normal_(0, 0.1)
        self.bn.running_var.uniform_(0.5, 1.5)

    def forward(self, x):
        return F.relu(self.bn(self.conv3d(same(x, *self.form))))


class Mixed(nn.Module):
    def __init__(self, width, b0, b1a, b1b, b2a, b2b, b3b):
        super().__init__()
        self.b0, self.b3b = Unit(width, b0), Unit(width, b3b)
        self.b1a, self.b1b = Unit(width, b1a), Unit(b1a, b1b, (3, 3, 3))
        self.b2a, self.b2b = Unit(width, b2a), Unit(b2a, b2b, (3, 3, 3))

    def forward(self, x):
        pooled = self.b3b(pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), pooled], 1)


def i3d():
    net = nn.ModuleDict({"Conv3d_1a_7x7": Unit(3, 64, (7, 7, 7), (2, 2, 2))})
    net["Conv3d_2b_1x1"], net["Conv3d_2c_3x3"] = Unit(64, 64), Unit(64, 192, (3, 3, 3))
    width = 192
    for name, sizes in MIXED.items():
        net["Mixed_" + name] = Mixed(width, *sizes)
        width = sizes[0] + sizes[2] + sizes[4] + sizes[5]
    net["logits"] = nn.ModuleDict({"conv3d": nn.Conv3d(width, 400, 1)})
    net.eval()
    x = uniform(1, 3, 17, 224, 224)
    h = pool(net["Conv3d_1a_7x7"](x), (1, 3, 3), (1, 2, 2))
    h = pool(net["Conv3d_2c_3x3"](net["Conv3d_2b_1x1"](h)), (1, 3, 3), (1, 2, 2))
    for name in MIXED:
        if name in ("4b", "5b"):
            h = pool(h, (3, 3, 3) if name == "4b" else (2, 2, 2), (2, 2, 2))
        h = net["Mixed_" + name](h)
    out = net["logits"]["conv3d"](F.avg_pool3d(h, (2, 7, 7), 1))[..., 0, 0].mean(2)
    return net.state_dict(), {"x": x, "out": out}


def c3d():
    weights = {}
    stages, width = ("1a", "2a", "3a 3b", "4a 4b", "5a 5b"), 3
    for stage, size in zip(stages, (64, 128, 256, 512, 512), strict=True):
        for name in stage.split():
            weights[f"conv{name}/W"] = torch.randn(size, width, 3, 3, 3) * (2 / 27 / width) ** 0.5
            weights[f"conv{name}/b"] = torch.randn(size) * 0.1
            width = size
    for name, size, width in (("fc6", 4096, 8192), ("fc7", 4096, 4096), ("fc8", 101, 4096)):
        weights[name + "/W"] = torch.randn(size, width) * (1 / width) ** 0.5
        weights[name + "/b"] = torch.randn(size) * 0.1
    weights["mean"] = torch.rand(3, 16, 128, 171) * 50 + 90
    x = uniform(1, 3, 16, 64, 80)
    frames = (x.flip(1) * 128).transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, (112, 112), mode="bilinear", align_corners=True)
    h = frames[None].transpose(1, 2) + 128 - weights["mean"][..., 8:120, 8:120]
    for stage in stages:
        for name in stage.split():
            h = F.relu(F.conv3d(h, weights[f"conv{name}/W"], weights[f"conv{name}/b"], padding=1))
        window = (1, 2, 2) if stage == "1a" else (2, 2, 2)
        h = F.max_pool3d(h, window, window, ceil_mode=True)
    h = h.flatten(1)
    for name in ("fc6", "fc7"):
        h = F.relu(F.linear(h, weights[name + "/W"], weights[name + "/b"]))
    return weights, {"x": x, "out": F.linear(h, weights["fc8/W"], weights["fc8/b"])}


def dinov2(width=384, depth=12, heads=6):
    """The small model under its authors' names, its table resampled as transformers does."""
    block = {
        "norm1": (width,),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "norm2": (width,),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }
    layers = {f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()}
    layers |= {"patch_embed.proj": (width, 3, 14, 14), "norm": (width,)}
    weights = {}
    for name, shape in layers.items():
        spread = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
        weights[name + ".weight"] = torch.randn(shape) * spread + (len(shape) == 1)
        weights[name + ".bias"] = torch.randn(shape[0]) * 0.1
    for i in range(depth):
        weights |= {f"blocks.{i}.ls{n}.gamma": torch.rand(width) for n in (1, 2)}
    weights["cls_token"], weights["mask_token"] = torch.randn(1, 1, width), torch.zeros(1, width)
    weights["pos_embed"] = torch.randn(1, 1 + 37 * 37, width) * 0.5

    def dense(h, name):
        return F.linear(h, weights[name + ".weight"], weights[name + ".bias"])

    def norm(h, name):
        return F.layer_norm(h, (width,), weights[name + ".weight"], weights[name + ".bias"], 1e-6)

    x = uniform(2, 3, 256, 256)
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    seen = F.interpolate(x, (224, 224), mode="bilinear", align_corners=False)
    h = F.conv2d(
        ((seen + 1) / 2 - mean) / std,
        weights["patch_embed.proj.weight"],
        weights["patch_embed.proj.bias"],
        stride=14,
    )
    h = torch.cat([weights["cls_token"].expand(2, 1, width), h.flatten(2).transpose(1, 2)], 1)
    table = weights["pos_embed"][:, 1:].reshape(1, 37, 37, width).permute(0, 3, 1, 2)
    table = F.interpolate(table, (16, 16), mode="bicubic", align_corners=False)
    h = h + torch.cat([weights["pos_embed"][:, :1], table.flatten(2).transpose(1, 2)], 1)
    for i in range(depth):
        at = f"blocks.{i}."
        qkv = dense(norm(h, at + "norm1"), at + "attn.qkv").reshape(2, 257, 3, heads, -1)
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        y = dense(y.transpose(1, 2).flatten(2), at + "attn.proj")
        h = h + weights[at + "ls1.gamma"] * y
        y = dense(F.gelu(dense(norm(h, at + "norm2"), at + "mlp.fc1")), at + "mlp.fc2")
        h = h + weights[at + "ls2.gamma"] * y
    return weights, {"x": x, "out": norm(h, "norm")[:, 1:].reshape(2, 16, 16, width)}


def videomae(width, depth, heads, hidden, patch, grid, classes, frames):
    """VideoMAE V2's encoder and classifier under its authors' names, with ``depth`` blocks."""
    shapes = {"patch_embed.proj": (width, 3, 2, patch, patch), "head": (classes, width)}
    block = {"attn.proj": (width, width), "mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    norms = ["fc_norm"]
    for i in range(depth):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
        norms += [f"blocks.{i}.norm1", f"blocks.{i}.norm2"]
    weights = {
        name + ".weight": torch.randn(s) * np.prod(s[1:]) ** -0.5 for name, s in shapes.items()
    }
    weights |= {name + ".bias": torch.randn(shape[0]) * 0.1 for name, shape in shapes.items()}
    weights |= {name + ".weight": 1 + torch.randn(width) * 0.1 for name in norms}
    weights |= {name + ".bias": torch.randn(width) * 0.1 for name in norms}
    for i in range(depth):
        weights[f"blocks.{i}.attn.qkv.weight"] = torch.randn(3 * width, width) * width**-0.5
        for name in "qv":  # keys have no bias
            weights[f"blocks.{i}.attn.{name}_bias"] = torch.randn(width) * 0.1

    def dense(h, name):
        return F.linear(h, weights[name + ".weight"], weights[name + ".bias"])

    def norm(h, name):
        return F.layer_norm(h, (width,), weights[name + ".weight"], weights[name + ".bias"], 1e-6)

    x = uniform(1, 3, frames, patch * grid[1], patch * grid[2])
    kernel, bias = (weights["patch_embed.proj." + name] for name in ("weight", "bias"))
    h = F.conv3d((x + 1) / 2, kernel, bias, stride=kernel.shape[2:])
    h = (h + positions(width, grid, h.shape[2])).flatten(2).transpose(1, 2)
    for i in range(depth):
        at = f"blocks.{i}."
        q_bias, v_bias = (weights[f"{at}attn.{name}_bias"] for name in "qv")
        bias = torch.cat([q_bias, torch.zeros(width), v_bias])
        qkv = F.linear(norm(h, at + "norm1"), weights[at + "attn.qkv.weight"], bias)
        qkv = qkv.reshape(*h.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv)
        h = h + dense(y.transpose(1, 2).flatten(2), at + "attn.proj")
        h = h + dense(F.gelu(dense(norm(h, at + "norm2"), at + "mlp.fc1")), at + "mlp.fc2")
    features = norm(h.mean(1), "fc_norm")
    return weights, {"x": x, "out": dense(features, "head"), "features": features}


def positions(width, grid, pairs):
    """Alternating sines and cosines over the tokens of ``grid``, stretched to ``pairs``."""
    rates = 10000.0 ** (-2 * (torch.arange(width, dtype=torch.float64) // 2) / width)
    angles = torch.arange(int(np.prod(grid)), dtype=torch.float64)[:, None] * rates
    table = torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], 2).flatten(1)
    table = table.float().T.reshape(1, width, *grid)
    if pairs == grid[0]:
        return table
    stretch = ((pairs + 0.1) / grid[0], 1.0, 1.0)
    return F.interpolate(table, scale_factor=stretch, mode="trilinear")


NETWORKS = {
    "lpips_vgg": lambda: lpips(vgg(), (3, 8, 15, 22, 29)),
    "lpips_alex": lambda: lpips(alexnet(), (1, 4, 7, 9, 11)),
    "i3d_kinetics400": i3d,
    "c3d_ucf101": c3d,
    "dinov2_vits14": dinov2,
    # The giant's own sizes, in three of its forty blocks.
    "videomae_g_of_3": lambda: videomae(1408, 3, 16, 6144, 14, (8, 16, 16), 174, frames=16),
    "videomae_tiny": lambda: videomae(16, 2, 2, 24, 16, (8, 2, 2), 5, frames=11),
}


def main(network, weights_path, io_path):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with torch.no_grad():
        weights, arrays = NETWORKS[network]()
    np.savez(weights_path, **{name: value.numpy() for name, value in weights.items()})
    np.savez(io_path, **{name: value.numpy() for name, value in arrays.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
