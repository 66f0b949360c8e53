"""Published classifiers again, in NumPy, from checkpoint tensors by name; channels first."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

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
    taps, number, entries = [], 0, VGG16
    for place, entry in enumerate(entries):
        if entry == "M":
            taps.append(x)
            x = max_pool(x, (2, 2), (2, 2))
            number += 1
            continue
        name = f"features.{number}."
        assert tensors[name + "weight"].shape[0] == entry, place
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
