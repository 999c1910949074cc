"""ImageNet as Section 3.4 cuts it: scale jitter, crops, flips and colour for training; one, ten or whole-image views
for testing. Views are uint8; the mean is subtracted on the device."""

import numpy as np
import PIL.Image
from torch import Tensor

from common.data.stream import ImageStream, View

# Principal components of RGB pixels of ImageNet, 0 to 1 (fb.resnet.torch, datasets/imagenet.lua)
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def resized(image: PIL.Image.Image, shorter: int) -> PIL.Image.Image:
    """The image with its shorter side `shorter` pixels long."""
    ratio = shorter / min(image.size)
    return image.resize(
        (max(shorter, round(image.width * ratio)), max(shorter, round(image.height * ratio))),
        PIL.Image.Resampling.BILINEAR,
    )


def window(image: PIL.Image.Image, left: int, top: int, size: int) -> np.ndarray:
    """(size, size, 3) uint8"""
    return np.asarray(image.crop((left, top, left + size, top + size)))


def training_view(size: int, scales: tuple[int, int], colour: float) -> View:
    """Shorter side drawn from `scales`, random crop, flip, and AlexNet's shift along the principal components."""

    def view(image: PIL.Image.Image, numbers: np.random.Generator) -> np.ndarray:
        image = resized(image, int(numbers.integers(scales[0], scales[1] + 1)))
        left, top = (int(numbers.integers(side - size + 1)) for side in image.size)
        x = window(image, left, top, size)
        if numbers.random() < 0.5:
            x = x[:, ::-1]
        shift = 255 * EIGENVECTORS @ (EIGENVALUES * numbers.normal(0, colour, 3))
        return np.clip(np.rint(x + shift), 0, 255).astype(np.uint8)

    return view


def centre_view(size: int, shorter: int = 256) -> View:
    """One crop: the centre of the image at shorter side 256, (1, size, size, 3)."""

    def view(image: PIL.Image.Image, _: np.random.Generator) -> np.ndarray:
        image = resized(image, shorter)
        return window(image, (image.width - size) // 2, (image.height - size) // 2, size)[None]

    return view


def ten_views(size: int, shorter: int = 256) -> View:
    """AlexNet's ten crops: four corners and the centre, and their mirror images, (10, size, size, 3)."""

    def view(image: PIL.Image.Image, _: np.random.Generator) -> np.ndarray:
        image = resized(image, shorter)
        right, bottom = image.width - size, image.height - size
        places = [(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)]
        five = np.stack([window(image, left, top, size) for left, top in places])
        return np.concatenate([five, five[:, :, ::-1]])

    return view


def whole_view(shorter: int) -> View:
    """The whole image at one scale, and its mirror image, (2, h, w, 3)."""

    def view(image: PIL.Image.Image, _: np.random.Generator) -> np.ndarray:
        x = np.asarray(resized(image, shorter))
        return np.stack([x, x[:, ::-1]])

    return view


def mean_image(stream: ImageStream) -> Tensor:
    """Per-pixel mean of a stream of centre crops, (h, w, 3), 0 to 255."""
    total, n = Tensor(), 0
    for x, _ in stream.once():
        part = x.double().sum((0, 1))
        total, n = part if n == 0 else total + part, n + len(x)
    return (total / n).float()
