"""Drawing from a generator: labelled samples for the metrics, and the pictures of Section 6 for the eye."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from common import pictures
from common.judging import Nearest
from common.random import generator
from common.run import Run
from papers.dcgan.data import latents

COLUMNS = 20  # pictures of each class in a grid (code: 20)


class Sampler:
    """Samples in batches, each normalised by its own statistics and of mixed labels (code: `gen_samples`).

    What is drawn is a pure function of (seed, purpose, first sample of the batch).
    """

    def __init__(self, g: nn.Module, z: int, classes: int, batch_size: int, seed: int, device: torch.device) -> None:
        self.g, self.z, self.classes, self.batch_size, self.seed, self.device = g, z, classes, batch_size, seed, device

    @torch.no_grad()
    def draw(self, z: Tensor, y: Tensor) -> Tensor:
        """Pictures in [0, 1]."""
        self.g.eval()
        x = self.g(z, y)
        self.g.train()
        return (x - self.g.low) / (1 - self.g.low)  # type: ignore[operator]

    def labels(self, n: int, *key: int | str) -> Tensor:
        """Uniform."""
        return torch.randint(self.classes, (n,), generator=generator(self.seed, *key)).to(self.device)

    def __call__(self, purpose: str, part: slice) -> tuple[Tensor, Tensor]:
        """(x (b, c, h, w), y (b,)) of one batch."""
        n = part.stop - part.start
        z = latents(n, self.z, self.device, self.seed, purpose, part.start)
        y = self.labels(n, purpose, "labels", part.start)
        return self.draw(z, y), y

    def blocks(self, run: Run, purpose: str, start: int, end: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of samples start .. end - 1, many batches at a time."""
        rank, world = run.part
        block = max(1, Nearest.BLOCK // self.batch_size) * self.batch_size
        for first in range(start + rank * block, end, world * block):
            stop = min(first + block, end)
            batches = [
                self(purpose, slice(i, min(i + self.batch_size, stop))) for i in range(first, stop, self.batch_size)
            ]
            yield torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])

    def paths(self, pairs: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(labels (2b,), start, end (b, z), place on the way (b, 1)) of straight paths, a label to each pair."""
        half = max(1, self.batch_size // 2)
        for first in range(0, pairs, half):
            n = min(half, pairs - first)
            y = self.labels(n, "path labels", first).repeat(2)
            start, end = latents(2 * n, self.z, self.device, self.seed, "path", first).chunk(2)
            at = torch.rand(n, 1, generator=generator(self.seed, "place on path", first)).to(self.device)
            yield y, start, end, at


def save_grid(path: Path, sampler: Sampler) -> None:
    """Fixed latents, a row for each of ten classes, the same all through the training (code: `sample_zmb`)."""
    y = (torch.arange(10, device=sampler.device) % sampler.classes).repeat_interleave(COLUMNS)
    z = latents(len(y), sampler.z, sampler.device, sampler.seed, "grid")
    pictures.save(path, sampler.draw(z, y), COLUMNS)


def save_walk(path: Path, sampler: Sampler) -> None:
    """Figure 4: straight ways through the space of z, one row a class, from one random point to another."""
    y = torch.arange(10, device=sampler.device) % sampler.classes
    start, end = latents(20, sampler.z, sampler.device, sampler.seed, "walk").chunk(2)
    way = torch.linspace(0, 1, COLUMNS, device=sampler.device)[None, :, None]
    z = torch.lerp(start[:, None], end[:, None], way).flatten(0, 1)
    pictures.save(path, sampler.draw(z, y.repeat_interleave(COLUMNS)), COLUMNS)


def save_arithmetic(path: Path, sampler: Sampler, pool: int = 1000) -> None:
    """Figure 7 on digits: mean z of three (bold, slanted) - (bold, upright) + (light, upright), and what it draws.

    The paper picked its three exemplars of each concept by eye; here they are the extreme ones of a pool, by ink and by
    the slope of the ink's main axis. Row by row a digit: 3 + 3 + 3 exemplars, the result, and four results with uniform
    noise of 0.25 added to z (Section 6.3.2).
    """
    device, rows = sampler.device, []
    for digit in range(min(10, sampler.classes)):
        z = latents(pool, sampler.z, device, sampler.seed, "arithmetic", digit)
        label = torch.full((pool,), digit, device=device)
        x = torch.cat([sampler.draw(a, b) for a, b in zip(z.split(100), label.split(100), strict=True)])
        ink, slant = x.sum((1, 2, 3)), slope_of_ink(x)
        bold = ink.argsort(descending=True)[: pool // 4]
        light = ink.argsort()[: pool // 4]
        slanted = bold[slant[bold].argsort(descending=True)[:3]]
        upright, thin = (group[slant[group].abs().argsort()[:3]] for group in (bold, light))
        result = z[slanted].mean(0) - z[upright].mean(0) + z[thin].mean(0)
        noise = 0.25 * latents(4, sampler.z, device, sampler.seed, "arithmetic noise", digit)
        rows.append(torch.cat([z[slanted], z[upright], z[thin], result[None], result + noise]))
    every = torch.cat(rows)
    y = torch.arange(len(rows), device=device).repeat_interleave(len(every) // len(rows))
    pictures.save(path, sampler.draw(every, y), len(every) // len(rows))


def slope_of_ink(x: Tensor) -> Tensor:
    """How far the ink leans to the right per row upwards, (b, 1, h, w) -> (b,): a regression of column on row."""
    ink = x[:, 0]
    row, column = (torch.arange(n, device=x.device, dtype=x.dtype) for n in ink.shape[1:])
    mass = ink.sum((1, 2)).clamp_min(1e-6)
    r = row[:, None] - (ink * row[:, None]).sum((1, 2), keepdim=True) / mass[:, None, None]
    c = column[None, :] - (ink * column).sum((1, 2), keepdim=True) / mass[:, None, None]
    return -(ink * r * c).sum((1, 2)) / (ink * r**2).sum((1, 2)).clamp_min(1e-6)
