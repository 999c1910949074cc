"""The U-Net of Denoising Diffusion Probabilistic Models.

Paper: J. Ho, A. Jain, P. Abbeel, NeurIPS 2020, arXiv 2006.11239, Appendix B. "code" is
github.com/hojonathanho/diffusion at 1e0dceb, `models/unet.py`: a PixelCNN++ backbone with group
normalisation, one time embedding for all blocks, and self-attention at 16x16.

Everything is channels-last. Normalisation and swish are one step of the backward pass: of the three maps around them
(input, normalised, activated) only the first and the last are kept, the second is made again.

Glossary (code: paper, shape)
    x           x_t, (b, c, h, w)
    t           the paper's t - 1 (as in the code), (b,) int64
    y           classes, (b,) int64, where a network is told them
    emb         embedding of t after its swish, (b, 4 * base)
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.initial import torch_default
from common.random import generator

CLASS_CHANNELS = 4  # of a class's vector (the course of Hugging Face)


class Dialect(NamedTuple):
    """What the paper's network becomes in other people's code, whose numbers we reproduce too."""

    eps: float  # of every group normalisation
    cosines_first: bool  # in the time embedding, whose frequencies end before 1/10000 then
    padding: int  # of the convolution that halves the side: 0 is TensorFlow's SAME, on the right and below
    head: int  # channels of an attention head; 0: all in one
    default_start: bool  # weights and biases as torch starts them


DIALECTS = {
    "ddpm": Dialect(1e-6, False, 0, 0, False),  # the paper's own (code; tf.contrib's eps)
    "diffusers": Dialect(1e-5, True, 1, 8, True),  # Hugging Face's UNet2DModel by its defaults
}


def time_embedding(t: Tensor, width: int, cosines_first: bool = False) -> Tensor:
    """Sines, then cosines, of t at frequencies from 1 to 1/10000, both included (code: nn.py), (b, width) float32."""
    half = width // 2
    steps = half if cosines_first else half - 1
    frequencies = torch.exp(-math.log(10_000) / steps * torch.arange(half, device=t.device))
    angles = t[:, None] * frequencies
    both = [angles.sin(), angles.cos()]
    return torch.cat(both[::-1] if cosines_first else both, 1)


class _NormSwish(torch.autograd.Function):
    """dropout(swish(group norm(x))) that keeps x, the statistics and which entries were dropped."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, keep: Tensor | None, rate: float
    ) -> Tensor:
        b, c, h, w = x.shape
        gain, shift = weight.to(x.dtype), bias.to(x.dtype)
        y, mean, rstd = torch.ops.aten.native_group_norm(x, gain, shift, b, c, h * w, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd, keep)
        ctx.groups, ctx.rate = groups, rate
        y = F.silu(y, inplace=True)
        return y if keep is None else y.mul_(keep).mul_(1 / (1 - rate))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd, keep = ctx.saved_tensors
        b, c, h, w = x.shape
        per_channel = (b, ctx.groups, c // ctx.groups)
        scale = rstd.view(b, -1, 1) * weight.view(per_channel[1:])
        shift = bias.view(per_channel[1:]) - mean.view(b, -1, 1) * scale
        scale, shift = (v.reshape(b, c, 1, 1).to(x.dtype) for v in (scale, shift))
        if keep is not None:
            g = (g * (1 / (1 - ctx.rate))).mul_(keep)
        g = torch.ops.aten.silu_backward(g, torch.addcmul(shift, x, scale))
        g_x, g_weight, g_bias = torch.ops.aten.native_group_norm_backward(
            g, x, mean, rstd, weight.to(x.dtype), b, c, h * w, ctx.groups, [True, True, True]
        )
        return g_x, g_weight.to(weight.dtype), g_bias.to(bias.dtype), None, None, None, None


class Norm(nn.Module):
    """Group normalisation, with swish and dropout behind it where asked."""

    def __init__(self, channels: int, groups: int, eps: float, swish: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.groups, self.eps, self.swish, self.dropout = groups, eps, swish, dropout
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.swish and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            keep = None
            if self.dropout and self.training:
                keep = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - self.dropout)
            return _NormSwish.apply(x, self.weight, self.bias, self.groups, self.eps, keep, self.dropout)
        y = F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        return F.dropout(F.silu(y, inplace=True), self.dropout, self.training) if self.swish else y


class Block(nn.Module):
    """Residual block: two 3x3 convolutions, the time added between them, dropout before the second."""

    def __init__(self, c_in: int, c_out: int, time: int, groups: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(c_in, groups, eps), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(time, c_out)
        self.norm2, self.conv2 = Norm(c_out, groups, eps, dropout=dropout), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Linear(c_in, c_out) if c_in != c_out else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h += self.time(emb)[:, :, None, None]  # in place: no convolution's backward needs its own output
        h = self.conv2(self.norm2(h))
        h += x if self.shortcut is None else self.shortcut(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return h


class Attention(nn.Module):
    """Self-attention over all places, with its residual connection."""

    def __init__(self, channels: int, groups: int, eps: float, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, Norm(channels, groups, eps, swish=False)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        places = self.norm(x).permute(0, 2, 3, 1).reshape(b, h * w, c)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(places).chunk(3, -1))
        y = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + y.view(b, h, w, c).permute(0, 3, 1, 2)


class Level(nn.Module):
    """One block of a resolution, with the attention that follows it there."""

    def __init__(self, block: Block, attention: Attention | None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.block(x, emb)
        return h if self.attention is None else self.attention(h)


class Down(nn.Module):
    """Half the side: 3x3 convolution of stride 2, padded on the right and below (TensorFlow's SAME) or all around."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Twice the side: nearest neighbour, then a 3x3 convolution.

    Of the nine pixels that convolution reads at most four differ: it is a transposed convolution of stride 2 whose 4x4
    kernel holds sums of the nine weights, with 4/9 of the multiplications and without the larger map in between.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        w = F.pad(self.conv.weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))  # (in, out, 5, 5)
        rows = w[:, :, 1:] + w[:, :, :-1]
        kernel = rows[..., 1:] + rows[..., :-1]
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


class UNet(nn.Module):
    """(x_t (b, c, side, side), t (b,)) -> (b, c_out, side, side).

    Args:
        base: channels at full resolution, `multipliers` times as many at each further one.
        blocks: residual blocks of a resolution on the way down; one more on the way up.
        attention: sides at which attention follows every block; it always stands between the two blocks in the middle.
        classes: that the network is told apart; 0: none. A vector of each, learned, is put beside every pixel.
        dialect: whose details of architecture and start.
    """

    def __init__(
        self,
        side: int,
        channels: int,
        channels_out: int,
        base: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        dropout: float = 0.0,
        groups: int = 32,
        classes: int = 0,
        dialect: str = "ddpm",
    ) -> None:
        super().__init__()
        if side % 2 ** (len(multipliers) - 1) or any(base * m % groups for m in multipliers):
            raise ValueError(f"side {side} or width {base} does not divide for {multipliers}, {groups} groups")
        self.base, time = base, 4 * base
        self.time = nn.Sequential(nn.Linear(base, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.classes, self.dialect = nn.Embedding(classes, CLASS_CHANNELS) if classes else None, DIALECTS[dialect]
        eps = self.dialect.eps
        self.stem = nn.Conv2d(channels + (CLASS_CHANNELS if classes else 0), base, 3, padding=1)

        def attending(c: int) -> Attention:
            return Attention(c, groups, eps, c // (self.dialect.head or c))

        def level(c_in: int, c_out: int, here: int) -> Level:
            block = Block(c_in, c_out, time, groups, eps, dropout)
            return Level(block, attending(c_out) if here in attention else None)

        widths = [base * m for m in multipliers]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept = [base]  # channels of what the way up will read
        for i, width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(level(kept[-1], width, side >> i))
                kept.append(width)
            if i < len(widths) - 1:
                self.down.append(Down(width, self.dialect.padding))
                kept.append(width)
        c = width = widths[-1]
        first, second = (Block(width, width, time, groups, eps, dropout) for _ in range(2))
        self.middle = nn.ModuleList([Level(first, attending(width)), Level(second, None)])
        for i, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(level(c + kept.pop(), width, side >> i))
                c = width
            if i:
                self.up.append(Up(width))
        self.norm, self.head = Norm(base * multipliers[0], groups, eps), nn.Conv2d(c, channels_out, 3, padding=1)

    def initialise(self, seed: int) -> None:
        """Uniform with variance 1 / mean of fan-in and fan-out; next to nothing where a residual ends (code: 1e-10).

        In the other dialect as torch does it: uniform within 1 / sqrt(fan-in), biases too; vectors of classes N(0, 1).
        """
        if self.dialect.default_start:
            for name, module in self.named_modules():
                numbers = generator(seed, "initial weights", name)
                if isinstance(module, nn.Conv2d | nn.Linear):
                    torch_default(module, numbers)
                elif isinstance(module, nn.Embedding):
                    module.weight.data.normal_(generator=numbers)
            return
        for name, p in self.named_parameters():
            if p.ndim == 1:
                continue  # biases 0, gains 1
            fan_in, fan_out = p[0].numel(), p.numel() // p.shape[1]
            if name.endswith("qkv.weight"):  # three matrices in one
                fan_out //= 3
            ends = name.endswith(("conv2.weight", "out.weight", "head.weight"))
            bound = math.sqrt(3 * (1e-10 if ends else 1.0) / ((fan_in + fan_out) / 2))
            p.data.uniform_(-bound, bound, generator=generator(seed, "initial weights", name))
        for name, p in self.named_parameters():
            if p.ndim == 1:
                p.data.fill_(1.0 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) else 0.0)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """y None: each class in turn, for a network that is told classes."""
        emb = self.time(time_embedding(t, self.base, self.dialect.cosines_first).to(x.dtype))
        if self.classes is not None:
            y = torch.arange(len(x), device=x.device) % self.classes.num_embeddings if y is None else y
            told = self.classes(y)[:, :, None, None].expand(-1, -1, *x.shape[2:])
            x = torch.cat([x, told.to(x.dtype)], 1)
        h = self.stem(x)
        kept = [h]
        for layer in self.down:
            h = layer(h, emb)
            kept.append(h)
        for layer in self.middle:
            h = layer(h, emb)
        for layer in self.up:
            h = layer(h) if isinstance(layer, Up) else layer(torch.cat([h, kept.pop()], 1), emb)
        return self.head(self.norm(h))
