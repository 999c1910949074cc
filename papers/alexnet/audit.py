"""Counts at the paper's own scale: parameters, units, multiplications, sizes of input and augmentation."""

from pathlib import Path

import torch
from torch import Tensor, nn

from common.cost import parameters
from papers.alexnet.config import PRESETS
from papers.alexnet.model import AlexNet, CifarNet

SQUARE, CROP = 256, 224  # Sections 2 and 4.1


def units(model: AlexNet) -> tuple[list[int], int]:
    """(units of each layer, multiply-accumulates of one image), by the shapes of a forward pass."""
    found: list[int] = []
    products = 0

    def note(layer: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal products
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        found.append(out.numel())
        products += out.numel() * layer.weight[0].numel()

    for layer in model.layers:
        layer.register_forward_hook(note)
    model(torch.zeros(1, 3, CROP, CROP, device="meta"))
    return found, products


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data sets read: none)."""
    with torch.device("meta"):
        model = AlexNet(lrn=False)  # normalisation has neither parameters nor units
        small = {
            name: CifarNet(cfg.maps, cfg.lrn, cfg.pool, size=cfg.size)
            for name, cfg in PRESETS.items()
            if name in ("sec3.3-lrn", "sec3.3-no-lrn")
        }
    layers, products = units(model)
    counts: dict[str, float] = {
        "parameters": parameters(model),
        "parameters_millions": parameters(model) / 1e6,
        "neurons": sum(layers),
        "neurons_convolutional": sum(layers[: len(model.convs)]),
        "multiplications_millions": products / 1e6,
        "input_dimensions": CROP * CROP * 3,
        "crops": (SQUARE - CROP + 1) ** 2 * 2,
    }
    counts |= {f"neurons_layer{i}": n for i, n in enumerate(layers, 1)}
    counts |= {f"parameters/{name}": parameters(net) for name, net in small.items()}
    return counts, {}
