"""Batches of a small image set that lies on the device: crops, flips and normalisation are done there, whole batches
at a time, and what happens to a sample is a pure function of (seed, epoch, sample)."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from common.data.batches import Batches
from common.random import generator

Transform = Callable[[Tensor, Tensor, int], Tensor]


class PerSample:
    """Random numbers for every sample of a set: row i belongs to sample i, whichever batch it falls into.

    Drawn on the CPU, so every device sees the same; one table a purpose, of the latest epoch asked for.
    """

    def __init__(self, n: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.n, self.seed, self.device = n, seed, device
        self._tables: dict[str, tuple[object, Tensor]] = {}

    def integers(self, purpose: str, epoch: int, high: int, columns: int = 1) -> Tensor:
        """0 .. high - 1, (n, columns) int64."""
        return self._table(
            purpose, (epoch, high, columns), lambda g: torch.randint(high, (self.n, columns), generator=g)
        )

    def uniform(self, purpose: str, epoch: int, columns: int = 1) -> Tensor:
        """[0, 1), (n, columns) float32."""
        return self._table(purpose, (epoch, columns), lambda g: torch.rand(self.n, columns, generator=g))

    def normal(self, purpose: str, epoch: int, columns: int = 1) -> Tensor:
        """N(0, 1), (n, columns) float32."""
        return self._table(purpose, (epoch, columns), lambda g: torch.randn(self.n, columns, generator=g))

    def _table(self, purpose: str, key: tuple[int, ...], draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        held = self._tables.get(purpose)
        if held is None or held[0] != key:
            held = key, draw(generator(self.seed, purpose, key[0])).to(self.device)
            self._tables[purpose] = held
        return held[1]


def windows(images: Tensor, index: Tensor, top: Tensor, left: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Square cut-outs in one gather, mirrored where `flip` is true.

    Args:
        images: (n, h, w, c) of any type; index, top, left, flip: (b,).

    Returns:
        (b, size, size, c)
    """
    along = torch.arange(size, device=images.device)
    columns = along.expand(len(index), -1)
    if flip is not None:
        columns = torch.where(flip[:, None], along.flip(0), columns)
    n, h, w, c = images.shape
    rows = index[:, None] * h + top[:, None] + along  # (b, size)
    flat = rows[:, :, None] * w + (left[:, None] + columns)[:, None, :]
    return images.reshape(n * h * w, c)[flat]


def pad(images: Tensor, margin: int) -> Tensor:
    """(n, h, w, c) with `margin` zeros on all four sides."""
    return torch.nn.functional.pad(images, (0, 0, margin, margin, margin, margin)) if margin else images


class ImageBatches:
    """step -> (x (b, c, size, size) float32 in channels-last order, y (b,)) of a training set.

    A batch is global; with `share` each process computes its part of it.

    Args:
        images, labels: (n, h, w, c) uint8 and (n,), on the device.
        size: of the cut-out; h if None.
        margin: zeros put around each image first, after the mean is subtracted.
        flip: mirror half of the images.
        mean: subtracted; (h, w, c) belongs to the pixels of the image, (size, size, c) to those of the cut-out, (c,) to
            both.
        scale: (c,) or a number that what remains is divided by.
        transform: (x (b, size, size, c) uint8, sample numbers (b,), epoch) -> the same shape, before the mean is taken.
        drop_last: leave out the last, smaller batch of an epoch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        seed: int,
        *,
        size: int | None = None,
        margin: int = 0,
        flip: bool = True,
        mean: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
        transform: Transform | None = None,
        share: Callable[[Tensor], Tensor] = lambda index: index,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        self.images, self.labels = pad(images, margin), labels
        self.size, self.flip, self.share, self.transform = size or images.shape[1], flip, share, transform
        self.places = self.images.shape[1] - self.size + 1, self.images.shape[2] - self.size + 1
        self.scale = torch.as_tensor(scale, dtype=torch.float32, device=images.device)
        self.mean = torch.as_tensor(mean, dtype=torch.float32, device=images.device)
        self.mean_moves = self.mean.ndim == 3 and self.mean.shape == images.shape[1:]
        if self.mean_moves:
            self.mean = pad(self.mean[None], margin)
        self.batches = Batches(len(images), batch_size, [seed], images.device, shuffle, drop_last)
        self.draws = PerSample(len(images), seed, images.device)

    @property
    def per_epoch(self) -> int:
        return self.batches.per_epoch

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        epoch = step // self.per_epoch
        index = self.share(self.batches.index(step)[0])
        top, left = (
            self.draws.integers(name, epoch, places)[index, 0]
            for name, places in zip(("top", "left"), self.places, strict=True)
        )
        flip = self.draws.integers("flip", epoch, 2)[index, 0] == 1 if self.flip else None
        x = windows(self.images, index, top, left, self.size, flip)
        if self.transform is not None:
            x = self.transform(x, index, epoch)
        mean = self.mean
        if self.mean_moves:
            mean = windows(mean, torch.zeros_like(index), top, left, self.size, flip)
        return normalise(x, mean, self.scale), self.labels[index]


def normalise(x: Tensor, mean: Tensor | float = 0.0, scale: Tensor | float = 1.0) -> Tensor:
    """(b, h, w, c) of any type -> (x - mean) / scale as (b, c, h, w) float32 in channels-last order."""
    return ((x.to(torch.float32) - mean) / scale).permute(0, 3, 1, 2)


def boxes(side: int, u: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Corner (y, x) and size (h, w), (b, 2) each, of boxes in a square: `least` to 1 of its area, 3/4 to 4/3 as wide as
    high; u (b, 4) in [0, 1). No attempts are made: what is too long is cut."""
    area = (least + (1 - least) * u[:, 0]) * side**2
    ratio = torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3))
    size = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 1).round().clamp(1, side)
    return (u[:, 2:] * (side - size + 1)).floor(), size


def blend(side: int, rng: np.random.Generator, mixup: float, cutmix: float) -> tuple[Tensor, float]:
    """A partner's share of every pixel (side, side), and its share of the label.

    Mixup blends by a Beta(mixup, mixup) share, cutmix pastes a square of that share; with both set, a coin decides.
    """
    if cutmix and (not mixup or rng.random() < 0.5):
        half = side * math.sqrt(1 - rng.beta(cutmix, cutmix)) / 2
        (y0, y1), (x0, x1) = ((max(0, int(c - half)), min(side, int(c + half))) for c in rng.uniform(0, side, 2))
        share = torch.zeros(side, side)
        share[y0:y1, x0:x1] = 1.0
    else:
        share = torch.full((side, side), 1 - rng.beta(mixup, mixup))
    return share, float(share.mean())
