"""Pictures as the protocols cut them: small sets on the device in whole batches, ImageNet in the decoding threads.

ImageNet's views follow the code: torchvision's random crop for pre-training, util/crop.py for linear probing, and
timm's `rand-m9-mstd0.5-inc1` for fine-tuning.
"""

import math
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL import ImageEnhance, ImageOps
from torch import Tensor
from torch.nn import functional as F

from common.data.augment import PerSample, Transform, boxes
from common.data.stream import View

BICUBIC = PIL.Image.Resampling.BICUBIC
MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet (code: main_pretrain.py)
GREY = tuple(min(255, round(255 * value)) for value in MEAN)  # beyond an edge (timm)


# ---- small sets


def resized(x: Tensor, corner: Tensor, size: Tensor) -> Tensor:
    """Boxes of square pictures (b, s, s, c) at the size of the whole, bicubic: uint8."""
    b, s, _, c = x.shape
    scale, shift = (size / s).flip(1), ((2 * corner + size) / s - 1).flip(1)  # x before y
    theta = torch.cat([torch.diag_embed(scale), shift[..., None]], 2)
    grid = F.affine_grid(theta, [b, c, s, s], align_corners=False)
    planes = x.permute(0, 3, 1, 2).float()
    found = F.grid_sample(planes, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return found.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def random_boxes(n: int, seed: int, device: torch.device, least: float = 0.2) -> Transform:
    """A random box of each picture in place of the picture."""
    draws = PerSample(n, seed, device)

    def transform(x: Tensor, index: Tensor, epoch: int) -> Tensor:
        return resized(x, *boxes(x.shape[1], draws.uniform("box", epoch, 4)[index], least))

    return transform


# ---- ImageNet


def random_crop(
    image: PIL.Image.Image, rng: np.random.Generator, size: int, least: float, attempts: int
) -> PIL.Image.Image:
    """`least` to 1 of the area, 3/4 to 4/3 as wide as high, at `size`; with no attempts what is too long is cut."""
    width, height = image.size
    box = None
    for _ in range(max(1, attempts)):
        area = rng.uniform(least, 1.0) * width * height
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if not attempts:
            w, h = min(w, width), min(h, height)
        if 0 < w <= width and 0 < h <= height:
            box = w, h, int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    if box is None:  # torchvision: the middle, as wide or high as allowed
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        box = w, h, (width - w) // 2, (height - h) // 2
    w, h, left, top = box
    return image.resize((size, size), BICUBIC, box=(left, top, left + w, top + h))


def flipped(image: PIL.Image.Image, rng: np.random.Generator) -> PIL.Image.Image:
    return image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def shorter_side(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    scale = side / min(image.size)
    return image.resize((max(side, round(image.width * scale)), max(side, round(image.height * scale))), BICUBIC)


def window(image: PIL.Image.Image, left: int, top: int, size: int) -> PIL.Image.Image:
    return image.crop((left, top, left + size, top + size))


def training_view(kind: str, size: int) -> View:
    """`random`, `fixed` or `none` (Table 1e), `probe` (A.1, linear probing) or `strong` (Table 9): (size, size, 3)."""

    def view(image: PIL.Image.Image, rng: np.random.Generator) -> np.ndarray:
        if kind == "none":
            return evaluation_view(size)(image, rng)
        if kind == "fixed":
            image = shorter_side(image, round(size * 256 / 224))
            left, top = (int(rng.integers(side - size + 1)) for side in image.size)
            image = window(image, left, top, size)
        else:
            least = 0.2 if kind == "random" else 0.08  # torchvision's default
            image = random_crop(image, rng, size, least, attempts=0 if kind == "probe" else 10)
        image = flipped(image, rng)
        return np.asarray(rand_augment(image, rng) if kind == "strong" else image)

    return view


def evaluation_view(size: int) -> View:
    """The middle, the shorter side being 256 / 224 of it (code: util/datasets.py)."""

    def view(image: PIL.Image.Image, _: np.random.Generator) -> np.ndarray:
        image = shorter_side(image, round(size * 256 / 224))
        return np.asarray(window(image, round((image.width - size) / 2), round((image.height - size) / 2), size))

    return view


def rand_augment(
    image: PIL.Image.Image, rng: np.random.Generator, n: int = 2, magnitude: float = 9.0, sd: float = 0.5
) -> PIL.Image.Image:
    """RandAug(9, 0.5): n of fifteen operations, each carried out half of the time, harder with a larger magnitude."""
    for _ in range(n):
        name = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
        strength = min(max(rng.normal(magnitude, sd), 0.0), 10.0) / 10
        sign = 1 if rng.random() < 0.5 else -1
        if rng.random() < 0.5:
            image = operation(name, image, strength, sign)
    return image


ENHANCE: dict[str, Any] = {
    "color": ImageEnhance.Color, "contrast": ImageEnhance.Contrast, "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}  # fmt: skip
OPERATIONS = (
    "autocontrast", "equalize", "invert", "posterize", "solarize", "solarize-add", "rotate", "shear-x", "shear-y",
    "translate-x", "translate-y", *ENHANCE,
)  # fmt: skip


def operation(name: str, image: PIL.Image.Image, strength: float, sign: int) -> PIL.Image.Image:
    """One operation at a strength of 0 to 1 (timm's auto_augment.py, the increasing ones)."""
    if name in ENHANCE:
        return ENHANCE[name](image).enhance(max(0.1, 1 + 0.9 * sign * strength))
    if name == "solarize-add":
        table = [min(255, i + int(110 * strength)) if i < 128 else i for i in range(256)]
        return image.point(table * 3)
    if name == "posterize":
        return ImageOps.posterize(image, 4 - int(4 * strength))
    if name == "solarize":
        return ImageOps.solarize(image, 256 - int(256 * strength))
    if name == "rotate":
        return image.rotate(30 * sign * strength, BICUBIC, fillcolor=GREY)
    plain: dict[str, Any] = {
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "invert": ImageOps.invert,
    }
    if name in plain:
        return plain[name](image)
    v = sign * strength
    affine = {
        "shear-x": (1, 0.3 * v, 0, 0, 1, 0), "shear-y": (1, 0, 0, 0.3 * v, 1, 0),
        "translate-x": (1, 0, 0.45 * v * image.width, 0, 1, 0),
        "translate-y": (1, 0, 0, 0, 1, 0.45 * v * image.height),
    }[name]  # fmt: skip
    return image.transform(image.size, PIL.Image.Transform.AFFINE, affine, BICUBIC, fillcolor=GREY)
