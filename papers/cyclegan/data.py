"""Two collections of pictures: folders as the authors share them, or domains drawn here, whose true pairs are known.

The drawn ones are ours. Each scene is drawn twice: "streets" as a photo (X: light, texture, noise) and as flat class
colours (Y: Cityscapes' palette); "colours" as orange and as blue discs; "shapes" as discs and as squares.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.data import hub
from common.data.augment import PerSample, normalise, windows
from common.data.batches import Batches
from common.errors import UserError
from common.random import integer

ENDINGS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp"}
CLASSES = {"sky": (70, 130, 180), "building": (70, 70, 70), "tree": (107, 142, 35), "ground": (152, 251, 152),
           "road": (128, 64, 128), "car": (0, 0, 142)}  # fmt: skip
SKY, BUILDING, TREE, GROUND, ROAD, CAR = range(6)
# The 19 classes that Cityscapes scores (cityscapesScripts, labels.py), then "void", whose pixels do not count.
CITYSCAPES = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
    (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32), (0, 0, 0),
)  # fmt: skip


class Domains(NamedTuple):
    """Pictures (n, side, side, 3) uint8 of X and Y.

    Attributes:
        pairs: whether the i-th test pictures of X and Y are partners.
        palette: (classes, 3) colours of Y where it shows labels; `void`: the last of them is none of the classes.
        labelled: drawn streets alone: further scenes, (photos, labels), for a segmenter.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    fingerprint: str
    pairs: bool
    palette: Tensor | None = None
    void: bool = False
    labelled: tuple[Tensor, Tensor] | None = None


def load(
    name: str, data_dir: Path | None, load_size: int, crop_size: int, train: int, test: int, paired: bool
) -> Domains:
    """Draw `generated/<what>-<side>`, or read the folder `name`: below DIR/hub, below DIR, or a path of its own.

    Args:
        train, test: drawn pictures; a folder is read whole.
        paired: the i-th training pictures of X and Y shall be partners, as those of `generated/<what>-<side>-paired`
            alone are.

    Raises:
        UserError: no such domains, or pictures that cannot be read.
    """
    if load_size < crop_size:
        raise UserError(f"crop_size {crop_size} does not fit into load_size {load_size}")
    drawn = name.startswith(("generated/", "synthetic/"))
    if paired and not (drawn and name.endswith("-paired")):
        raise UserError(f"{name}: only drawn pictures whose name ends in -paired are partners; leave out --paired")
    return draw(name, load_size, crop_size, train, test) if drawn else read(name, data_dir, load_size, crop_size)


# ---- folders


@lru_cache(maxsize=1)  # seeds that train one after the other read it once
def read(name: str, data_dir: Path | None, load_size: int, crop_size: int) -> Domains:
    """trainA, trainB, testA and testB: A is X, B is Y. Test pictures are resized to what is cut out in training."""
    places = [root / name for root in ([data_dir / "hub", data_dir] if data_dir else []) + [Path()]]
    folder = next((place for place in places if (place / "trainA").is_dir()), None)
    if folder is None:
        looked = f"not in {data_dir}/hub" if data_dir else "PAPERS_DATA is not set"
        raise UserError(
            f"pictures of {name} cannot be read: {looked}; put its folders trainA, trainB, testA and testB "
            f"(https://efrosgans.eecs.berkeley.edu/cyclegan/datasets) below DIR/hub/{name} and set PAPERS_DATA=DIR"
        )
    parts, names = [], []
    for part in ("trainA", "trainB", "testA", "testB"):
        files = sorted(file for file in (folder / part).glob("**/*") if file.suffix.lower() in ENDINGS)
        if not files:
            raise UserError(f"{folder / part} has no pictures ({', '.join(sorted(ENDINGS))})")
        side = load_size if part.startswith("train") else crop_size
        with ThreadPoolExecutor() as pool:
            parts.append(np.stack(list(pool.map(lambda file, side=side: picture(file, side), files))))
        names.append([file.stem.removesuffix(f"_{part[-1]}") for file in files])
    palette = torch.tensor(CITYSCAPES) if folder.name == "cityscapes" else None
    train_x, train_y, test_x, test_y = map(torch.from_numpy, parts)
    pairs, fingerprint = names[2] == names[3], hub.fingerprint(*parts)
    return Domains(train_x, train_y, test_x, test_y, fingerprint, pairs, palette, void=palette is not None)


def picture(file: Path, side: int) -> np.ndarray:
    """(side, side, 3) uint8, resized bicubically as the official code does."""
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}") from None


# ---- drawn domains


