"""Counts at the paper's own scale: Section 4's patch, Appendix 7.2's layers, and the official code's parameters."""

from pathlib import Path

import torch
from torch import nn

from common.cost import multiply_adds, parameters
from papers.cyclegan.config import PRESETS
from papers.cyclegan.model import Block, Discriminator, Generator, receptive_field


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data sets read: none)."""
    counts: dict[str, float] = {}
    with torch.device("meta"):
        for preset, side in (("cityscapes-full", 128), ("maps", 256)):
            cfg = PRESETS[preset]
            assert cfg.crop_size == side
            net = Generator(cfg.generator_width, cfg.blocks)
            blocks = sum(isinstance(layer, Block) for layer in net)
            counts[f"residual_blocks/{side}"] = blocks
            counts[f"parameters/generator-{blocks}"] = parameters(net)
            counts[f"million_parameters/generator-{blocks}"] = parameters(net) / 1e6
            counts[f"billion_multiply_adds/generator-{blocks}"] = multiply_adds(net, side) / 1e9
        judge = Discriminator()
        convolutions = [layer for layer in judge if isinstance(layer, nn.Conv2d)]
        counts |= {f"channels/discriminator-{i}": c.out_channels for i, c in enumerate(convolutions[:-1], 1)}
        counts["parameters/discriminator"] = parameters(judge)
        counts["million_parameters/discriminator"] = parameters(judge) / 1e6
        counts["receptive_field/discriminator"] = receptive_field(judge)
        counts["output_side/discriminator-256"] = judge(torch.empty(1, 3, 256, 256)).shape[-1]
    return counts, {}
