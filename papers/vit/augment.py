"""AutoAugment's CIFAR-10 policy and RandAugment on whole batches of uint8 pictures that lie on the device.

Written after Pillow's arithmetic, operation by operation (the tests compare every pixel), and after the public codes
whose numbers are reproduced: DeepVoltaire's AutoAugment, which SHI-Labs/Compact-Transformers (cd11f09) and
omihub777/ViT-CIFAR (ab9043e) use, and the RandAugment of kentaroy47/vision-transformers-cifar10 (5bb83d3).

Four families cover all operations: a table of 256 values for every picture and channel; nearest pixels under an affine
map; a cubic shear; a blend with a degenerate picture. Draws are functions of (seed, epoch, sample) or (seed, step).

Glossary: x pictures (b, h, w, c) uint8; op an operation's number in OPERATIONS (b,); v its magnitude (b,).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data.augment import PerSample, blend, boxes, pad, windows
from common.random import generator, integer

OPERATIONS = (
    "identity", "invert", "posterize", "solarize", "solarize-add", "brightness", "contrast", "autocontrast", "equalize",
    "shear-x", "shear-y", "translate-x", "translate-y", "rotate",
    "cubic-shear-x", "cubic-shear-y", "color", "sharpness", "cutout",
)  # fmt: skip
OP = {name: i for i, name in enumerate(OPERATIONS)}


def apply(x: Tensor, op: Tensor, v: Tensor, fill: int, corner: Tensor | None = None) -> Tensor:
    """One operation on each picture; `fill` is the grey beyond the edge, `corner` (b, 2) the cutout's place."""
    x = _where(_among(op, "invert", "equalize"), x, _by_table, op, v)
    x = _where(_among(op, "shear-x", "rotate"), x, lambda x, op, v: _affine(x, op, v, fill), op, v)
    x = _where(_among(op, "cubic-shear-x", "cubic-shear-y"), x, lambda x, op, v: _cubic(x, op, v, fill), op, v)
    x = _where(_among(op, "color", "sharpness"), x, _blended, op, v)
    return x if corner is None else _where(op == OP["cutout"], x, _cutout, v, corner)


def _among(op: Tensor, first: str, last: str) -> Tensor:
    return (op >= OP[first]) & (op <= OP[last])


