"""StyleGAN's networks (Karras, Laine, Aila, CVPR 2019); "code" is NVlabs/stylegan at 1e0d5c7.

| here | paper | shape |
|---|---|---|
| z | latent code, N(0, I) | (b, latents) |
| w | intermediate latent code; one for each layer where styles are mixed | (b, latents), (b, layers, latents) |
| scale, shift | style y = (y_s, y_b) = A(w), y_s less one | (b, c, 1, 1) |
| noise | B's input, one map a layer | (b, 1, s, s) |
| stage | 0 at 4x4, 1 at 8x8 ... | |
| old | share of the next lower resolution while a new one is faded in | |

Nearest upsampling and a 3x3 convolution are a transposed one of stride 2 and a 2x2 box; a convolution and the mean of
2x2 are a box and a convolution of stride 2: the same sums, borders included, with a quarter of the products. A 1-2-1
blur is two boxes. Boxes are fast in channels-last order only.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.random import generator

SLOPE, EPS, ROOT2 = 0.2, 1e-8, math.sqrt(2)


def width(stage: int, base: int, most: int) -> int:
    """Maps of a stage (code: `nf(stage + 1)`); -1 gives those of D's last layer."""
    return min(base >> (stage + 1), most)


def box(x: Tensor, padding: int) -> Tensor:
    """Means of 2x2 at every place, zeros beyond the border: (h, w) -> (h - 1 + 2 padding, w - 1 + 2 padding)."""
    return F.avg_pool2d(x, 2, stride=1, padding=padding)


def blur(x: Tensor) -> Tensor:
    """1-2-1 of sum one, zeros beyond the border (code: `blur2d`)."""
    return box(box(x, 1), 0)


def doubled(x: Tensor) -> Tensor:
    """Nearest neighbour."""
    return F.interpolate(x, scale_factor=2)


