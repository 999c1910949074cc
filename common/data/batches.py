"""Which samples a batch holds, as a pure function of (seed, epoch, step): no iterator, no state to save."""

from collections.abc import Sequence

import torch

from common.errors import UserError
from common.random import generator


class Batches:
    """Shuffled batches of a data set that lies on the device, for one or several seeds at once.

    The batch is global: with several processes each takes its part of it (`run.share`), so the same samples make up
    a step however many processes there are. The last, smaller batch of an epoch is dropped, or kept.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        if batch_size > n:
            raise UserError(f"a batch of {batch_size} from {n} samples; take a smaller one")
        self.n, self.batch_size, self.seeds, self.device, self.shuffle = n, batch_size, list(seeds), device, shuffle
        self.per_epoch = n // batch_size if drop_last else -(-n // batch_size)
        self._epoch = -1
        self._order = torch.empty(0)

    def index(self, step: int) -> torch.Tensor:
        """Sample numbers of a step, (s, b) int64 for s seeds."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            rows = [
                torch.randperm(self.n, generator=generator(seed, "order", epoch))
                if self.shuffle
                else torch.arange(self.n)
                for seed in self.seeds
            ]
            self._order, self._epoch = torch.stack(rows).to(self.device), epoch
        return self._order[:, position * self.batch_size : (position + 1) * self.batch_size]
