"""Views of small pictures that lie on the device: random resized crop, flip, colour jitter, grey and blur, by batches.

Two styles: "google", after data_util.py of google-research/simclr (its first version) and the TensorFlow operations
below it, and "torchvision", after the transforms that lightly composes. What happens to a picture is a pure function of
(seed, epoch, picture, view).

A crop, its resizing and its mirror image are one matrix per side: y = R x C, two batched products for the whole batch;
so is a blur. Jitter is done for all pictures with the same order of its four parts at once.

Glossary: x pictures (b, h, 3, w), which these products leave in place; u random numbers in [0, 1).
"""

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from common.data.augment import PerSample

Style = Literal["google", "torchvision"]
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a crop (Appendix A)
LUMA = {"google": (0.2989, 0.5870, 0.1140), "torchvision": (0.299, 0.587, 0.114)}
TABLE = 1024  # TensorFlow looks its bicubic weights up at so many places between two pixels
ATTEMPTS = 10  # of torchvision, until a crop fits
ORDERS = list(itertools.permutations(range(4)))  # of brightness, contrast, saturation, hue


def to_rows(images: Tensor) -> Tensor:
    """(n, h, w, 3) -> (n, h, 3, w)"""
    return images.transpose(2, 3).contiguous()


def to_channels_last(x: Tensor) -> Tensor:
    """(b, h, 3, w) -> (b, 3, h, w), channels last in memory."""
    return x.transpose(2, 3).contiguous().permute(0, 3, 1, 2)


# ---- where to crop


def google_boxes(side: int, u: Tensor) -> Tensor:
    """sample_distorted_bounding_box: ratio, then height uniform; u (b, 4) -> (b, 4) as top, left, height, width.

    Heights are spread evenly between that of the least and that of the largest area, so areas are not. A place's last
    pixel is never chosen: the operation's Uniform(n) ends at n - 1. Its first attempt always fits at these sizes.
    """
    ratio = RATIO[0] + u[:, 0] * (RATIO[1] - RATIO[0])
    least, most = AREA[0] * side**2, AREA[1] * side**2
    high = (most / ratio).sqrt().round()
    narrow = ((side + 0.5 - 1e-7) / ratio).floor()
    narrow -= ((narrow * ratio).round() > side).to(u.dtype)
    high = torch.where((high * ratio).round() > side, narrow, high).clamp(max=side)
    low = torch.minimum((least / ratio).sqrt().round(), high)
    h = low + (u[:, 1] * (high - low + 1)).floor()
    h += (h * (h * ratio).round() < least).to(u.dtype)
    h -= (h * (h * ratio).round() > most).to(u.dtype)
    size = torch.stack([h, (h * ratio).round()], 1)
    return torch.cat([(u[:, 2:4] * (side - size)).floor(), size], 1)


def torchvision_boxes(side: int, u: Tensor) -> Tensor:
    """RandomResizedCrop: area and logarithm of the ratio uniform, ten attempts, else the whole; u (b, 2 + 20)."""
    tries = u[:, 2:].view(-1, ATTEMPTS, 2)
    area = side**2 * (AREA[0] + tries[..., 0] * (AREA[1] - AREA[0]))
    ratio = torch.exp(math.log(RATIO[0]) + tries[..., 1] * math.log(RATIO[1] / RATIO[0]))
    sizes = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()], 2)  # (b, attempts, 2)
    fits = ((sizes > 0) & (sizes <= side)).all(2)
    first = sizes[torch.arange(len(u)), fits.int().argmax(1)]
    size = torch.where(fits.any(1, keepdim=True), first, torch.full_like(first, side))
    return torch.cat([(u[:, :2] * (side - size + 1)).floor(), size], 1)


# ---- what resizes


def cubic(t: Tensor) -> Tensor:
    """Weights of the pixels -1, 0, 1, 2 around a place t behind pixel 0 (a = -0.75), (...) -> (..., 4)."""
    t = (t * TABLE).round() / TABLE
    a = -0.75

    def near(t: Tensor) -> Tensor:
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def far(t: Tensor) -> Tensor:
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    return torch.stack([far(1 + t), near(t), near(1 - t), far(2 - t)], -1)