def pixel_norm(x: Tensor) -> Tensor:
    """Divided by the root mean square over features."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + EPS)


def minibatch_stddev(x: Tensor, group: int) -> Tensor:
    """Append one map: the mean deviation within groups of consecutive pictures, so that processes keep groups whole."""
    b, c, h, w = x.shape
    y = x.view(-1, min(group, b), c, h, w)
    deviation = (y - y.mean(1, keepdim=True)).square().mean(1).add(EPS).sqrt().mean((1, 2, 3))
    return torch.cat([x, deviation.repeat_interleave(y.shape[1]).view(b, 1, 1, 1).expand(b, 1, h, w)], 1)


class Linear(nn.Module):
    """Equalised learning rate: weights N(0, 1 / lr_mul²), scaled at run time by lr_mul · gain / √fan-in."""

    def __init__(self, c_in: int, c_out: int, gain: float = ROOT2, lr_mul: float = 1.0, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c_out, c_in))
        self.bias = nn.Parameter(torch.zeros(c_out)) if bias else None
        self.scale, self.lr_mul = gain * lr_mul / math.sqrt(c_in), lr_mul

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return F.linear(x * self.scale, self.weight)
        return torch.addmm(self.bias, x, self.weight.T, beta=self.lr_mul, alpha=self.scale)


class Conv(nn.Module):
    """Equalised convolution; its bias may come after blur and noise, hence elsewhere.

    Args:
        way: "up" doubles the side first, "down" halves it afterwards; "up" has its weight as (in, out), turned round.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int = 3, gain: float = ROOT2, way: str = "", bias: bool = False
    ) -> None:
        super().__init__()
        shape = (c_in, c_out) if way == "up" else (c_out, c_in)
        self.weight = nn.Parameter(torch.empty(*shape, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(c_out)) if bias else None
        self.scale, self.way, self.lr_mul = gain / math.sqrt(c_in * kernel**2), way, 1.0

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "up":
            return box(F.conv_transpose2d(x, self.weight * (4 * self.scale), stride=2), 0)  # a box of sum 4
        if self.way == "down":
            return F.conv2d(box(x, 1), self.weight * self.scale, self.bias, stride=2)
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.weight.shape[-1] // 2)


def initialise(model: nn.Module, seed: int, name: str) -> None:
    """All weights normal; biases and noise scales are zero, the constant one."""
    with torch.no_grad():
        for key, module in model.named_modules():
            if isinstance(module, Linear | Conv):
                module.weight.normal_(0, 1 / module.lr_mul, generator=generator(seed, name, key))


class Mapping(nn.Module):
    """z -> w: normalisation, then fully connected layers whose learning rate is a hundredth."""

    def __init__(self, latents: int, layers: int, lr_mul: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(latents, latents, lr_mul=lr_mul) for _ in range(layers))

    def forward(self, z: Tensor) -> Tensor:
        w = pixel_norm(z)
        for layer in self.layers:
            w = F.leaky_relu(layer(w), SLOPE)
        return w


class Layer(nn.Module):
    """[convolution, blur,] noise, bias, leaky ReLU, then AdaIN (Equation 1), or pixel norm without styles."""

    def __init__(
        self, conv: Conv | None, c: int, latents: int, styles: bool, noise: bool, blurred: bool = False
    ) -> None:
        super().__init__()
        self.conv, self.blurred = conv, blurred
        self.bias = nn.Parameter(torch.zeros(c))
        self.noise = nn.Parameter(torch.zeros(c)) if noise else None
        self.style = Linear(latents, 2 * c, gain=1.0) if styles else None

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        if self.conv is not None:
            x = self.conv(x)
        if self.blurred:
            x = blur(x)
        if self.noise is not None:
            assert noise is not None
            x = torch.addcmul(x, noise, self.noise[:, None, None])
        x = F.leaky_relu(x + self.bias[:, None, None], SLOPE)
        if self.style is None:
            return pixel_norm(x)
        scale, shift = self.style(w)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(shift, F.instance_norm(x, eps=EPS), scale + 1)


class Generator(nn.Module):
    """Mapping and synthesis of all configurations; called, it is the synthesis.

    Args:
        base, most: maps of a stage are base / 2^(stage + 1), at most so many.
        styles, constant, noise: C adds styles, D takes the constant in place of a dense layer, E adds noise.
        blurred: after upsampling (B and later).

    Attributes:
        w_mean: running mean of w, for truncation.
    """

    w_mean: Tensor

    def __init__(
        self, side: int, colours: int, latents: int = 512, base: int = 8192, most: int = 512, mapping: int = 8,
        styles: bool = True, constant: bool = True, noise: bool = True, blurred: bool = True, lr_mul: float = 0.01,
    ) -> None:  # fmt: skip
        super().__init__()
        self.latents, self.has_noise, self.stages = latents, noise, side.bit_length() - 2
        c = [width(i, base, most) for i in range(self.stages)]
        self.mapping = Mapping(latents, mapping, lr_mul)
        self.constant = nn.Parameter(torch.ones(1, c[0], 4, 4)) if constant else None
        self.dense = None if constant else Linear(latents, 16 * c[0], gain=ROOT2 / 4, bias=False)
        layers = [Layer(None, c[0], latents, styles, noise), Layer(Conv(c[0], c[0]), c[0], latents, styles, noise)]
        for a, b in pairwise(c):
            layers.append(Layer(Conv(a, b, way="up"), b, latents, styles, noise, blurred))
            layers.append(Layer(Conv(b, b), b, latents, styles, noise))
        self.layers = nn.ModuleList(layers)
        self.to_rgb = nn.ModuleList(Conv(n, colours, 1, gain=1.0, bias=True) for n in c)
        self.register_buffer("w_mean", torch.zeros(latents))

    def noise(self, b: int, stage: int, numbers: torch.Generator) -> list[Tensor]:
        """N(0, 1) for every layer in use, two a resolution; nothing where the net takes none."""
        sides = [4 << (i // 2) for i in range(2 * (stage + 1) if self.has_noise else 0)]
        return [torch.randn(b, 1, s, s, generator=numbers, device=numbers.device) for s in sides]

    def forward(self, w: Tensor, noise: Sequence[Tensor], stage: int, old: float = 0.0) -> Tensor:
        """(b, layers, latents) -> pictures (b, colours, side, side), in [-1, 1] once trained."""
        if self.dense is not None:
            x = self.dense(w[:, 0]).view(len(w), -1, 4, 4).to(memory_format=torch.channels_last)
        else:
            assert self.constant is not None
            x = self.constant.expand(len(w), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        before = x
        for i, layer in enumerate(self.layers[: 2 * (stage + 1)]):
            if i == 2 * stage:
                before = x
            x = layer(x, w[:, i], noise[i] if noise else None)
        picture = self.to_rgb[stage](x)
        if old > 0:
            picture = torch.lerp(picture, doubled(self.to_rgb[stage - 1](before)), old)
        return picture


def mixed(ws: Tensor, cuts: Tensor, layers: int) -> Tensor:
    """Style mixing: layer l takes the latent whose number is that of the crossover points at or below l.

    Args:
        ws: (k, b, latents); cuts: (b, k - 1).

    Returns:
        (b, layers, latents)
    """
    which = (torch.arange(layers, device=ws.device)[None, :, None] >= cuts[:, None, :]).sum(2)  # (b, layers)
    return ws[which, torch.arange(ws.shape[1], device=ws.device)[:, None]]


def truncated(w: Tensor, mean: Tensor, psi: float, layers: int) -> Tensor:
    """w' = mean + psi (w - mean) in the first layers (Appendix B)."""
    return torch.cat([torch.lerp(mean.expand_as(w[:, :layers]), w[:, :layers], psi), w[:, layers:]], 1)


class Discriminator(nn.Module):
    """The mirror image of a traditional generator, with minibatch standard deviation at 4x4 (code: `D_basic`)."""

    def __init__(
        self, side: int, colours: int, base: int = 8192, most: int = 512, group: int = 4, blurred: bool = True
    ) -> None:
        super().__init__()
        self.group, self.blurred = group, blurred
        c = [width(i, base, most) for i in range(side.bit_length() - 2)]
        pairs = list(pairwise(c))
        self.from_rgb = nn.ModuleList(Conv(colours, n, 1, bias=True) for n in c)
        self.convs = nn.ModuleList(Conv(n, n, bias=True) for _, n in pairs)
        self.downs = nn.ModuleList(Conv(n, below, way="down", bias=True) for below, n in pairs)
        self.last = Conv(c[0] + (group > 1), c[0], bias=True)
        top = width(-1, base, most)
        self.dense, self.score = Linear(16 * c[0], top), Linear(top, 1, gain=1.0)

    def forward(self, x: Tensor, stage: int, old: float = 0.0) -> Tensor:
        """Pictures of the stage's side -> (b,)"""
        x = x.contiguous(memory_format=torch.channels_last)
        h = F.leaky_relu(self.from_rgb[stage](x), SLOPE)
        for i in range(stage, 0, -1):
            h = F.leaky_relu(self.convs[i - 1](h), SLOPE)
            h = F.leaky_relu(self.downs[i - 1](blur(h) if self.blurred else h), SLOPE)
            if i == stage and old > 0:
                h = torch.lerp(h, F.leaky_relu(self.from_rgb[i - 1](F.avg_pool2d(x, 2)), SLOPE), old)
        if self.group > 1:
            h = minibatch_stddev(h, self.group)
        h = F.leaky_relu(self.last(h), SLOPE).flatten(1)
        return self.score(F.leaky_relu(self.dense(h), SLOPE))[:, 0]
