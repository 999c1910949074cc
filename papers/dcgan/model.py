"""DCGAN and its baseline (Radford, Metz, Chintala, ICLR 2016); "code" is Newmu/dcgan_code at ee12b2d.

| here | paper | shape |
|---|---|---|
| z | Z, uniform in [-1, 1] | (b, z) |
| y | label; one-hot where it is appended | (b,) |
| x | picture, in [0, 1] (MNIST script) or [-1, 1] | (b, c, h, w) |
| G, D | generator, discriminator | |

Discriminators give the logit of "real". No layer has a bias (code). A transposed convolution of stride 2 doubles the
side: Theano's gradient of a "same" convolution is padding k // 2 and output padding 1.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.batchnorm import BatchNorm
from common.errors import UserError
from common.random import generator

Norm = Callable[[int], nn.Module]
SLOPE = 0.2  # of leaky ReLU (Section 4)
SIDE = 4  # of the first maps of the unconditional nets (Figure 1)


def norm_layer(batch_norm: bool = True, affine: bool = False, running: bool = False) -> Norm:
    """What normalises a layer: the statistics of the batch at hand, at sampling too (code: `batchnorm`), or nothing."""
    if not batch_norm:
        return lambda channels: nn.Identity()
    return lambda channels: BatchNorm(channels, eps=1e-8, affine=affine, running=running)


def check_shape(model: str, side: int, colours: int, wanted_side: int, wanted_colours: int) -> None:
    """Raises a UserError where the pictures do not fit the net."""
    if (side, colours) != (wanted_side, wanted_colours):
        raise UserError(
            f"model {model} draws {wanted_side}x{wanted_side}x{wanted_colours}, "
            f"the pictures are {side}x{side}x{colours}"
        )


def initialise(model: nn.Module, sd: float, seed: int, name: str) -> None:
    """Weights N(0, sd), gains N(1, sd), shifts zero (code: `gifn`, `gain_ifn`, `bias_ifn`)."""
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith("bias"):
                p.zero_()
            else:
                p.normal_(1.0 if p.ndim == 1 else 0.0, sd, generator=generator(seed, name, key))


class Labelled(nn.Module):
    """A layer of [h, y]: the label is appended, as constant maps where h is made of maps (code: `conv_cond_concat`).

    The label's share of the sum is alike for all samples of a class, so it is computed for the classes and added: the
    convolution itself keeps its channels (1, 64, 128 in place of 11, 74, 138).

    Args:
        c_in, c_out: without the label.
        side: of the maps of h.
    """

    maps: Tensor

    def __init__(
        self, kind: Literal["linear", "conv", "deconv"], c_in: int, c_out: int, side: int = 1, classes: int = 10
    ) -> None:
        super().__init__()
        self.kind = kind
        field = () if kind == "linear" else (5, 5)
        h_first = kind == "deconv"  # torch's order for transposed convolutions: (in, out)
        self.weight = nn.Parameter(torch.empty(*((c_in, c_out) if h_first else (c_out, c_in)), *field))
        self.label = nn.Parameter(torch.empty(*((classes, c_out) if h_first else (c_out, classes)), *field))
        every = torch.eye(classes)
        if field:
            every = every[:, :, None, None].repeat(1, 1, side, side)
        self.register_buffer("maps", every, persistent=False)  # (classes, classes, side, side): the appended maps

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return self.apply_to(h, self.weight) + self.apply_to(self.maps, self.label)[y]

    def apply_to(self, h: Tensor, weight: Tensor) -> Tensor:
        if self.kind == "linear":
            return F.linear(h, weight)
        if self.kind == "conv":
            return F.conv2d(h, weight, stride=2, padding=2)
        return F.conv_transpose2d(h, weight, stride=2, padding=2, output_padding=1)


# ---- MNIST, class-conditional (Appendix 8.1; code: mnist/train_cond_dcgan.py)


class ConditionalGenerator(nn.Module):
    low = 0.0  # darkest level of a picture

    def __init__(self, norm: Norm, z: int, width: int, full: int, side: int = 28) -> None:
        super().__init__()
        self.side, self.width = side // 4, width
        units = 2 * width * self.side**2
        self.full1, self.norm1 = Labelled("linear", z, full), norm(full)
        self.full2, self.norm2 = Labelled("linear", full, units), norm(units)
        self.deconv1, self.norm3 = Labelled("deconv", 2 * width, width, self.side), norm(width)
        self.deconv2 = Labelled("deconv", width, 1, 2 * self.side)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """(b, z), (b,) -> (b, 1, side, side)"""
        h = F.relu(self.norm1(self.full1(z, y)))
        h = F.relu(self.norm2(self.full2(h, y)))
        h = h.view(len(h), self.side, self.side, 2 * self.width).permute(0, 3, 1, 2)  # channels-last without a copy
        h = F.relu(self.norm3(self.deconv1(h, y)))  # (b, width, 14, 14)
        return torch.sigmoid(self.deconv2(h, y))


class ConditionalDiscriminator(nn.Module):
    def __init__(self, norm: Norm, width: int, full: int, side: int = 28) -> None:
        super().__init__()
        units = 2 * width * (side // 4) ** 2
        self.conv1 = Labelled("conv", 1, width, side)
        self.conv2, self.norm2 = Labelled("conv", width, 2 * width, side // 2), norm(2 * width)
        self.full1, self.norm3 = Labelled("linear", units, full), norm(full)
        self.full2 = Labelled("linear", full, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(b, 1, side, side), (b,) -> (b,)"""
        h = F.leaky_relu(self.conv1(x, y), SLOPE)  # (b, width, 14, 14)
        h = F.leaky_relu(self.norm2(self.conv2(h, y)), SLOPE)  # (b, 2 width, 7, 7)
        h = F.leaky_relu(self.norm3(self.full1(h.permute(0, 2, 3, 1).flatten(1), y)), SLOPE)
        return self.full2(h, y)[:, 0]


