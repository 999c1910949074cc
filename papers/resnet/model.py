"""Residual networks, and the plain networks they are compared with.

Paper: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385.
There is no official code for CIFAR-10; the authors' ImageNet nets are KaimingHe/deep-residual-networks (Caffe).

Glossary (name here: symbol in the paper, shape)
    x, y:        x, y of Eq. 1 and 2, (b, c, h, w): what enters and leaves a block
    branch:      F(x, {W_i}), two or three convolutions, each followed by batch normalisation (Section 3.4)
    shortcut:    x or W_s x, options A, B, C (Section 4.1)
    blocks:      n, blocks of each stage (Section 4.2: 6n + 2 layers; Table 1)
    responses:   Figure 7: outputs of the 3x3 layers after normalisation, before ReLU and addition
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.batchnorm import BatchNorm
from common.errors import UserError
from common.random import generator

Shortcut = Literal["A", "B", "C"]
IMAGENET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # Table 1


def convolution(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Without bias: the normalisation that follows has one."""
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)


class Subsample(nn.Module):
    """Option A: every stride-th pixel, zeros in the new channels (behind the old ones), no parameters."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        """(b, c_in, h, w) -> (b, c_out, h / stride, w / stride)"""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))


class Block(nn.Module):
    """y = ReLU(F(x) + shortcut(x)), Eq. 1 and 2; a plain network's y = ReLU(F(x)).

    Args:
        layers: (kernel, channels) of each convolution; the first one has the stride, also in bottlenecks (Figure 5,
            as in the authors' Caffe models: torchvision's "v1.5" strides in the 3x3 layer instead).
        shortcut: A zeros for new channels; B projection where the shape changes; C projections everywhere; None: plain.
        group: samples that share normalisation statistics.
    """

    def __init__(
        self, c_in: int, layers: Sequence[tuple[int, int]], stride: int, shortcut: Shortcut | None, group: int | None
    ) -> None:
        super().__init__()
        widths = [c_in, *(width for _, width in layers)]
        self.convolutions = nn.ModuleList(
            convolution(widths[i], width, kernel, stride if i == 0 else 1) for i, (kernel, width) in enumerate(layers)
        )
        self.norms = nn.ModuleList(BatchNorm(width, group) for _, width in layers)
        c_out, changes = widths[-1], stride != 1 or widths[-1] != c_in
        self.shortcut: nn.Module | None = nn.Identity() if shortcut else None
        if shortcut == "A" and changes:
            self.shortcut = Subsample(c_in, c_out, stride)
        elif shortcut == "C" or (shortcut == "B" and changes):
            self.shortcut = nn.Sequential(convolution(c_in, c_out, 1, stride), BatchNorm(c_out, group))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c_in, h, w) -> (b, c_out, h / stride, w / stride)"""
        y = x
        for i, (conv, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = norm(conv(y if i == 0 else F.relu_(y)))
        if self.shortcut is not None:
            y += self.shortcut(x)
        return F.relu_(y)


class ResNet(nn.Module):
    """Stem, stages of blocks, global average pooling, one fully connected layer.

    Args:
        depth: layers with weights: 6n + 2 for CIFAR-10 (Section 4.2), a column of Table 1 for ImageNet.
        family: "cifar": 3x3 stem, stages of 16, 32, 64 channels; "imagenet": Table 1.
        shortcut: option A, B or C; None for a plain network.
        channels: of the images.
        group: see BatchNorm.

    Raises:
        UserError: the family has no network of this depth.
    """

    def __init__(
        self,
        depth: int,
        family: Literal["cifar", "imagenet"] = "cifar",
        shortcut: Shortcut | None = "A",
        classes: int = 10,
        channels: int = 3,
        group: int | None = None,
    ) -> None:
        super().__init__()
        if family == "cifar":
            if depth < 8 or depth % 6 != 2:
                raise UserError(f"CIFAR-10 nets have 6n + 2 layers (20, 32, 44, ...), not {depth}")
            blocks, widths = [(depth - 2) // 6] * 3, [16, 32, 64]
            self.stem = nn.Sequential(convolution(channels, 16, 3), BatchNorm(16, group), nn.ReLU(inplace=True))
        else:
            if depth not in IMAGENET:
                raise UserError(f"Table 1 has nets of {', '.join(map(str, IMAGENET))} layers, not {depth}")
            blocks, widths = list(IMAGENET[depth]), [64, 128, 256, 512]
            self.stem = nn.Sequential(
                convolution(channels, 64, 7, 2),
                BatchNorm(64, group),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, 2, padding=1),
            )
        bottleneck = family == "imagenet" and depth >= 50
        stages, c = [], widths[0]
        for stage, (n, width) in enumerate(zip(blocks, widths, strict=True)):
            layers = [(1, width), (3, width), (1, 4 * width)] if bottleneck else [(3, width), (3, width)]
            for i in range(n):
                stages.append(Block(c, layers, 2 if stage and i == 0 else 1, shortcut, group))
                c = layers[-1][1]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(c, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, channels, h, w) -> logits (b, classes).

        Averaging the last map before the fully connected layer is averaging that layer's scores over all places: larger
        images are tested "fully convolutionally" (Section 3.4) by this same code.
        """
        return self.head(self.stages(self.stem(x)).mean((2, 3)))

    @torch.no_grad()
    def initialise(self, seed: int, fan: Literal["fan-in", "fan-out"] = "fan-in") -> None:
        """He et al. 2015 (Section 3.4): weights N(0, 2 / fan-in), biases 0; normalisations start as the identity.

        By fan-out as torchvision's nets once began: N(0, 2 / fan-out) in convolutions, torch's default in the head.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                drawn = torch.randn(module.weight.shape, generator=generator(seed, "initialise", name))
                inputs = module.weight[0].numel()
                n = inputs if fan == "fan-in" else inputs // module.weight.shape[1] * module.weight.shape[0]
                module.weight.copy_(drawn * math.sqrt(2 / n))
        self.head.bias.zero_()
        if fan == "fan-out":
            bound = self.head.in_features**-0.5
            for name, p in self.head.named_parameters():
                p.uniform_(-bound, bound, generator=generator(seed, "initialise", "head", name))

    @torch.no_grad()
    def responses(self, x: Tensor) -> Tensor:
        """Figure 7: mean and mean square of every 3x3 layer's response to each image, (layers, 2, b)."""
        found: list[Tensor] = []

        def note(_: nn.Module, __: tuple[Tensor, ...], y: Tensor) -> None:
            found.append(torch.stack([y.mean((1, 2, 3)), y.square().mean((1, 2, 3))]))

        pairs: list[tuple[nn.Module, nn.Module]] = [(self.stem[0], self.stem[1])]
        for block in self.stages:
            assert isinstance(block, Block)
            pairs += zip(block.convolutions, block.norms, strict=True)
        hooks = [norm.register_forward_hook(note) for conv, norm in pairs if conv.kernel_size == (3, 3)]
        try:
            self(x)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(found)
