"""MNIST- and CIFAR-sized image sets, whole, as uint8 tensors."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from common.data import hub
from common.errors import UserError


@dataclass(frozen=True)
class Images:
    """A labelled image set: images (n, h, w, c) uint8, labels (n,) int64."""

    name: str
    fingerprint: str
    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor


@lru_cache(maxsize=2)  # seeds that train one after the other read it once
def load(name: str, data_dir: Path | None) -> Images:
    """Load `ylecun/mnist`, `uoft-cs/cifar10` or any Hub set with one image and one label column.

    `synthetic/28x28x1` (any height, width, channels) is drawn by the program: no file, no network. `sklearn/digits`
    comes with scikit-learn.

    Raises:
        UserError: the set cannot be reached.
    """
    if name == "sklearn/digits":
        parts = _digits()
    elif name.startswith("synthetic/"):
        parts = [_draw(name, n, split) for n, split in ((512, "train"), (128, "test"))]
    else:
        parts = [_read(name, split, data_dir) for split in ("train", "test")]
    (train, train_labels), (test, test_labels) = parts
    fingerprint = hub.fingerprint(train, train_labels, test, test_labels)
    return Images(name, fingerprint, *map(torch.from_numpy, (train, train_labels, test, test_labels)))


def column(name: str, split: str, data_dir: Path | None) -> np.ndarray:
    """The image column alone, (n, h, w, c) uint8, for sets without labels or with one split."""
    data = hub.load(name, split, data_dir)
    with hub.reading(f"{name} ({split})"):
        return _images(data)


def _images(data) -> np.ndarray:
    from datasets import Image

    names = [key for key, feature in data.features.items() if isinstance(feature, Image)]
    if not names:
        raise UserError(f"the data set has no image column, only {', '.join(data.features)}")
    images = np.stack([np.asarray(image) for image in data[names[0]]])
    return images[..., None] if images.ndim == 3 else images


def _read(name: str, split: str, data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
    from datasets import ClassLabel

    data = hub.load(name, split, data_dir)
    labels = [key for key, feature in data.features.items() if isinstance(feature, ClassLabel) or key == "label"]
    if not labels:
        raise UserError(f"data set {name} has no label column, only {', '.join(data.features)}")
    with hub.reading(f"{name} ({split})"):
        return _images(data), np.asarray(data[labels[0]], dtype=np.int64)


def _digits() -> list[tuple[np.ndarray, np.ndarray]]:
    """1,797 handwritten digits of 8 x 8, ink from 0 to 16; 540 are kept for the test, in the classes' proportions."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise UserError(
            "data set sklearn/digits comes with scikit-learn, which is missing: "
            "pip install -c constraints.txt scikit-learn"
        ) from None
    digits = load_digits()
    pixels, labels = digits.images.astype(np.uint8)[..., None], digits.target.astype(np.int64)
    train, test, train_labels, test_labels = train_test_split(
        pixels, labels, test_size=0.3, stratify=labels, random_state=0
    )
    return [(train, train_labels), (test, test_labels)]


def _draw(name: str, n: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Ten classes of blurred strokes, one direction each: learnable, and small."""
    try:
        h, w, c = map(int, name.removeprefix("synthetic/").split("x"))
    except ValueError:
        raise UserError(f"{name!r} should read synthetic/<height>x<width>x<channels>, e.g. synthetic/28x28x1") from None
    rng = np.random.default_rng([h, w, c, n])
    labels = np.arange(n) % 10
    angle = labels * np.pi / 10
    centre = rng.uniform(0.35, 0.65, (2, n, 1, 1))
    y, x = np.meshgrid(np.linspace(0, 1, h), np.linspace(0, 1, w), indexing="ij")
    dy, dx = y - centre[0], x - centre[1]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    across, along = dx * sin - dy * cos, dx * cos + dy * sin
    ink = np.exp(-(across**2) / 0.004 - along**2 / 0.06)
    colour = rng.uniform(0.6, 1.0, (n, 1, 1, c))
    return np.round(255 * ink[..., None] * colour).astype(np.uint8), labels.astype(np.int64)
