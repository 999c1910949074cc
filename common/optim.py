"""Optimiser groups, and schedules as functions of the step (multipliers of the learning rate)."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

Schedule = Callable[[int], float]


def _is_weight(name: str, p: torch.nn.Parameter) -> bool:
    return p.ndim > 1


def decay_groups(
    model: torch.nn.Module,
    weight_decay: float,
    decays: Callable[[str, torch.nn.Parameter], bool] = _is_weight,
) -> list[dict[str, Any]]:
    """Two parameter groups: what decays, and what does not.

    Args:
        decays: of a parameter's name and itself; by default weights do, biases and gains (one-dimensional) do not.
    """
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups[decays(name, p)].append(p)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


def stages(ends: Iterable[int], values: Iterable[float]) -> Schedule:
    """values[i] up to, and without, step ends[i]; the last value afterwards."""
    ends, values = list(ends), list(values)

    def at(step: int) -> float:
        return next((value for end, value in zip(ends, values, strict=False) if step < end), values[-1])

    return at


def half_cosine(done: float, total: float = 1.0, floor: float = 0.0) -> float:
    """From 1 at the beginning to `floor` when all is done."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done / total))


def one_cycle(warmup_steps: float, total_steps: int, start: float, end: float, top: float = 1.0) -> Schedule:
    """Half a cosine from `start` to `top` over the warm-up, another on to `end` (torch's OneCycleLR, whose first step
    is at `start`, the last of the warm-up at `top`, and the last of all at `end`)."""
    peak = warmup_steps - 1

    def at(step: int) -> float:
        if step < peak:
            return top + (start - top) * half_cosine(step, peak)
        return end + (top - end) * half_cosine(step - peak, total_steps - 1 - peak)

    return at


def warmup_cosine(warmup_steps: int, total_steps: int, floor: float = 0.0) -> Schedule:
    """Linear from 0 to 1 over the warm-up, then half a cosine down to `floor`."""

    def at(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return half_cosine(min(1.0, done), floor=floor)

    return at
