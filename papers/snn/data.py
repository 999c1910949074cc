"""Randman, in the paper's way and in the released code's; pictures and Braille recordings as currents or spikes.

Randman (Zenke and Vogels, Section 4): a class is a smooth random manifold in the unit cube whose axes are the input
neurons; a sample is a point on it, and its coordinates are the neurons' spike times.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.data import hub, images
from common.errors import UserError
from common.random import generator, integer

STORK_SEED = 1  # stork's notebook 01: numpy's and, through it, that of every class
BRAILLE_SEED = 42  # spytorch Tutorial 5: of the split
LETTERS = ("Space", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
TAXELS = (1, 2, 6, 10)  # the sensors that carry a signal (spytorch Tutorial 5)


class Split(NamedTuple):
    """Inputs and labels: spike times (n, inputs) int32, pictures (n, pixels) uint8, currents (n, steps, channels)."""

    x: Tensor
    y: Tensor


class Data(NamedTuple):
    """A data set as the loop needs it; inputs are (n,) or (channels, height, width)."""

    train: Split
    validation: Split | None
    test: Split
    classes: int
    inputs: tuple[int, ...]
    fingerprint: str


def load(name: str, data_dir: Path | None) -> Data:
    """A data set by its id.

    Raises:
        UserError: it cannot be reached, or there is no such set.
    """
    match name:
        case "generated/randman-stork":
            return _cut(*stork_randman(), classes=10, sizes=(8000, 1000))
        case "generated/randman":
            return _cut(*paper_randman(10, 20, 1000, 1000, 50), classes=10, sizes=(8000, 1000))
        case "synthetic/randman":
            return _cut(*paper_randman(3, 8, 80, 30, 20), classes=3, sizes=(144, 48))
        case "local/braille-taxels":
            return braille(data_dir)
    if name.startswith("generated/"):
        raise UserError(f"unknown data set {name}; there are generated/randman and generated/randman-stork")
    read = images.load(name, data_dir)
    h, w, c = read.train.shape[1:]
    train, test = (v.permute(0, 3, 1, 2).flatten(1) for v in (read.train, read.test))
    classes = int(read.train_labels.max()) + 1
    return Data(
        Split(train, read.train_labels), None, Split(test, read.test_labels), classes, (c, h, w), read.fingerprint
    )


def _cut(times: np.ndarray, labels: np.ndarray, classes: int, sizes: tuple[int, int]) -> Data:
    """Training, validation and test part, in this order."""
    x, y, n = torch.from_numpy(times), torch.from_numpy(labels), sum(sizes)
    train, validation, test = (Split(x[p], y[p]) for p in (slice(sizes[0]), slice(sizes[0], n), slice(n, None)))
    return Data(train, validation, test, classes, (times.shape[1],), hub.fingerprint(times, labels))


# ---- Randman


@lru_cache(maxsize=2)
def paper_randman(classes: int, units: int, points: int, frequencies: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The paper's formula for one dimension and alpha = 1: f_i(x) = sum_k A_ik / k sin(2 pi (k x B_ik + C_ik)).

    Each class and neuron is stretched to [0, 1] over the class's points, and that fraction of `steps` is the step of
    the spike. Every class has the same share of the training, validation and test part.

    Returns:
        times (n, units) int32, labels (n,) int64.
    """
    times = []
    k = np.arange(1, frequencies + 1)
    for number in range(classes):
        rng = np.random.default_rng(integer("randman", classes, units, number))
        A, B, C = rng.random((3, units, frequencies))
        x = rng.random(points)
        y = np.stack(
            [(np.sin(2 * np.pi * (np.outer(x, k * B[i]) + C[i])) * (A[i] / k)).sum(1) for i in range(units)], 1
        )
        y = (y - y.min(0)) / (np.ptp(y, axis=0) + 1e-7)
        times.append((steps * y).astype(np.int32))
    # points of a class are in random order already: the i-th of every class, then the next
    return np.stack(times, 1).reshape(-1, units), np.tile(np.arange(classes), points)


