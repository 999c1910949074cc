"""Pictures at every resolution: small sets in memory, folders of large ones decoded as they are needed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.data import hub, images
from common.data.augment import normalise, pad
from common.errors import UserError
from common.random import generator, integer

FACTORS = ("large", "right", "low", "warm", "square", "striped")  # of drawn pictures, each true half of the time
DRAWN = 22_000  # of which the last 2,000 test the classifier


class Pictures:
    """A set in memory, at every resolution down to 4x4; pictures that are no power of two stand in a black frame.

    Attributes:
        n, colours: pictures, and their channels.
        margin: width of the frame on each side.
        labelled: the set, for a classifier.
    """

    def __init__(self, labelled: images.Images, side: int, device: torch.device) -> None:
        self.n, h, w, self.colours = labelled.train.shape
        full = 1 << (max(h, w) - 1).bit_length()
        if h != w or full != side or (full - h) % 2:
            raise UserError(f"{labelled.name} has pictures of {h}x{w}: take --resolution {full}, and square ones")
        self.labelled, self.fingerprint, self.margin = labelled, labelled.fingerprint, (full - h) // 2
        self.levels = {full: pad(labelled.train, self.margin).to(device)}
        while full > 4:
            full //= 2
            self.levels[full] = halved(self.levels[2 * full])

    def __call__(self, index: Tensor, side: int) -> Tensor:
        """(b, side, side, c) uint8."""
        return self.levels[side][index]


class Folder:
    """Square pictures in files, read through `datasets`' image folders."""

    margin, colours, labelled = 0, 3, None

    def __init__(self, name: str, data_dir: Path | None, side: int, device: torch.device) -> None:
        folder = data_dir / "hub" / name if data_dir else None
        if folder is None or not folder.is_dir():
            raise UserError(hub.missing(name, data_dir))
        import datasets

        datasets.disable_progress_bars()
        self.name = name
        with hub.reading(name):
            self.files = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
        self.n, self.side, self.device = len(self.files), side, device
        self.fingerprint = hub.fingerprint(*(self.decode(i, side) for i in range(min(100, self.n))), np.array(self.n))
        self.pool = ThreadPoolExecutor()

    def decode(self, index: int, side: int) -> np.ndarray:
        """One picture as (side, side, 3) uint8."""
        with hub.reading(self.name):
            picture = np.asarray(self.files[index]["image"].convert("RGB"))
        h, w, _ = picture.shape
        if h != w or h < self.side or h & (h - 1):
            raise UserError(f"picture {index} is {h}x{w}; all should be square, a power of two, at least {self.side}")
        k = h // side
        return np.rint(picture.reshape(side, k, side, k, 3).mean((1, 3))).astype(np.uint8)

    def __call__(self, index: Tensor, side: int) -> Tensor:
        """(b, side, side, 3) uint8."""
        made = self.pool.map(lambda i: self.decode(i, side), index.tolist())
        return torch.from_numpy(np.stack(list(made))).to(self.device)


def load(name: str, data_dir: Path | None, side: int, device: torch.device) -> Pictures | Folder:
    """Training pictures.

    Raises:
        UserError: they cannot be read, or have another size than `side`.
    """
    if name.startswith("stylegan/"):
        return Folder(name, data_dir, side, device)
    labelled = draw(name) if name.startswith("generated/") else images.load(name, data_dir)
    return Pictures(labelled, side, device)


def halved(x: Tensor) -> Tensor:
    """Means of 2x2, rounded to 8 bits, (n, h, w, c) uint8 (code: `TFRecordExporter`)."""
    n, h, w, c = x.shape
    return x.view(n, h // 2, 2, w // 2, 2, c).float().mean((2, 4)).round().to(torch.uint8)


def scaled(pictures: Tensor) -> Tensor:
    """(b, h, w, c) uint8 -> (b, c, h, w) in [-1, 1]."""
    return normalise(pictures, 127.5, 127.5)


class Reals:
    """This process's real pictures: batches of changing size and resolution, mirrored half of the time."""

    def __init__(
        self, pictures: Pictures | Folder, mirror: bool, seed: int, device: torch.device,
        share: Callable[[Tensor], Tensor],
    ) -> None:  # fmt: skip
        self.pictures, self.mirror, self.seed, self.device, self.share = pictures, mirror, seed, device, share
        self._order = lru_cache(maxsize=2)(self.order)

    def order(self, epoch: int) -> Tensor:
        """A new one every time that all pictures were shown."""
        return torch.randperm(self.pictures.n, generator=generator(self.seed, "order", epoch))

    def __call__(self, first: int, b: int, stage: int, old: float) -> Tensor:
        """(b, c, side, side) in [-1, 1]: real pictures first .. first + b - 1, faded like the generated ones."""
        place = torch.arange(first, first + b)
        epoch = place // self.pictures.n
        index = torch.cat([self._order(int(e))[place[epoch == e] % self.pictures.n] for e in epoch.unique()])
        x = scaled(self.pictures(self.share(index).to(self.device), 4 << stage))
        if self.mirror:
            flip = torch.randint(2, (b,), generator=generator(self.seed, "mirror", first))
            x = torch.where(self.share(flip).bool().to(self.device)[:, None, None, None], x.flip(3), x)
        if old > 0:
            x = torch.lerp(x, F.interpolate(F.avg_pool2d(x, 2), scale_factor=2), old)
        return x


@lru_cache(maxsize=1)
def draw(name: str) -> images.Images:
    """Pictures of one body each with six exact binary factors, the label's bits (the first is the highest); ours."""
    what, _, side = name.removeprefix("generated/").rpartition("-")
    if what != "factors" or not side.isdecimal() or not 8 <= int(side) <= 256:
        raise UserError(f"unknown drawn pictures {name!r}; known (with any side from 8 to 256): generated/factors-32")
    rng, s = np.random.default_rng(integer("factors", side)), int(side)
    truth = rng.integers(0, 2, (DRAWN, len(FACTORS)))
    v, u = np.meshgrid((np.arange(s) + 0.5) / s, (np.arange(s) + 0.5) / s, indexing="ij")
    made = np.empty((DRAWN, s, s, 3), np.uint8)
    for i, (large, right, low, warm, square, striped) in enumerate(truth):
        r = (0.22 if large else 0.13) + rng.uniform(-0.02, 0.02)
        x, y = (0.5 + (0.18 if far else -0.18) + rng.uniform(-0.06, 0.06) for far in (right, low))
        du, dv = u - x, v - y
        inside = np.maximum(abs(du), abs(dv)) < 0.886 * r if square else du**2 + dv**2 < r**2  # of one area
        light = np.where(striped & (np.sin(v * np.pi * 16) > 0), 0.45, 1.0)[..., None]
        picture = rng.uniform(40, 90) + 3 * rng.standard_normal((s, s, 1)) + np.zeros(3)
        picture[inside] = (light * np.array([225, 140, 50] if warm else [60, 120, 225]))[inside]
        made[i] = np.clip(np.rint(picture), 0, 255)
    labels = truth @ (1 << np.arange(len(FACTORS))[::-1])
    parts = (made[:-2000], labels[:-2000], made[-2000:], labels[-2000:])
    return images.Images(name, hub.fingerprint(*parts), *map(torch.from_numpy, parts))
