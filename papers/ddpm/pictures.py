"""Pictures a run leaves: samples over time, a denoising strip (Figure 6), interpolation (Figure 8), lossy decoding."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common import pictures
from common.random import generator
from papers.ddpm.sampling import Chain

SIDE, COLUMNS = 6, 10  # of the grid of samples; of the strips


def save(path: Path, rows: Sequence[Tensor]) -> None:
    """Rows of as many pictures (n, c, h, w), around [-1, 1]."""
    pictures.save(path, (torch.cat([row.cpu() for row in rows]) + 1) / 2, len(rows[0]))


def save_samples(path: Path, chain: Chain, shape: tuple[int, ...], seed: int, device: torch.device) -> None:
    """The same noise at every call, so that a run's grids show how its samples change."""
    drawn = chain.sample((SIDE * SIDE, *shape), (seed, "grid"), device)
    save(path, drawn.split(SIDE))


def save_denoising(path: Path, chain: Chain, shape: tuple[int, ...], seed: int, device: torch.device) -> None:
    """Progressive generation: for each of three samples x_t, and below it x0-hat, while t falls to 0."""
    n = 3
    seen: list[tuple[Tensor, Tensor]] = []
    chain.sample((n, *shape), (seed, "denoising"), device, watch=lambda s, x, x0: seen.append((x, x0)))
    shown = [seen[round((i + 1) * len(seen) / COLUMNS) - 1] for i in range(COLUMNS)] if len(seen) > COLUMNS else seen
    save(path, [torch.stack([pair[k][i] for pair in shown]) for i in range(n) for k in (0, 1)])


def save_interpolation(path: Path, chain: Chain, x0: Tensor, seed: int) -> None:
    """Pictures by twos, mixed at half of the diffusion; at the ends of a row the two as they are."""
    shares, rows = torch.linspace(0, 1, COLUMNS - 2), []
    for i in range(0, len(x0), 2):
        first, second = x0[i], x0[i + 1]
        mixed = chain.between(first, second, chain.diffusion.steps // 2, shares, generator(seed, "interpolation", i))
        rows.append(torch.cat([first[None], mixed, second[None]]))
    save(path, rows)


@torch.no_grad()
def save_lossy(path: Path, chain: Chain, shown: Tensor, seed: int) -> None:
    """What the receiver of Algorithm 4 sees while x_t arrives: x0-hat for falling t, then the picture itself."""
    diffusion, rows = chain.diffusion, []
    t = torch.linspace(diffusion.steps - 1, 0, COLUMNS - 1, device=shown.device).round().long()
    for i, x0 in enumerate(shown):
        x0s = x0.expand(len(t), *x0.shape).contiguous(memory_format=torch.channels_last)
        eps = torch.randn(x0s.shape, generator=generator(seed, "lossy", i)).to(x0.device)
        x_t = diffusion.q_sample(x0s, t, eps)
        rows.append(torch.cat([diffusion.reverse(chain.net(x_t, t), x_t, t, clip=True).x0, x0[None]]))
    save(path, rows)


def save_progress(path: Path, rate: Tensor, rmse: Tensor) -> None:
    """Figure 5: distortion and rate (both (T,)) against the reverse steps, and against each other."""
    from matplotlib.figure import Figure

    steps = len(rate) - torch.arange(len(rate))
    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (x, y, x_name, y_name) in zip(
        axes,
        [
            (steps, rmse, "reverse steps (T - t + 1)", "RMSE (0 to 255)"),
            (steps, rate, "reverse steps (T - t + 1)", "rate (bits/dim)"),
            (rate, rmse, "rate (bits/dim)", "RMSE (0 to 255)"),
        ],
        strict=True,
    ):
        axis.plot(x.tolist(), y.tolist())
        axis.set_xlabel(x_name)
        axis.set_ylabel(y_name)
    figure.savefig(path, dpi=70)


def rates(terms: Tensor, prior: float) -> Tensor:
    """Bits per dimension received once x_t is there: L_T and the terms of all later steps (Section 4.3), (T,)."""
    return prior + terms.sum() - terms.cumsum(0)