@lru_cache(maxsize=1)
def stork_randman() -> tuple[np.ndarray, np.ndarray]:
    """`stork.datasets.make_tempo_randman` as notebook 01 calls it, with fzenke/randman's torch code: the same bits.

    It differs from the paper: the weight of frequency i = 0, 1, ... is 1 / (i + 2), and the constant term is zero.
    """
    rng = np.random.RandomState(STORK_SEED)
    seeds = rng.randint(np.iinfo(np.int64).max, size=(10, 1))
    parts = []
    for seed in seeds[:, 0]:
        x = torch.tensor(rng.rand(1000, 1), dtype=torch.float32)
        A, B, C = torch.rand(20, 1, 3, 1000, generator=torch.Generator().manual_seed(int(seed)))[:, 0].unbind(1)
        A[:, 0] = 0
        spectrum = 1.0 / ((torch.arange(1000, dtype=torch.float32) + 1) ** 1 + 1.0)
        y = torch.zeros(1000, 20)
        for i in range(1000):  # in this order: the sums round
            y += A[:, i] * spectrum[i] * torch.sin(2 * np.pi * (i * x * B[:, i] + C[:, i]))
        low, high = y.min(0).values, y.max(0).values
        parts.append(((y - low) / (high - low + 1e-7)).numpy())
    order = np.arange(10_000)
    rng.shuffle(order)
    times = 100 * (0.5 * np.concatenate(parts).astype(np.float64)[order])
    return times.astype(np.int32), np.repeat(np.arange(10), 1000)[order]


# ---- recordings and pictures


def braille(data_dir: Path | None) -> Data:
    """spytorch Tutorial 5: four taxels of 27 letters read 50 times, standardised, every step held for two."""
    read = hub.load("local/braille-taxels", "train", data_dir)
    letters, recordings = np.array(read["letter"]), read["taxel_data"]
    shortest = min(len(r) for r in recordings)
    raw = np.array([r[:shortest] for r in recordings])  # (1350, 76, 12)
    labels = np.array([LETTERS.index(letter) for letter in letters])
    x = torch.tensor(1.0 - raw / 255, dtype=torch.float32)[:, :, TAXELS]
    flat = x.reshape(-1, len(TAXELS))
    x = (x - flat.mean(0)) / (flat.std(0) + 1e-3)
    x = x.repeat_interleave(2, 1)
    order = np.arange(len(x))
    np.random.RandomState(BRAILLE_SEED).shuffle(order)
    x, y = x[order], torch.from_numpy(labels[order])
    n = int(0.8 * len(x))
    train, test = Split(x[:n], y[:n]), Split(x[n:], y[n:])
    return Data(train, None, test, len(LETTERS), (len(TAXELS),), hub.fingerprint(raw, labels))


def latencies(pixels: Tensor, steps: int, tau: float = 20.0, threshold: float = 0.2) -> Tensor:
    """spytorch Tutorial 2: the step at which a neuron charged by a grey level fires; `steps` where it never does."""
    x = pixels.double() / 255
    charged = x.clamp_min(threshold + 1e-7)
    when = tau * torch.log(charged / (charged - threshold))
    when[x < threshold] = steps
    return when.clamp_max(steps).int()


def bernoulli(pixels: Tensor, steps: int, *key: int | str) -> Tensor:
    """Rate code: at every step each pixel spikes with its grey level as probability, exactly g / 255. (b, steps, n)."""
    if pixels.device.type == "cpu":
        rng = np.random.default_rng(integer(*key))
        bits = torch.from_numpy(rng.integers(0, 255, (len(pixels), steps, pixels.shape[1]), np.uint8))  # 0 .. 254
    else:
        shape = (len(pixels), steps, pixels.shape[1])
        numbers = generator(*key, device=pixels.device)
        bits = torch.empty(shape, dtype=torch.uint8, device=pixels.device).random_(0, 255, generator=numbers)
    return (bits < pixels[:, None]).float()
