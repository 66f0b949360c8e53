"""Published classifiers again, in NumPy, from checkpoint tensors by name; channels first."""

import jax
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import erf


def quick(apply):
    """Compiled without costly optimisation: each program runs once, on a toy."""
    return jax.jit(apply, compiler_options={"xla_backend_optimization_level": 0})


VGG16 = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


def conv(x, weight, bias=None, strides=None, padding=None):
    """``[N, C, *space]`` by ``[O, C, *window]``; ``padding``: (before, after) of each axis."""
    space = weight.ndim - 2
    if padding is not None:
        x = np.pad(x, [(0, 0), (0, 0), *padding])
    views = sliding_window_view(x, weight.shape[2:], axis=tuple(range(2, 2 + space)))
    for axis, step in enumerate(strides or (1,) * space):
        views = views[(slice(None),) * (2 + axis) + (slice(None, None, step),)]
    taps = list(range(views.ndim - space, views.ndim))
    y = np.tensordot(views, weight, axes=([1, *taps], [1, *range(2, 2 + space)]))
    y = np.moveaxis(y, -1, 1)
    return y if bias is None else y + bias.reshape(-1, *(1,) * space)


def max_pool(x, window, strides, padding=None):
    """Largest of each window; padded with zeros, as inputs here are never negative."""
    space = len(window)
    if padding is not None:
        x = np.pad(x, [(0, 0), (0, 0), *padding])
    views = sliding_window_view(x, window, axis=tuple(range(2, 2 + space)))
    for axis, step in enumerate(strides):
        views = views[(slice(None),) * (2 + axis) + (slice(None, None, step),)]
    return views.max(axis=tuple(range(views.ndim - space, views.ndim)))


def vgg16_taps(x, tensors):
    """Outputs of relu1_2, 2_2, 3_3, 4_3 and 5_3, as torchvision numbers the layers."""
    taps, number = [], 0
    for entry in VGG16:
        if entry == "M":
            taps.append(x)
            number += 1
            continue
        if taps and taps[-1] is x:
            x = max_pool(x, (2, 2), (2, 2))
        name = f"features.{number}."
        assert tensors[name + "weight"].shape[0] == entry
        x = conv(x, tensors[name + "weight"], tensors[name + "bias"], None, [(1, 1)] * 2)
        x = np.maximum(x, 0)
        number += 2  # the convolution and its ReLU
    return taps


def alexnet_taps(x, tensors):
    taps = []
    for number, stride, pad, pool in ((0, 4, 2, 0), (3, 1, 2, 3), (6, 1, 1, 3), (8, 1, 1, 0)):
        if pool:
            x = max_pool(x, (3, 3), (2, 2))
        x = _layer(x, tensors, number, stride, pad)
        taps.append(x)
    return [*taps, _layer(x, tensors, 10, 1, 1)]


def _layer(x, tensors, number, stride, pad):
    weight, bias = (tensors[f"features.{number}.{part}"] for part in ("weight", "bias"))
    return np.maximum(conv(x, weight, bias, (stride,) * 2, [(pad, pad)] * 2), 0)


def lpips(a, b, tensors, taps):
    """LPIPS v0.1 of images ``[N, 3, H, W]`` in [-1, 1], in float64."""
    shift = np.array([-0.030, -0.088, -0.188])[:, None, None]
    scale = np.array([0.458, 0.448, 0.450])[:, None, None]
    features = [taps((x.astype(np.float64) - shift) / scale, tensors) for x in (a, b)]
    total = 0
    for level, (x, y) in enumerate(zip(*features, strict=True)):
        x, y = (v / (np.sqrt((v**2).sum(axis=1, keepdims=True)) + 1e-10) for v in (x, y))
        head = tensors[f"lin{level}.model.1.weight"]
        total = total + conv((x - y) ** 2, head).mean(axis=(1, 2, 3))
    return total


