"""Evaluation that counts its samples."""

from collections.abc import Callable, Iterable

import torch
from accelerate.utils import gather_object

from common.run import Run


@torch.no_grad()
def mean_of(run: Run, parts: Iterable[torch.Tensor], n: int) -> torch.Tensor:
    """Mean of a per-sample value over n samples.

    Args:
        parts: (..., b) values of the samples this process evaluates; every sample belongs to one process.

    Returns:
        (...) float64 mean, the same on every process.
    """
    total, count = None, 0
    for value in parts:
        value = value.double()
        total = value.sum(-1) if total is None else total + value.sum(-1)
        count += value.shape[-1]
    if run.part[1] > 1:
        sums = gather_object([(None if total is None else total.cpu(), count)])  # None: more processes than parts
        total, count = sum(s for s, _ in sums if s is not None), sum(c for _, c in sums)
    if count != n:
        raise RuntimeError(f"evaluated {count} of {n} samples")
    return torch.as_tensor(total, device=run.device) / n


def mean_over(run: Run, n: int, batch_size: int, values: Callable[[slice], torch.Tensor]) -> torch.Tensor:
    """`mean_of` over samples 0..n-1, whose batches the processes share out.

    Args:
        values: slice of samples -> (..., b) values; called with at most `batch_size` samples.
    """
    rank, world = run.part

    def part(start: int) -> torch.Tensor:
        chosen = slice(start, min(start + batch_size, n))
        value = values(chosen)
        if value.shape[-1] != chosen.stop - chosen.start:
            raise ValueError(f"{value.shape[-1]} values for {chosen.stop - chosen.start} samples")
        return value

    with torch.no_grad():
        return mean_of(run, map(part, range(rank * batch_size, n, world * batch_size)), n)
