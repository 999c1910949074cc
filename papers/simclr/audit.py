"""Counts at the paper's own scale: encoders of Table 6, and of the CIFAR-10 nets in both dialects."""

from pathlib import Path

import torch

from common.cost import multiply_adds, parameters
from papers.simclr.model import Encoder


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data sets read: none)."""
    counts: dict[str, float] = {}
    with torch.device("meta"):
        for width in (1, 2, 4):
            counts[f"million_parameters/resnet50-{width}x"] = parameters(Encoder(50, width, "imagenet")) / 1e6
        cifar = {
            "resnet50": Encoder(50),
            "resnet18": Encoder(18),
            "resnet18-lightly": Encoder(18, dialect="lightly"),
        }
        for name, encoder in cifar.items():
            counts[f"parameters/cifar-{name}"] = parameters(encoder)
            counts[f"billion_multiply_adds/cifar-{name}"] = multiply_adds(encoder, 32) / 1e9
        counts["times_smaller/amdim"] = 626 / counts["million_parameters/resnet50-1x"]
    return counts, {}