# ---- the permutation-invariant baseline of Table 3 (Appendix 8.1 names it; its sizes are ours)


class FullGenerator(nn.Module):
    low = 0.0

    def __init__(self, norm: Norm, z: int, full: int, side: int = 28) -> None:
        super().__init__()
        self.side = side
        self.full1, self.norm1 = Labelled("linear", z, full), norm(full)
        self.full2, self.norm2 = Labelled("linear", full, full), norm(full)
        self.full3 = Labelled("linear", full, side**2)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """(b, z), (b,) -> (b, 1, side, side)"""
        h = F.relu(self.norm1(self.full1(z, y)))
        h = F.relu(self.norm2(self.full2(h, y)))
        return torch.sigmoid(self.full3(h, y)).view(len(z), 1, self.side, self.side)


class FullDiscriminator(nn.Module):
    def __init__(self, norm: Norm, full: int, side: int = 28) -> None:
        super().__init__()
        self.full1 = Labelled("linear", side**2, full)
        self.full2, self.norm2 = Labelled("linear", full, full), norm(full)
        self.full3 = Labelled("linear", full, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(b, 1, side, side), (b,) -> (b,)"""
        h = F.leaky_relu(self.full1(x.flatten(1), y), SLOPE)
        h = F.leaky_relu(self.norm2(self.full2(h, y)), SLOPE)
        return self.full3(h, y)[:, 0]


# ---- unconditional, all convolutional (Section 3; code: faces/train_uncond_dcgan.py, imagenet/load_pretrained.py)

Maps = Sequence[tuple[int, int]]  # (channels, stride) of each layer


def maps32(width: int) -> tuple[Maps, Maps]:
    """G's and D's layers at 32x32, with 3x3 kernels (Table 1: width 128)."""
    generator = [(4 * width, 2), (2 * width, 1), (2 * width, 2), (width, 1), (width, 2), (3, 1)]
    return generator, [(i * width, stride) for i in (1, 2, 4) for stride in (1, 2)]


class Generator(nn.Module):
    """z -> maps of 4x4 -> transposed convolutions -> tanh."""

    low = -1.0

    def __init__(self, norm: Norm, z: int, first: int, layers: Maps, kernel: int) -> None:
        super().__init__()
        self.project, self.norm = nn.Linear(z, first * SIDE**2, bias=False), norm(first * SIDE**2)
        channels = [first, *(c for c, _ in layers)]
        self.deconvs = nn.ModuleList(
            nn.ConvTranspose2d(a, b, kernel, stride, kernel // 2, stride - 1, bias=False)
            for a, (b, stride) in zip(channels, layers, strict=False)
        )
        self.norms = nn.ModuleList(norm(c) for c, _ in layers[:-1])

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """(b, z), labels that are not used -> (b, c, h, w)"""
        h = F.relu(self.norm(self.project(z))).view(len(z), SIDE, SIDE, -1).permute(0, 3, 1, 2)
        for deconv, norm in zip(self.deconvs, self.norms, strict=False):
            h = F.relu(norm(deconv(h)))
        return torch.tanh(self.deconvs[-1](h))


class Discriminator(nn.Module):
    """Strided convolutions, a linear layer on the last maps."""

    def __init__(self, norm: Norm, layers: Maps, kernel: int, colours: int = 3) -> None:
        super().__init__()
        channels = [colours, *(c for c, _ in layers)]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False)
            for a, (b, stride) in zip(channels, layers, strict=False)
        )
        self.norms = nn.ModuleList([nn.Identity(), *(norm(c) for c, _ in layers[1:])])
        self.score = nn.Linear(channels[-1] * SIDE**2, 1, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(b, c, h, w), labels that are not used -> (b,)"""
        return self.score(self.maps(x)[-1].permute(0, 2, 3, 1).flatten(1))[:, 0]

    def maps(self, x: Tensor) -> list[Tensor]:
        """What every convolution layer puts out."""
        found = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), SLOPE)
            found.append(x)
        return found

    def features(self, x: Tensor) -> Tensor:
        """Section 5.1: the maps of all layers, max-pooled to 4x4, flattened and put together."""
        return torch.cat([F.adaptive_max_pool2d(h, SIDE).flatten(1) for h in self.maps(x)], 1)