def _where(mask: Tensor, x: Tensor, f: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """f on the chosen pictures: gathered on a CPU; on a GPU computed for all, which costs no synchronisation."""
    if x.device.type != "cpu":
        return torch.where(mask[:, None, None, None], f(x, *parameters), x)
    rows = mask.nonzero()[:, 0]
    return x.index_put((rows,), f(x[rows], *(p[rows] for p in parameters))) if len(rows) else x


def _grey(x: Tensor) -> Tensor:
    """Luminance as Pillow rounds it, (b, h, w) int32."""
    r, g, b = x.to(torch.int32).unbind(-1)
    return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16


def _mix(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """Image.blend: a + v (b - a) in float32, clipped, then cut off."""
    return (a + v * (b - a)).clamp(0, 255).to(torch.uint8)


def _by_table(x: Tensor, op: Tensor, v: Tensor) -> Tensor:
    """Everything that maps a value of a channel to another."""
    b, h, w, c = x.shape
    flat = x.view(b, h * w, c).transpose(1, 2).long()  # (b, c, h w)
    count = torch.zeros(b, c, 256, dtype=torch.int64, device=x.device).scatter_add_(2, flat, torch.ones_like(flat))
    i = torch.arange(256, device=x.device).view(1, 1, 256)
    op, v = op.view(b, 1, 1), v.view(b, 1, 1)

    solarize = torch.where(i < v, i, 255 - i)
    bits = (8 - v).long().clamp(0, 7)  # those set to zero
    posterize = (i >> bits) << bits
    added = (i + v).clamp(0, 255).long()
    solarize_add = torch.where(added < 128, added, 255 - added)
    grey = _grey(x).view(b, -1).to(torch.float64).mean(1).add(0.5).floor().to(torch.float32).view(b, 1, 1)
    level = i.to(torch.float32)
    brightness, contrast = _mix(torch.zeros_like(level), level, v), _mix(grey, level, v)

    there = count > 0  # autocontrast: the first and last value that occurs become 0 and 255
    low = there.to(torch.int8).argmax(2, keepdim=True).double()
    high = 255 - there.flip(2).to(torch.int8).argmax(2, keepdim=True).double()
    stretch = torch.full_like(low, 255.0) / (high - low).clamp(min=1)  # 255 / x would be 255 * (1 / x)
    autocontrast = torch.where(high > low, (i * stretch - low * stretch).clamp(0, 255).trunc(), i.double())

    last = count.gather(2, high.long())  # equalize: as ImageOps does, with its integer step
    step = (h * w - last) // 255
    before = count.cumsum(2) - count
    equalize = torch.where((step > 0) & (last < h * w), ((step // 2 + before) // step.clamp(min=1)).clamp(max=255), i)

    table = i.expand(b, c, 256).to(torch.uint8)
    for name, values in (
        ("invert", 255 - i),
        ("posterize", posterize),
        ("solarize", solarize),
        ("solarize-add", solarize_add),
        ("brightness", brightness),
        ("contrast", contrast),
        ("autocontrast", autocontrast),
        ("equalize", equalize),
    ):
        table = torch.where(op == OP[name], values.to(torch.uint8), table)
    return table.gather(2, flat).transpose(1, 2).reshape(b, h, w, c)


def _affine(x: Tensor, op: Tensor, v: Tensor, fill: int) -> Tensor:
    """Nearest pixels under x' = a0 x + a1 y + a2, y' = a3 x + a4 y + a5, in Pillow's 16 + 16 bit arithmetic."""
    b, h, w, _ = x.shape
    v = v.double()
    one, zero = torch.ones_like(v), torch.zeros_like(v)
    turn = -v * (math.pi / 180)
    cos, sin = turn.cos(), turn.sin()
    rotate, shear_x, shear_y = op == OP["rotate"], op == OP["shear-x"], op == OP["shear-y"]
    a0 = a4 = torch.where(rotate, cos, one)
    a1 = torch.where(rotate, sin, torch.where(shear_x, v, zero))
    a3 = torch.where(rotate, -sin, torch.where(shear_y, v, zero))
    a2 = torch.where(rotate, w / 2 - cos * (w / 2) - sin * (h / 2), torch.where(op == OP["translate-x"], v, zero))
    a5 = torch.where(rotate, h / 2 + sin * (w / 2) - cos * (h / 2), torch.where(op == OP["translate-y"], v, zero))

    def fixed(a: Tensor) -> Tensor:
        return (a * 65536 + 0.5).floor().long().view(b, 1, 1)

    column = torch.arange(w, device=x.device).view(1, 1, w)
    row = torch.arange(h, device=x.device).view(1, h, 1)
    from_x = (fixed(a2 + a0 / 2 + a1 / 2) + fixed(a0) * column + fixed(a1) * row) >> 16  # (b, h, w)
    from_y = (fixed(a5 + a3 / 2 + a4 / 2) + fixed(a3) * column + fixed(a4) * row) >> 16
    inside = (from_x >= 0) & (from_x < w) & (from_y >= 0) & (from_y < h)
    flat = (from_y.clamp(0, h - 1) * w + from_x.clamp(0, w - 1)).view(b, h * w, 1).expand(-1, -1, x.shape[3])
    moved = x.view(b, h * w, -1).gather(1, flat).view_as(x)
    return moved.masked_fill(~inside[..., None], fill)


def _cubic(x: Tensor, op: Tensor, v: Tensor, fill: int) -> Tensor:
    """Shear along x or y with Pillow's bicubic filter (a = -1) between four pixels of a line."""
    vertical = (op == OP["cubic-shear-y"])[:, None, None, None]
    x = torch.where(vertical, x.transpose(1, 2), x)  # pictures are square
    b, h, w, c = x.shape
    along = torch.arange(w, device=x.device, dtype=torch.float64).view(1, 1, w) + 0.5
    place = along + v.double().view(b, 1, 1) * (torch.arange(h, device=x.device).view(1, h, 1) + 0.5)
    inside = (place >= 0) & (place < w)
    first = (place - 0.5).floor()
    t = (place - 0.5 - first)[..., None]
    p = [
        x.gather(2, (first.long() + i).clamp(0, w - 1)[..., None].expand(-1, -1, -1, c)).double() for i in (-1, 0, 1, 2)
    ]
    value = p[1] + t * (-p[0] + p[2] + t * (2 * (p[0] - p[1]) + p[2] - p[3] + t * (-p[0] + p[1] - p[2] + p[3])))
    value = value.clamp(0, 255).to(torch.uint8).masked_fill(~inside[..., None], fill)
    return torch.where(vertical, value.transpose(1, 2), value)


def _blended(x: Tensor, op: Tensor, v: Tensor) -> Tensor:
    """Colour: away from the grey picture; sharpness: away from the smoothed one, whose border stays."""
    full = x.to(torch.int32)
    around = full.permute(0, 3, 1, 2).float()
    nine = torch.nn.functional.avg_pool2d(around, 3, 1, divisor_override=1).to(torch.int32).permute(0, 2, 3, 1)
    smooth = full.clone()
    smooth[:, 1:-1, 1:-1] = (2 * (nine + 4 * full[:, 1:-1, 1:-1]) + 13) // 26  # kernel 1 1 1 1 5 1 1 1 1, over 13
    plain = torch.where((op == OP["color"])[:, None, None, None], _grey(x)[..., None], smooth)
    return _mix(plain.float(), full.float(), v.view(-1, 1, 1, 1))


def _cutout(x: Tensor, v: Tensor, corner: Tensor) -> Tensor:
    """A rectangle of fixed colour with side v around `corner`, its far edge included as Pillow draws it."""
    side = x.shape[1]
    low = (corner - v[:, None] / 2).clamp(min=0).trunc()  # (b, 2) as x, y
    high = (low + v[:, None]).clamp(max=side).trunc()
    i = torch.arange(side, device=x.device)
    inside = (i >= low[..., None]) & (i <= high[..., None])  # (b, 2, side)
    colour = torch.tensor([125, 123, 114], dtype=torch.uint8, device=x.device)
    return torch.where((inside[:, 1, :, None] & inside[:, 0, None, :])[..., None], colour, x)


# ---- the policies

_POLICY = """invert 7 .1 contrast 6 .2; rotate 2 .7 translate-x 9 .3; sharpness 1 .8 sharpness 3 .9
shear-y 8 .5 translate-y 9 .7; autocontrast 8 .5 equalize 2 .9; shear-y 7 .2 posterize 7 .3; color 3 .4 brightness 7 .6
sharpness 9 .3 brightness 9 .7; equalize 5 .6 equalize 1 .5; contrast 7 .6 sharpness 5 .6; color 7 .7 translate-x 8 .5
equalize 7 .3 autocontrast 8 .4; translate-y 3 .4 sharpness 6 .2; brightness 6 .9 color 8 .2; solarize 2 .5 invert 3 .0
equalize 0 .2 autocontrast 0 .6; equalize 8 .2 equalize 4 .6; color 9 .9 equalize 6 .6; autocontrast 4 .8 solarize 8 .2
brightness 3 .1 color 0 .7; solarize 5 .4 autocontrast 3 .9; translate-y 9 .9 translate-y 9 .7
autocontrast 2 .9 solarize 3 .8; equalize 8 .8 invert 3 .1; translate-y 9 .7 autocontrast 1 .9"""


def _magnitude(name: str, level: int, side: int) -> tuple[str, float, bool]:
    """Operation, magnitude, and whether its sign is drawn (not that of a rotation), at a level of 0 to 9."""
    share = level / 9
    if name.startswith("shear"):
        return f"cubic-{name}", 0.3 * share, True
    if name.startswith("translate"):
        return name, 150 / 331 * share * side, True
    if name in ("color", "contrast", "sharpness", "brightness"):
        return name, 0.9 * share, True
    fixed = {"rotate": 30 * share, "posterize": float(round(8 - 4 * share)), "solarize": 256 - 256 * share}
    return name, fixed.get(name, 0.0), False


class AutoAugment:
    """The CIFAR-10 policy: one of 25 pairs of operations, each with its probability and magnitude."""

    def __init__(self, draws: PerSample, side: int) -> None:
        pairs = [line.split() for line in _POLICY.replace("\n", ";").split(";")]
        parts = [[_magnitude(p[i], int(p[i + 1]), side) for i in (0, 3)] for p in pairs]
        on: dict[str, Any] = {"device": draws.device}
        self.draws = draws
        self.op = torch.tensor([[OP[name] for name, _, _ in pair] for pair in parts], **on)  # (25, 2)
        self.v = torch.tensor([[v for _, v, _ in pair] for pair in parts], **on)
        self.signed = torch.tensor([[signed for _, _, signed in pair] for pair in parts], **on)
        self.enhances = self.op >= OP["color"]
        self.enhances |= (self.op == OP["brightness"]) | (self.op == OP["contrast"])
        self.probability = torch.tensor([[float(p[i]) for i in (2, 5)] for p in pairs], **on)

    def __call__(self, x: Tensor, index: Tensor, epoch: int) -> Tensor:
        """x of the samples `index` (b,) -> the same shape."""
        chosen = self.draws.integers("policy", epoch, len(self.op))[index, 0]
        happens = self.draws.uniform("policy happens", epoch, 2)[index] < self.probability[chosen]
        sign = 1 - 2 * self.draws.integers("policy sign", epoch, 2, 2)[index]
        v = torch.where(self.signed[chosen], self.v[chosen] * sign, self.v[chosen])
        v = torch.where(self.enhances[chosen], 1 + v, v)
        op = torch.where(happens, self.op[chosen], 0)
        for i in range(2):
            x = apply(x, op[:, i], v[:, i], fill=128)
        return x


class RandAugment:
    """n operations out of 16, all at magnitude m of 30 (kentaroy47's randomaug.py, ranges of EfficientNet's code).

    The translations are by pixels of ImageNet pictures: at m = 14 they move 47, so that a CIFAR picture turns black.
    """

    RANGES = (
        ("autocontrast", 0, 1), ("equalize", 0, 1), ("invert", 0, 1), ("rotate", 0, 30), ("posterize", 0, 4),
        ("solarize", 0, 256), ("solarize-add", 0, 110), ("color", 0.1, 1.9), ("contrast", 0.1, 1.9),
        ("brightness", 0.1, 1.9), ("sharpness", 0.1, 1.9), ("shear-x", 0, 0.3), ("shear-y", 0, 0.3), ("cutout", 0, 40),
        ("translate-x", 0, 100), ("translate-y", 0, 100),
    )  # fmt: skip

    def __init__(self, draws: PerSample, n: int, m: float) -> None:
        self.draws, self.n = draws, n
        values = [low + m / 30 * (high - low) for _, low, high in self.RANGES]
        values[4] = float(max(1, int(values[4])))
        self.op = torch.tensor([OP[name] for name, _, _ in self.RANGES], device=draws.device)
        self.v = torch.tensor(values, device=draws.device)
        self.signed = _among(self.op, "shear-x", "rotate")

    def __call__(self, x: Tensor, index: Tensor, epoch: int) -> Tensor:
        """x of the samples `index` (b,) -> the same shape."""
        side = x.shape[1]
        chosen = self.draws.integers("operation", epoch, len(self.op), self.n)[index]  # (b, n)
        sign = 1 - 2 * self.draws.integers("operation sign", epoch, 2, self.n)[index]
        corner = side + (1 - side) * self.draws.uniform("cutout", epoch, 2 * self.n)[index]
        v = torch.where(self.signed[chosen], self.v[chosen] * sign, self.v[chosen])
        for i in range(self.n):
            x = apply(x, self.op[chosen[:, i]], v[:, i], 0, corner[:, 2 * i : 2 * i + 2])
        return x


class Augment:
    """What happens to a training batch of small pictures before normalisation, in the order the code in question has.

    Args:
        policy: "none", "autoaugment" or "randaugment".
        first: the policy comes before the crop (Compact-Transformers, kentaroy47), not after the flip (omihub777).
        margin: zeros around the picture of which a cut-out of its size is taken, or
        inception: a random part of the picture's area, scaled to `size` (the paper's code, input_pipeline.py).
    """

    def __init__(
        self,
        draws: PerSample,
        side: int,
        size: int,
        policy: str,
        first: bool,
        margin: int,
        inception: bool,
        n: int = 2,
        m: float = 14,
    ) -> None:
        self.draws, self.size, self.first, self.margin, self.inception = draws, size, first, margin, inception
        self.policy: AutoAugment | RandAugment | None = None
        if policy != "none":
            self.policy = AutoAugment(draws, side) if policy == "autoaugment" else RandAugment(draws, n, m)

    def __call__(self, x: Tensor, index: Tensor, epoch: int) -> Tensor:
        """(b, side, side, c) uint8 of the samples `index` -> (b, size, size, c)."""
        if self.policy is not None and self.first:
            x = self.policy(x, index, epoch)
        flip = self.draws.integers("flip", epoch, 2)[index, 0] == 1
        if self.inception:
            x = resized(x, *boxes(x.shape[1], self.draws.uniform("box", epoch, 4)[index], 0.05), self.size)
            x = torch.where(flip[:, None, None, None], x.flip(2), x)
        else:
            places = self.draws.integers("place", epoch, 2 * self.margin + 1, 2)[index]
            here = torch.arange(len(x), device=x.device)
            x = windows(pad(x, self.margin), here, places[:, 0], places[:, 1], self.size, flip)
        if self.policy is not None and not self.first:
            x = self.policy(x, index, epoch)
        return x


def resized(x: Tensor, corner: Tensor, size: Tensor, to: int) -> Tensor:
    """Boxes of pictures, bilinearly scaled to `to` pixels a side without smoothing (tf.image.resize): uint8."""
    at = (torch.arange(to, device=x.device) + 0.5) / to  # centres
    place = (corner[..., None] + (at * size[..., None] - 0.5).clamp(min=0)).minimum((corner + size - 1)[..., None])
    low = place.long()
    high, t = (low + 1).minimum((corner + size - 1).long()[..., None]), (place - low)[..., None]  # (b, 2, to)
    b = torch.arange(len(x), device=x.device)[:, None, None]
    x = x.float()

    def row(y: Tensor) -> Tensor:
        left, right = x[b, y[:, :, None], low[:, 1, None]], x[b, y[:, :, None], high[:, 1, None]]
        return left + t[:, 1, None] * (right - left)

    top, bottom = row(low[:, 0]), row(high[:, 0])
    return (top + t[:, 0, :, None] * (bottom - top)).round().to(torch.uint8)


def mixing(b: int, side: int, seed: int, step: int, mixup: float, cutmix: float) -> tuple[Tensor, Tensor, float]:
    """Partner of every sample of a global batch, its share of every pixel (side, side), and its share of the label.

    Mixup blends by a Beta(mixup, mixup) share, cutmix pastes a square of that share; with both set, a coin decides.
    """
    share, portion = blend(side, np.random.default_rng(integer(seed, "mix", step)), mixup, cutmix)
    partner = torch.randperm(b, generator=generator(seed, "partner", step))
    return partner, share, portion
