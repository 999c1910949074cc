"""Image sets too large for memory (ImageNet): streamed through `datasets`, decoded and cut by worker threads.

The order is a function of (seed, epoch) alone and what happens to a sample of (seed, epoch, place in that order), so a
run can start at any step and any number of processes makes up the same batches: each process follows the whole stream,
and decodes its own rows of every batch.
"""

import hashlib
import io
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from common.data import hub
from common.errors import UserError
from common.random import integer

View = Callable[[PIL.Image.Image, np.random.Generator], np.ndarray]
AHEAD = 4  # batches in the making while the newest is used
FINGERPRINTED = 1_000  # samples at the head of the stream that the fingerprint covers


class ImageStream:
    """Batches of one split of a Hub image set.

    Args:
        n: samples of the split, as the preset states it; a shorter stream is an error.
        view: (RGB image, random numbers) -> (h, w, c) or (views, h, w, c) uint8. Called in threads.
        seed: of order and views in training; None: file order.
        share: a batch's sample places (b,) -> this process's.
        workers: threads that decode.
        window: samples among which the order is shuffled, besides the shuffled order of files.
    """

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: Path | None,
        n: int,
        batch_size: int,
        view: View,
        *,
        seed: int | None = None,
        share: Callable[[torch.Tensor], torch.Tensor] = lambda places: places,
        workers: int = 8,
        window: int = 10_000,
    ) -> None:
        import datasets

        data = hub.load(name, split, data_dir, streaming=True)
        kinds = data.features or {}
        self.image = next((key for key, kind in kinds.items() if isinstance(kind, datasets.Image)), "image")
        self.label = next((key for key, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)), "label")
        if not {self.image, self.label} <= kinds.keys():
            raise UserError(f"data set {name} needs an image and a label column, it has {', '.join(kinds) or 'none'}")
        self.data = data.cast_column(self.image, datasets.Image(decode=False))  # decoding is the workers' part
        self.name, self.split, self.n, self.batch_size, self.view = name, split, n, batch_size, view
        self.seed, self.share, self.window = seed, share, window
        self.per_epoch = n // batch_size
        self._pool = ThreadPoolExecutor(workers)
        self._next = -1
        self._batches: Iterator[tuple[torch.Tensor, torch.Tensor]] = iter(())

    def fingerprint(self) -> str:
        """SHA-256 over the first thousand encoded images and their labels (the whole would take hours to read)."""
        digest = hashlib.sha256()
        with hub.reading(f"{self.name} ({self.split})"):
            for sample in itertools.islice(self.data, FINGERPRINTED):
                digest.update(_encoded(sample[self.image]))
                digest.update(str(sample[self.label]).encode())
        return f"sha256:{digest.hexdigest()}"

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(x (b, ...) uint8, y (b,)) of a step, on the CPU. Consecutive steps cost no seeking."""
        if step != self._next:
            self._batches = self._from(step)
        self._next = step + 1
        return next(self._batches)

    def once(self, part: int = 0, parts: int = 1) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every parts-th batch of the split in file order, whole; the last one as small as it comes: for evaluation."""
        return self._made(itertools.islice(self._epoch(0, 0, training=False), part, None, parts))

    def _from(self, step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        epoch, position = divmod(step, self.per_epoch)

        def epochs() -> Iterator[list[tuple[Any, ...]]]:
            yield from self._epoch(epoch, position)
            for later in itertools.count(epoch + 1):
                yield from self._epoch(later, 0)

        return self._made(epochs())

    def _epoch(self, epoch: int, position: int, training: bool = True) -> Iterator[list[tuple[Any, ...]]]:
        """Batches of undecoded samples: (epoch, place, sample) of this process's rows, or of all of them."""
        data, first = self.data, position * self.batch_size
        if self.seed is not None and training:
            data = data.shuffle(seed=integer(self.seed, "order", epoch) % 2**32, buffer_size=self.window)
        samples = iter(data.skip(first) if first else data)
        end = self.per_epoch * self.batch_size if training else self.n
        for begin in range(first, end, self.batch_size):
            with hub.reading(f"{self.name} ({self.split}, after {begin} images of epoch {epoch})"):
                batch = list(itertools.islice(samples, min(self.batch_size, end - begin)))
            if len(batch) < min(self.batch_size, end - begin):
                raise UserError(
                    f"{self.name} ({self.split}) ends after {begin + len(batch)} images where {self.n} are stated"
                )
            places = torch.arange(len(batch))
            yield [(epoch, begin + i, batch[i]) for i in (self.share(places) if training else places).tolist()]

    def _made(self, batches: Iterator[list[tuple[Any, ...]]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Decode some batches ahead."""
        waiting: list[tuple[Any, list[int]]] = []

        def finish(entry: tuple[Any, list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
            futures, labels = entry
            return torch.from_numpy(np.stack([future.result() for future in futures])), torch.tensor(labels)

        for batch in batches:
            futures = [self._pool.submit(self._decode, *entry) for entry in batch]
            waiting.append((futures, [int(entry[-1][self.label]) for entry in batch]))
            if len(waiting) > AHEAD:
                yield finish(waiting.pop(0))
        for entry in waiting:
            yield finish(entry)

    def _decode(self, epoch: int, place: int, sample: dict[str, Any]) -> np.ndarray:
        try:
            with PIL.Image.open(io.BytesIO(_encoded(sample[self.image]))) as image:
                picture = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:  # Pillow has all three for a damaged file
            raise UserError(f"{self.name} ({self.split}), image {place} of epoch {epoch}: {error}") from None
        return self.view(picture, np.random.default_rng(integer(self.seed or 0, "view", epoch, place)))


def _encoded(image: dict[str, Any]) -> bytes:
    return image["bytes"] or Path(image["path"]).read_bytes()
