"""Images as the two papers feed them: grey levels, or fresh binary draws of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from common.data import hub, images
from common.data.batches import Batches
from common.random import generator

Binarise = Literal["redrawn", "no"]
AHEAD = 50  # steps whose batches are drawn at once


class Pictures(NamedTuple):
    """Training and test pictures, (n, d) uint8, their height and width, and the fingerprint of what was read."""

    train: torch.Tensor
    test: torch.Tensor
    shape: tuple[int, int]
    fingerprint: str


def load(name: str, data_dir: Path | None) -> Pictures:
    """MNIST-like sets by `common.data.images`; `local/frey-faces` has one split, cut in two here.

    The 1,965 faces are frames of one film; a fixed shuffle keeps every fifth picture or so (365) for testing.
    """
    if name == "local/frey-faces":
        faces = images.column(name, "train", data_dir)
        pixels = torch.from_numpy(faces).flatten(1)
        order = torch.randperm(len(pixels), generator=generator("frey faces", "split"))
        return Pictures(pixels[order[:1600]], pixels[order[1600:]], faces.shape[1:3], hub.fingerprint(faces))
    read = images.load(name, data_dir)
    shape = (read.train.shape[1], read.train.shape[2])
    return Pictures(read.train.flatten(1), read.test.flatten(1), shape, read.fingerprint)


def grey(pixels: torch.Tensor, levels: float) -> torch.Tensor:
    """uint8 -> [0, 1]."""
    return pixels.to(torch.float32) / levels


def binary(pixels: torch.Tensor, numbers: torch.Generator) -> torch.Tensor:
    """One draw of each pixel with its grey level as probability, exactly g / 255, uint8 0 or 1."""
    bits = torch.empty(pixels.shape, dtype=torch.uint8).random_(0, 255, generator=numbers)  # 0 .. 254
    return bits.to(pixels.device) < pixels


class Source:
    """The batch of every step, (s, b, d) float32, for all seeds; many steps are drawn at once.

    What a seed sees at a step depends on the seed and the step alone.
    """

    def __init__(
        self,
        pixels: torch.Tensor,
        batch_size: int,
        seeds: Sequence[int],
        binarise: Binarise,
        shuffle: bool,
        levels: float = 255.0,
    ) -> None:
        self.pixels, self.seeds, self.binarise, self.levels = pixels, list(seeds), binarise, levels
        self.batches = Batches(len(pixels), batch_size, seeds, pixels.device, shuffle)
        self._chunk, self._drawn = -1, torch.empty(0)

    def __call__(self, step: int) -> torch.Tensor:
        """The images of a step."""
        if self.binarise == "no":
            return grey(self.pixels[self.batches.index(step)], self.levels)
        chunk, position = divmod(step, AHEAD)
        if chunk != self._chunk:
            index = torch.stack([self.batches.index(chunk * AHEAD + i) for i in range(AHEAD)], 1)  # (s, steps, b)
            draws = [
                binary(self.pixels[index[i]], generator(seed, "binarise", chunk)) for i, seed in enumerate(self.seeds)
            ]
            self._chunk, self._drawn = chunk, torch.stack(draws, 1)  # (steps, s, b, d)
        return self._drawn[position].to(torch.float32)