@lru_cache(maxsize=1)
def draw(name: str, load_size: int, crop_size: int, train: int, test: int) -> Domains:
    """Scenes are numbered; X and Y are trained on different ones, so that no partner of a picture is ever shown.

    A name that ends in -paired has the same X and the partners of its pictures as Y.
    """
    what, _, side = name.partition("/")[2].removesuffix("-paired").partition("-")
    if what not in SCENES or not side.isdecimal() or not 8 <= int(side) <= 1024:
        known = ", ".join(f"generated/{scene}-32" for scene in SCENES)
        raise UserError(f"unknown drawn domains {name!r}; known (with any side from 8 to 1024): {known}")
    if train < 1 or test < 2:
        raise UserError(f"{name} needs train_pictures >= 1 and test_pictures >= 2")

    def scenes(part: str, n: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        drawn = [SCENES[what](np.random.default_rng(integer(what, part, i)), int(side)) for i in range(n)]
        x, y, classes = (np.stack(each) for each in zip(*drawn, strict=True))
        if size != int(side):
            x, y = (np.stack([np.asarray(Image.fromarray(p).resize((size, size))) for p in each]) for each in (x, y))
        return x, y, classes

    x, partners, _ = scenes("train x", train, load_size)
    y = partners if name.endswith("-paired") else scenes("train y", train, load_size)[1]
    parts = (x, y, *scenes("test", test, crop_size)[:2])
    train_x, train_y, test_x, test_y = map(torch.from_numpy, parts)
    drawn = Domains(train_x, train_y, test_x, test_y, hub.fingerprint(*parts), pairs=True)
    if what != "streets":
        return drawn
    photos, _, classes = map(torch.from_numpy, scenes("segmenter", train, int(side)))
    return drawn._replace(palette=torch.tensor(list(CLASSES.values())), labelled=(photos, classes))


Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]  # picture of X, picture of Y (uint8), class of each pixel


def grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the pixels in the unit square: u to the right, v downwards."""
    at = (np.arange(side) + 0.5) / side
    return np.meshgrid(at, at)


def street(rng: np.random.Generator, side: int) -> Drawn:
    """A street between houses and trees, with cars, under light that differs from scene to scene."""
    u, v = grid(side)
    classes = np.full((side, side), SKY)
    photo = np.empty((side, side, 3))
    horizon = rng.uniform(0.45, 0.6)
    photo[:] = np.array([120, 165, 225]) + (v / horizon)[..., None] * np.array([70, 45, 10])

    def paint(where: np.ndarray, kind: int, colour: np.ndarray) -> None:
        classes[where] = kind
        photo[where] = np.broadcast_to(colour, photo.shape)[where]

    grain = rng.standard_normal((side, side, 1))
    paint(v > horizon, GROUND, np.array([125, 135, 60]) + 14 * grain)
    for _ in range(rng.integers(1, 4)):
        left, width, top = rng.uniform(-0.05, 0.8), rng.uniform(0.15, 0.35), horizon - rng.uniform(0.15, 0.4)
        windows_ = (np.sin(60 * (u - left)) > 0.2) & (np.sin(50 * (v - top)) > 0.2)
        wall = np.array([165, 110, 85]) + rng.uniform(-20, 20, 3)
        where = (u > left) & (u < left + width) & (v > top) & (v < horizon + 0.03)
        paint(where, BUILDING, np.where(windows_[..., None], 0.65 * wall, wall))
    for _ in range(rng.integers(1, 4)):
        across, down, radius = rng.uniform(0, 1), horizon - rng.uniform(0, 0.12), rng.uniform(0.06, 0.14)
        where = ((u - across) / radius) ** 2 + ((v - down) / (1.4 * radius)) ** 2 < 1
        paint(where, TREE, np.array([50, 92, 45]) + 24 * rng.standard_normal((side, side, 1)))
    centre, bottom = rng.uniform(0.35, 0.65), rng.uniform(0.3, 0.5)
    depth = np.clip((v - horizon) / (1 - horizon), 0, 1)
    tarmac = np.where((np.abs(u - centre) < 0.012 + 0.02 * depth) & (np.sin(40 * v) > 0), 200.0, 100.0)
    paint((v > horizon) & (np.abs(u - centre) < 0.04 + bottom * depth), ROAD, tarmac[..., None] + 5 * grain)
    for at in np.sort(rng.uniform(0.15, 0.9, rng.integers(0, 3))):  # the nearer one in front
        base, size = horizon + at * (1 - horizon), 0.06 + 0.14 * at
        middle = centre + rng.choice([-0.5, 0.5]) * (0.04 + bottom * at)
        where = (np.abs(u - middle) < 0.65 * size) & (v < base) & (v > base - size)
        body = np.array([(200, 35, 35), (225, 225, 230), (230, 190, 40)])[rng.integers(3)]
        paint(where, CAR, np.where((v > base - 0.3 * size)[..., None], 0.35 * body, body))
    light = rng.uniform(0.75, 1.1) * (1 - 0.25 * rng.uniform(0, 1) * v)[..., None]
    photo = photo * light + 5 * rng.standard_normal(photo.shape)
    labels = np.array(list(CLASSES.values()), dtype=np.uint8)[classes]
    return np.clip(np.round(photo), 0, 255).astype(np.uint8), labels, classes


def bodies(colours: bool) -> Callable[[np.random.Generator, int], Drawn]:
    """One to three bodies on shaded ground: orange and blue discs, or orange discs and squares of the same area."""

    def scene(rng: np.random.Generator, side: int) -> Drawn:
        u, v = grid(side)
        slope = rng.uniform(-40, 40, 2)
        ground = np.array([110, 150, 90]) + (slope[0] * (u - 0.5) + slope[1] * (v - 0.5))[..., None]
        x = ground + 6 * rng.standard_normal((side, side, 1))
        y = ground + 6 * rng.standard_normal((side, side, 1))
        for _ in range(rng.integers(1, 4)):
            du, dv, radius = u - rng.uniform(0.15, 0.85), v - rng.uniform(0.15, 0.85), rng.uniform(0.1, 0.2)
            disc = du**2 + dv**2 < radius**2
            square = np.maximum(np.abs(du), np.abs(dv)) < radius * np.sqrt(np.pi) / 2
            shade = (1.1 - 0.5 * (du + dv) / radius * 0.4)[..., None]
            x[disc] = (shade * np.array([215, 130, 40]))[disc]
            there = disc if colours else square
            y[there] = (shade * np.array([50, 80, 200] if colours else [215, 130, 40]))[there]
        x, y = (np.clip(np.round(each), 0, 255).astype(np.uint8) for each in (x, y))
        return x, y, np.zeros((side, side), dtype=np.int64)

    return scene


SCENES = {"streets": street, "colours": bodies(True), "shapes": bodies(False)}


# ---- batches


class UnpairedBatches:
    """step -> this process's x, y (b, 3, size, size) in [-1, 1]: a new order of X every epoch, Y drawn at random.

    As in the official code an epoch has as many pictures as the larger domain, X being gone through again where it is
    the smaller one. What happens to a picture is a function of (seed, epoch, place in the epoch).

    Args:
        paired: Y is X's partner, cut out and mirrored alike.
    """

    def __init__(
        self, domains: Domains, batch_size: int, size: int, flip: bool, seed: int, paired: bool,
        device: torch.device | str = "cpu", share: Callable[[Tensor], Tensor] = lambda index: index,
    ) -> None:  # fmt: skip
        self.x, self.y = domains.train_x.to(device), domains.train_y.to(device)
        self.size, self.flip, self.paired, self.share = size, flip, paired, share
        n = max(len(self.x), len(self.y))
        self.batches, self.draws = Batches(n, batch_size, [seed], device), PerSample(n, seed, device)
        self.places = self.x.shape[1] - size + 1

    @property
    def per_epoch(self) -> int:
        return self.batches.per_epoch

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        epoch = step // self.per_epoch
        place = self.share(self.batches.index(step)[0])
        top, left = (self.draws.integers(name, epoch, self.places, 2)[place] for name in ("top", "left"))
        mirrored = self.draws.integers("flip", epoch, 2, 2)[place] == 1 if self.flip else torch.zeros_like(top) == 1
        x_index = place % len(self.x)
        y_index = x_index if self.paired else self.draws.integers("other domain", epoch, len(self.y))[place, 0]
        y = 0 if self.paired else 1
        return (
            scaled(windows(self.x, x_index, top[:, 0], left[:, 0], self.size, mirrored[:, 0])),
            scaled(windows(self.y, y_index, top[:, y], left[:, y], self.size, mirrored[:, y])),
        )


def scaled(pictures: Tensor) -> Tensor:
    """(b, h, w, 3) uint8 -> (b, 3, h, w) in [-1, 1]."""
    return normalise(pictures, 127.5, 127.5).contiguous()


def unscaled(pictures: Tensor) -> Tensor:
    """(..., 3, h, w) in [-1, 1] -> (..., h, w, 3) uint8."""
    return ((pictures.movedim(-3, -1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