def same(x, window, strides):
    """TensorFlow's padding by its own rule of pads for each remainder."""
    pads = []
    for size, taps, step in zip(x.shape[2:], window, strides, strict=True):
        total = max(taps - (step if size % step == 0 else size % step), 0)
        pads.append((total // 2, total - total // 2))
    return pads


def i3d_logits(x, tensors, last_pool):
    """I3D by the names of pytorch-i3d: ``[B, 3, T, H, W]`` in [-1, 1] to ``[B, classes]``."""

    def unit(x, name, strides=(1, 1, 1)):
        weight = tensors[f"{name}.conv3d.weight"]
        x = conv(x, weight, None, strides, same(x, weight.shape[2:], strides))
        scale, bias, mean, variance = (
            tensors[f"{name}.bn.{part}"].reshape(-1, 1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return np.maximum((x - mean) / np.sqrt(variance + 1e-5) * scale + bias, 0)

    def pool(x, window, strides):
        return max_pool(x, window, strides, same(x, window, strides))

    x = pool(unit(x, "Conv3d_1a_7x7", (2, 2, 2)), (1, 3, 3), (1, 2, 2))
    x = unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3")
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for name in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"):
        if name in ("4b", "5b"):
            x = pool(x, (3, 3, 3) if name == "4b" else (2, 2, 2), (2, 2, 2))
        block = f"Mixed_{name}."
        branches = [unit(x, block + "b0")]
        branches += [unit(unit(x, f"{block}b{n}a"), f"{block}b{n}b") for n in (1, 2)]
        branches.append(unit(pool(x, (3, 3, 3), (1, 1, 1)), block + "b3b"))
        x = np.concatenate(branches, axis=1)
    x = sliding_window_view(x, last_pool, axis=(2, 3, 4)).mean(axis=(-1, -2, -3))
    y = conv(x, tensors["logits.conv3d.weight"], tensors["logits.conv3d.bias"])
    return y.mean(axis=(2, 3, 4))


def c3d_logits(x, tensors):
    """C3D of TGAN2 by its Chainer names, of frames at the network's own size."""
    x = x[:, ::-1] * 128 + 128 - tensors["mean"]
    for stage, names in enumerate(("1a", "2a", "3a 3b", "4a 4b", "5a 5b")):
        for name in names.split():
            weight, bias = (tensors[f"conv{name}/{part}"] for part in "Wb")
            x = np.maximum(conv(x, weight, bias, None, [(1, 1)] * 3), 0)
        window = (2 if stage else 1, 2, 2)
        tail = [(0, -size % side) for size, side in zip(x.shape[2:], window, strict=True)]
        x = max_pool(x, window, window, tail)
    x = x.reshape(len(x), -1)
    for name in ("fc6", "fc7"):
        x = np.maximum(x @ tensors[f"{name}/W"].T + tensors[f"{name}/b"], 0)
    return x @ tensors["fc8/W"].T + tensors["fc8/b"]


def videomae_features(x, tensors, heads, grid):
    """VideoMAE's ``fc_norm`` of the mean token; ``[B, 3, T, H, W]`` in [0, 1]."""
    weight = tensors["patch_embed.proj.weight"]
    x = conv(x, weight, tensors["patch_embed.proj.bias"], weight.shape[2:])
    batch, width, pairs = x.shape[:3]
    table = np.array(
        [
            [
                (np.cos if j % 2 else np.sin)(place / 10000 ** (2 * (j // 2) / width))
                for j in range(width)
            ]
            for place in range(int(np.prod(grid)))
        ]
    ).reshape(*grid, width)
    if pairs != grid[0]:
        places = (np.arange(pairs) + 0.5) * grid[0] / (pairs + 0.1) - 0.5
        places = np.clip(places, 0, grid[0] - 1)
        low = np.floor(places).astype(int)
        part = (places - low)[:, None, None, None]
        table = table[low] * (1 - part) + table[np.minimum(low + 1, grid[0] - 1)] * part
    x = np.moveaxis(x, 1, -1) + table
    x = x.reshape(batch, -1, width)
    for block in range(sum(name.endswith("attn.q_bias") for name in tensors)):
        parts = {
            n.split(".", 2)[2]: v for n, v in tensors.items() if n.startswith(f"blocks.{block}.")
        }
        x = x + _attention(_norm(x, parts, "norm1"), parts, heads)
        h = _norm(x, parts, "norm2") @ parts["mlp.fc1.weight"].T + parts["mlp.fc1.bias"]
        h = h * (1 + erf(h / np.sqrt(2))) / 2
        x = x + h @ parts["mlp.fc2.weight"].T + parts["mlp.fc2.bias"]
    return _norm(x.mean(axis=1), tensors, "fc_norm")


def _norm(x, tensors, name):
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
    return x * tensors[name + ".weight"] + tensors[name + ".bias"]


def _attention(x, parts, heads):
    batch, count, width = x.shape
    zeros = np.zeros(width)
    bias = np.concatenate([parts["attn.q_bias"], zeros, parts["attn.v_bias"]])
    qkv = (x @ parts["attn.qkv.weight"].T + bias).reshape(batch, count, 3, heads, -1)
    q, k, v = np.moveaxis(qkv, 2, 0).transpose(0, 1, 3, 2, 4)
    scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(width // heads))
    y = (scores / scores.sum(axis=-1, keepdims=True)) @ v
    y = y.transpose(0, 2, 1, 3).reshape(batch, count, width)
    return y @ parts["attn.proj.weight"].T + parts["attn.proj.bias"]
