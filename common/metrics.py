"""Evaluation that counts its samples."""

from collections.abc import Callable

import torch

from common.run import Run


@torch.no_grad()
def mean_over(run: Run, n: int, batch_size: int, values: Callable[[slice], torch.Tensor]) -> torch.Tensor:
    """Mean of a per-sample value over samples 0..n-1, shared out among the processes, each sample once.

    Args:
        values: slice of samples -> (..., b) values; called with at most `batch_size` samples.

    Returns:
        (...) float64 mean, the same on every process.
    """
    processes = 1 if run.mode == "sharded" else run.accelerator.num_processes
    rank = 0 if run.mode == "sharded" else run.accelerator.process_index
    total: torch.Tensor | None = None
    count = torch.zeros((), dtype=torch.float64, device=run.device)
    for i, start in enumerate(range(0, n, batch_size)):
        if i % processes == rank:
            chosen = slice(start, min(start + batch_size, n))
            value = values(chosen).double()
            if value.shape[-1] != chosen.stop - chosen.start:
                raise ValueError(f"{value.shape[-1]} values for {chosen.stop - chosen.start} samples")
            total = value.sum(-1) if total is None else total + value.sum(-1)
            count += value.shape[-1]
    if total is None:
        total = torch.zeros_like(values(slice(0, 1)).double().sum(-1))  # more processes than batches
    if processes > 1:
        total = run.accelerator.reduce(total, reduction="sum")
        count = run.accelerator.reduce(count, reduction="sum")
    if int(count.item()) != n:
        raise RuntimeError(f"evaluated {int(count.item())} of {n} samples")
    return total / n
