"""Counts at the paper's own scale: Table 1 and Section 3.3 (FLOPs), Table 6 and Section 4.2 (parameters, layers)."""

from pathlib import Path

import torch
from torch import nn

from common.cost import multiply_adds, parameters
from papers.resnet.model import IMAGENET, ResNet, Shortcut

VGG = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # 3x3 convolutions of each stage (Simonyan and Zisserman 2015)


def vgg(depth: int) -> nn.Sequential:
    """The nets Section 3.3 compares with: their convolutions, poolings and fully connected layers."""
    layers: list[nn.Module] = []
    channels = 3
    for n, width in zip(VGG[depth], (64, 128, 256, 512, 512), strict=True):
        for _ in range(n):
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * 49, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1000))


def layers(net: nn.Module) -> int:
    """Convolutions and fully connected layers, without the projections of shortcuts."""
    return sum(isinstance(m, nn.Conv2d | nn.Linear) and ".shortcut" not in name for name, m in net.named_modules())


def shortcuts(net: ResNet) -> int:
    return sum(block.shortcut is not None for block in net.stages)


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data sets read: none)."""
    counts: dict[str, float] = {"layers_minus_6n_2": 0, "shortcuts_minus_3n": 0, "plain_minus_residual_parameters": 0}
    with torch.device("meta"):
        for n in (3, 5, 7, 9, 18, 200):
            residual, plain = ResNet(6 * n + 2), ResNet(6 * n + 2, shortcut=None)
            counts[f"parameters/resnet{6 * n + 2}"] = parameters(residual)
            counts[f"million_parameters/resnet{6 * n + 2}"] = parameters(residual) / 1e6
            if n <= 18:  # the counter takes seconds for 1,202 layers
                counts[f"million_multiply_adds/resnet{6 * n + 2}"] = multiply_adds(residual, 32) / 1e6
            counts["layers_minus_6n_2"] += abs(layers(residual) - 6 * n - 2) + abs(layers(plain) - 6 * n - 2)
            counts["shortcuts_minus_3n"] += abs(shortcuts(residual) - 3 * n) + shortcuts(plain)
            counts["plain_minus_residual_parameters"] += abs(parameters(plain) - parameters(residual))
        for depth in IMAGENET:
            options: tuple[Shortcut, ...] = ("A", "B", "C") if depth == 34 else ("A", "B") if depth == 18 else ("B",)
            for option in options:
                net = ResNet(depth, "imagenet", option, 1000)
                name = f"resnet{depth}{option if depth < 50 else ''}"
                counts[f"layers/{name}"] = layers(net)
                counts[f"parameters/{name}"] = parameters(net)
                counts[f"billion_multiply_adds/{name}"] = multiply_adds(net, 224) / 1e9
        for depth in VGG:
            whole = vgg(depth)
            counts[f"billion_multiply_adds/vgg{depth}"] = multiply_adds(whole, 224) / 1e9
            counts[f"billion_multiply_adds/vgg{depth}-convolutions"] = multiply_adds(whole[:-4], 224) / 1e9
        plain34 = multiply_adds(ResNet(34, "imagenet", None, 1000), 224) / 1e9
    counts["billion_multiply_adds/plain34"] = plain34
    counts["percent_of_vgg19/plain34"] = 100 * plain34 / counts["billion_multiply_adds/vgg19"]
    return counts, {}
