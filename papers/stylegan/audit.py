"""Counts at the paper's own scale: layers and parameters of all configurations (Figure 1, Section 2)."""

from pathlib import Path

import torch

from common.cost import parameters
from papers.stylegan.config import ARMS, MORE, PRESETS
from papers.stylegan.model import Linear
from papers.stylegan.train import build


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data sets read: none)."""
    counts: dict[str, float] = {}
    with torch.device("meta"):
        for name in ARMS | MORE:
            g, d = build(PRESETS[f"ffhq-{name}"], 3)
            counts[f"parameters/g/{name}"] = parameters(g)
            counts[f"million_parameters/g/{name}"] = parameters(g) / 1e6
            if name == "F":
                counts["parameters/d"] = parameters(d)
                counts["parameters/mapping"] = parameters(g.mapping)
                counts["parameters/synthesis"] = parameters(g) - parameters(g.mapping)
                counts["layers/synthesis"] = len(g.layers)
                counts["layers/mapping"] = len(g.mapping.layers)
                first, style = (
                    next(m for m in part.modules() if isinstance(m, Linear)) for part in (g.mapping, g.layers)
                )
                counts["units/mapping"] = first.weight.shape[0]
                counts["styles/512-maps"] = style.weight.shape[0]
                assert g.constant is not None
                counts["constant"] = g.constant.numel()
        for side in (256, 32):
            g, d = build(PRESETS["ffhq-F"].__class__(resolution=side), 3)
            counts |= {f"parameters/g/{side}": parameters(g), f"parameters/d/{side}": parameters(d)}
    return counts, {}
