"""Counts at the paper's own scale: parameters of its three U-Nets (Appendix B)."""

from pathlib import Path

import torch

from common.cost import parameters
from papers.ddpm.config import PRESETS
from papers.ddpm.model import UNet

SIX = (1, 1, 2, 2, 4, 4)  # resolutions of the 256x256 nets (code: run_lsun.py)


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data sets read: none)."""
    paper = PRESETS["paper"]
    with torch.device("meta"):
        nets = {
            "cifar10": UNet(32, 3, 3, paper.base, paper.multipliers, paper.blocks, paper.attention),
            "256": UNet(256, 3, 3, 128, SIX),
            "256-large": UNet(256, 3, 3, 192, SIX),  # the width is the one that gives what is printed
        }
    counts = {f"parameters/{name}": float(parameters(net)) for name, net in nets.items()}
    return counts | {f"million_{name}": n / 1e6 for name, n in counts.items()}, {}
