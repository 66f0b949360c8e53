"""Reducio-VAE in PyTorch for ``benchmarks/vs_torch.py``: a plain functional network.

Written from the published layers under the released names, with PyTorch's own fused operations
(convolution, group norm, attention). It works on one clip; arrays are ``[1, C, T, H, W]``.
"""

import torch
import torch.nn.functional as F


class Reducio:
    """Levels, blocks and fusions are read off the names of the weights."""

    def __init__(self, weights):
        self.w = weights
        self.frame = None

    def count(self, stem):
        """How many of ``stem0``, ``stem1``, ... there are."""
        return len({k[len(stem) :].split(".")[0] for k in self.w if k.startswith(stem)})

    def conv(self, x, name, **options):
        weight, bias = self.w[name + ".weight"], self.w[name + ".bias"]
        run = F.conv3d if weight.ndim == 5 else F.conv2d
        options.setdefault("padding", tuple(size // 2 for size in weight.shape[2:]))
        return run(x, weight, bias, **options)

    def norm(self, x, name):
        return F.group_norm(x, 32, self.w[name + ".weight"], self.w[name + ".bias"], 1e-6)

    def block(self, x, name):
        h = self.conv(F.silu(self.norm(x, name + ".norm1")), name + ".conv1")
        h = self.conv(F.silu(self.norm(h, name + ".norm2")), name + ".conv2")
        if name + ".nin_shortcut.weight" in self.w:
            x = self.conv(x, name + ".nin_shortcut")
        return x + h

    def attention(self, x, name):
        h = self.norm(x, name + ".norm")
        q, k, v = (
            self.conv(h, f"{name}.{part}").flatten(2).unflatten(1, (8, -1)).transpose(2, 3)
            for part in "qkv"
        )
        h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        return x + self.conv(h, name + ".proj_out")

    def fusion(self, x, content, name):
        batch, width, frames, *size = x.shape
        tokens = x.movedim(1, -1) + self.w[name + ".pos_embed"][:, :, :, None]
        norm = self.w[name + ".norm.weight"], self.w[name + ".norm.bias"]
        y = F.layer_norm(tokens, (width,), *norm, 1e-5)
        context = content.flatten(2).transpose(1, 2)

        def heads(z, part):
            z = F.linear(z.flatten(1, -2), self.w[f"{name}.attn.{part}.weight"])
            return z.unflatten(-1, (-1, 64)).transpose(1, 2)

        y = F.scaled_dot_product_attention(
            heads(y, "to_q"), heads(context, "to_k"), heads(context, "to_v")
        )
        y = y.transpose(1, 2).flatten(2)
        out = self.w[name + ".attn.to_out.0.weight"], self.w[name + ".attn.to_out.0.bias"]
        return (tokens + F.linear(y, *out).reshape(tokens.shape)).movedim(-1, 1)

    def down(self, x, name):
        weight = self.w[name + ".weight"]
        halved = tuple(2 if size == 3 else 1 for size in weight.shape[2:])
        ends = [part for step in reversed(halved) for part in (0, step - 1)]
        return self.conv(F.pad(x, ends), name, stride=halved, padding=0)

    def encoder(self, x, side):
        """Deepest features, and the pyramid: each level before its halving, then the middle."""
        pyramid = []
        x = self.conv(x, side + ".conv_in")
        for level in range(self.count(side + ".down.")):
            at = f"{side}.down.{level}."
            for i in range(self.count(at + "block.")):
                x = self.block(x, f"{at}block.{i}")
            pyramid.append(x)
            if at + "downsample.conv.weight" in self.w:
                x = self.down(x, at + "downsample.conv")
        x = self.attention(self.block(x, side + ".mid.block_1"), side + ".mid.attn_1")
        return x, [*pyramid, x]

    def encode(self, video):
        """``[T, C, H, W]`` -> normalised latent of the mean ``[t, c, h, w]``."""
        self.frame = video[(len(video) - 1) // 2][None]
        x, _ = self.encoder(video.transpose(0, 1)[None], "encoder_3d")
        x = self.block(x, "encoder_3d.mid.block_2")
        x = self.conv(F.silu(self.norm(x, "encoder_3d.norm_out")), "encoder_3d.conv_out")
        mean = self.conv(x, "quant_conv").chunk(2, 1)[0]
        return F.layer_norm(mean, mean.shape[1:], eps=1e-5)[0].transpose(0, 1)

    def decode(self, latent):
        """``[t, c, h, w]`` -> video ``[T, C, H, W]``; features of the content frame included."""
        _, pyramid = self.encoder(self.frame, "encoder_2d")
        x = self.conv(latent.transpose(0, 1)[None], "post_quant_conv")
        x = self.block(self.conv(x, "decoder.conv_in"), "decoder.mid.block_1")
        x = self.fusion(x, pyramid[-1], "decoder.mid.fuse.0")
        x = self.attention(x, "decoder.mid.attn_1")
        x = self.block(x, "decoder.mid.block_2")
        for level in reversed(range(self.count("decoder.up."))):
            at = f"decoder.up.{level}."
            for part in ("block_1", "fuse", "block_2"):
                for i in range(self.count(f"{at}{part}.")):
                    if part == "fuse":
                        x = self.fusion(x, pyramid[level], f"{at}fuse.{i}")
                    else:
                        x = self.block(x, f"{at}{part}.{i}")
            if at + "upsample.conv.weight" in self.w:
                x = self.up(x, at + "upsample.conv", level)
        x = F.silu(self.norm(x, "decoder.norm_out"))
        return self.conv(x, "decoder.conv_out")[0].transpose(0, 1)

    def up(self, x, name, level):
        """Time doubles too where the encoder halves it after the level above."""
        down = self.w[f"encoder_3d.down.{level - 1}.downsample.conv.weight"]
        factors = (2.0 if down.shape[2] == 3 else 1.0, 2.0, 2.0)
        return self.conv(F.interpolate(x, scale_factor=factors), name)


assert torch.get_default_dtype() == torch.float32
