"""Minibatches as the released script makes them, and z."""

from collections.abc import Callable

import torch
from torch import Tensor

from common.data.augment import normalise
from common.errors import UserError
from common.random import generator


def split(images: Tensor, labels: Tensor, sizes: tuple[int, int], seed: int) -> list[tuple[Tensor, Tensor]]:
    """Training and validation pictures: one shuffle by the seed, then cut (code: `mnist_with_valid_set`).

    Raises:
        UserError: there are fewer pictures.
    """
    if sum(sizes) > len(images):
        raise UserError(f"{sizes[0]} training and {sizes[1]} validation pictures of {len(images)}; take fewer")
    order = torch.randperm(len(images), generator=generator(seed, "split")).to(images.device)
    parts = order[: sizes[0]], order[sizes[0] : sum(sizes)]
    return [(images[part], labels[part]) for part in parts]


class Minibatches:
    """step -> (x (b, c, h, w) float32 channels-last, y (b,)): a new order every epoch, whose last batch is smaller.

    Args:
        images, labels: (n, h, w, c) uint8 and (n,), on the device.
        low: the level that 0 becomes (255 becomes 1): 0 or -1.
        share: this process's part of a batch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        seed: int,
        low: float,
        share: Callable[[Tensor], Tensor] = lambda index: index,
    ) -> None:
        if batch_size > len(images):
            raise UserError(f"a batch of {batch_size} from {len(images)} pictures; take a smaller one")
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.seed, self.low, self.share = seed, low, share
        self.per_epoch = -(-len(images) // batch_size)
        self._epoch, self._order = -1, torch.empty(0)

    def size(self, step: int) -> int:
        """Samples of the global batch."""
        return min(self.batch_size, len(self.images) - step % self.per_epoch * self.batch_size)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.images), generator=generator(self.seed, "order", epoch))
            self._epoch, self._order = epoch, order.to(self.images.device)
        index = self.share(self._order[position * self.batch_size : (position + 1) * self.batch_size])
        return levels(self.images[index], self.low), self.labels[index]


def levels(images: Tensor, low: float) -> Tensor:
    """(b, h, w, c) uint8 -> (b, c, h, w) in [low, 1]."""
    scale = 255 / (1 - low)
    return normalise(images, -low * scale, scale)


def latents(n: int, z: int, device: torch.device, *key: int | str) -> Tensor:
    """(n, z) uniform in [-1, 1], drawn on the CPU so that every device sees the same."""
    return (2 * torch.rand(n, z, generator=generator(*key)) - 1).to(device)
