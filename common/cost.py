"""What things cost: a clock that waits for the device, slopes of growth, parameters, multiply-adds."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def slope(sizes: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray) -> float:
    """Of log value on log size, by least squares; two sizes or more."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def parameters(model: torch.nn.Module) -> int:
    """Numbers that a model is made of, buffers left out."""
    return sum(p.numel() for p in model.parameters())


def learned(model: torch.nn.Module) -> int:
    """Those of its parameters that learn: fixed ones (positions, a bias that is nothing) do not."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def multiply_adds(model: torch.nn.Module, side: int) -> int:
    """Of matrix products and convolutions for one picture, by torch's counter (two a pair); the model is on meta."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() // 2