def resizing(first: Tensor, size: Tensor, side: int, style: Style, flip: Tensor | None = None) -> Tensor:
    """Matrices (b, side, side) that stretch pixels first, ..., first + size - 1 to `side` places, mirrored by `flip`.

    google: resize_bicubic as TensorFlow 1 has it: place i reads at i * size / side, without half a pixel's shift.
    torchvision: bilinear between centres of pixels. Crops are never larger than the result: nothing to smooth.
    """
    i = torch.arange(side, device=first.device, dtype=first.dtype).expand(len(first), -1)
    if flip is not None:
        i = torch.where(flip[:, None], side - 1 - i, i)
    first, size = first[:, None, None], size[:, None]
    if style == "google":
        place = i * (size / side)
        weights, taps = cubic(place - place.floor()), torch.arange(-1, 3, device=i.device)
    else:
        place = (i + 0.5) * (size / side) - 0.5
        t = place - place.floor()
        weights, taps = torch.stack([1 - t, t], -1), torch.arange(2, device=i.device)
    pixel = (place.floor()[..., None] + taps).clamp(min=0).minimum(size[..., None] - 1) + first  # (b, side, taps)
    return weights.new_zeros(*place.shape, side).scatter_add_(2, pixel.long(), weights)


def blurring(sigma: Tensor, side: int) -> Tensor:
    """Matrices (b, side, side) of a Gaussian over side // 10 pixels, zeros beyond the edge (random_blur)."""
    radius = side // 10 // 2
    along = torch.arange(side, device=sigma.device)
    d = along[:, None] - along
    kernel = torch.exp(-d.square() / (2 * sigma[:, None, None].square())) * (d.abs() <= radius)
    reach = torch.arange(-radius, radius + 1, device=sigma.device)
    return kernel / torch.exp(-reach.square() / (2 * sigma[:, None].square())).sum(1)[:, None, None]


# ---- colours: x (3, b, h, w) in place, one random number f (b, 1, 1) a picture


def luma(x: Tensor, style: Style, dim: int = 0) -> Tensor:
    """Grey, without the dimension of the channels."""
    r, g, b = x.unbind(dim)
    wr, wg, wb = LUMA[style]
    return (wr * r).add_(g, alpha=wg).add_(b, alpha=wb)


def brightness_added(x: Tensor, f: Tensor) -> Tensor:
    return x.add_(f)


def brightness_multiplied(x: Tensor, f: Tensor) -> Tensor:
    return x.mul_(f)


def contrast_google(x: Tensor, f: Tensor) -> Tensor:
    """Away from the mean of each channel."""
    mean = x.mean((2, 3), keepdim=True)
    return x.sub_(mean).mul_(f).add_(mean)


def contrast_torchvision(x: Tensor, f: Tensor) -> Tensor:
    """Away from the mean of the grey picture."""
    mean = luma(x, "torchvision").mean((1, 2), keepdim=True)
    return x.sub_(mean).mul_(f).add_(mean)


def saturation_google(x: Tensor, f: Tensor) -> Tensor:
    """S of HSV times f, at most 1; with V = max: c <- V - (V - c) min(f, V / (max - min)). No way through HSV."""
    v = x.amax(0)
    chroma = (v - x.amin(0)).clamp_(min=1e-12)
    return x.sub_(v).mul_(torch.minimum(v / chroma, f).clamp_(min=0)).add_(v)


def saturation_torchvision(x: Tensor, f: Tensor) -> Tensor:
    """Away from the grey picture."""
    grey = luma(x, "torchvision")
    return x.sub_(grey).mul_(f).add_(grey)


def hue(x: Tensor, f: Tensor) -> Tensor:
    """H of HSV plus f turns: c <- V - (max - min) * clip(2 - |k - 2|, 0, 1), k = n_c + 6 H mod 6, n = 5, 3, 1.

    `lerp` by a sign stands for `where`, which takes ten times as long on a CPU.
    """
    r, g, b = x
    v = x.amax(0)
    chroma = (v - x.amin(0)).clamp_(min=1e-12)
    green_or_blue = torch.lerp((b - r).add_(chroma, alpha=2), (r - g).add_(chroma, alpha=4), (v - g).sign_())
    h = torch.lerp(g - b, green_or_blue, (v - r).sign_()).div_(chroma).add_(6 * f)
    for c, n in enumerate((5, 3, 1)):
        k = h + n
        k.sub_((k / 6).floor_(), alpha=6).sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
        torch.addcmul(v, k, chroma, value=-1, out=x[c])
    return x


# ---- all together


