"""Initial weights that several papers share, drawn from a generator of their own."""

import torch
from torch import nn


@torch.no_grad()
def torch_default(module: nn.Module, generator: torch.Generator) -> None:
    """Torch's default for every linear layer and convolution of a module, in turn: weights, then biases, uniform within
    1 / sqrt(fan-in)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            bound = layer.weight[0].numel() ** -0.5
            for parameter in layer.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