class Views:
    """(sample numbers (b,) on the CPU, epoch) -> (views * b, 3, side, side), float32 in channels-last order.

    Args:
        images: (n, h, 3, w) uint8, on the device.
        views: of each picture; the first views come first.
        crop: resized crop and flip; off: the whole picture.
        strength: of the jitter; 1 on ImageNet, 0.5 on CIFAR-10 (B.9).
        jitter, grey, blur: probabilities (Appendix A).
        brightness: "add": a random value (the paper, the code's first version), or "multiply".
        purpose: names the random numbers.
    """

    def __init__(
        self,
        images: Tensor,
        seed: int,
        style: Style = "google",
        *,
        views: int = 2,
        crop: bool = True,
        strength: float = 0.5,
        jitter: float = 0.8,
        grey: float = 0.2,
        blur: float = 0.0,
        brightness: Literal["add", "multiply"] = "add",
        purpose: str = "views",
    ) -> None:
        self.images, self.style, self.views, self.crop, self.purpose = images, style, views, crop, purpose
        self.strength, self.jitter, self.grey, self.blur = strength, jitter, grey, blur
        google, added = style == "google", brightness == "add"
        self.colours: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
            brightness_added if added else brightness_multiplied,
            contrast_google if google else contrast_torchvision,
            saturation_google if google else saturation_torchvision,
            hue,
        )
        wide, narrow = 0.8 * strength, 0.2 * strength
        self.centre = torch.tensor([0.0 if added else 1.0, 1.0, 1.0, 0.0])  # jitter draws centre + spread * (-1 to 1)
        self.spread = torch.tensor([wide, wide, wide, narrow])
        self.boxes = google_boxes if google else torchvision_boxes
        self.columns = 10 + (4 if google else 2 + 2 * ATTEMPTS)  # random numbers of a view
        self.draws = PerSample(len(images), seed)  # on the CPU, where who gets what is decided

    def __call__(self, index: Tensor, epoch: int) -> Tensor:
        u = self.draws.uniform(self.purpose, epoch, self.views * self.columns)[index]
        u = u.view(len(index), self.views, -1).transpose(0, 1).flatten(0, 1)  # (views * b, columns)
        here = self.images.device
        x = self.images[index.repeat(self.views).to(here)].to(torch.float32).div_(255)
        if self.crop:
            x = self.cropped(x, u[:, 10:].to(here), u[:, 0].to(here) < 0.5)
        if self.jitter:
            self.jitter_colours(x, u)
        if self.grey:
            chosen = torch.nonzero(u[:, 7] < self.grey)[:, 0].to(here)
            x.index_copy_(0, chosen, luma(x[chosen], self.style, 2)[:, :, None].expand(-1, -1, 3, -1))
        if self.blur:
            chosen = torch.nonzero(u[:, 8] < self.blur)[:, 0].to(here)
            side = x.shape[1]
            matrix = blurring(0.1 + 1.9 * u[:, 9].to(here)[chosen], side)
            y = matrix @ x[chosen].view(-1, side, 3 * side)
            x.index_copy_(0, chosen, (y.view(-1, side * 3, side) @ matrix.mT).view(-1, side, 3, side))
        return to_channels_last(x.clamp_(0, 1))

    def cropped(self, x: Tensor, u: Tensor, flip: Tensor) -> Tensor:
        b, side = x.shape[:2]
        top, left, height, width = self.boxes(side, u).unbind(1)
        rows = resizing(top, height, side, self.style)
        columns = resizing(left, width, side, self.style, flip)
        y = x.view(b, side * 3, side) @ columns.mT
        return (rows @ y.view(b, side, 3 * side)).view_as(x)

    def jitter_colours(self, x: Tensor, u: Tensor) -> None:
        """The four parts in random order, clipped to [0, 1] after each; x in place."""
        f = (self.centre + self.spread * (2 * u[:, 2:6] - 1)).to(x.device)  # (b, 4)
        order = (u[:, 6] * len(ORDERS)).long()
        order[u[:, 1] >= self.jitter] = len(ORDERS)  # left alone
        groups = order.argsort(stable=True).split(order.bincount(minlength=len(ORDERS) + 1).tolist())
        for parts, chosen in zip(ORDERS, groups[:-1], strict=True):
            if len(chosen):
                chosen = chosen.to(x.device)
                y = x[chosen].permute(2, 0, 1, 3).contiguous()
                for part in parts:
                    self.colours[part](y, f[chosen, part].view(-1, 1, 1)).clamp_(0, 1)
                x.index_copy_(0, chosen, y.permute(1, 2, 0, 3))
