"""SimCLR on digits of 8 x 8: two convolutions, light views, and linear probes on few labels.

notebooks/training/C_simclr_pretrain.ipynb of ChaoYue0307/ropedia-academy at 72c2d60 ("code" below), a published run of
this paper's loss on data anybody has. Unlike the paper's views these are not cropped, and a whole batch is shifted and
cut out alike; no layer normalises.

Glossary (name here: meaning, shape)
    x:           pictures, (b, 1, side, side) in [0, 1]
    h, z:        what the encoder and the head give, (b, 64) and (b, k), as in model.py
    r:           probes, one for each draw of labels
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.random import generator

DIM = 64  # of h
NOISE = 0.1  # standard deviation of a pixel's
DIMMEST, BRIGHTEST = 0.75, 1.25  # gain of a picture
SHIFT = 1  # pixels at most, whatever leaves at one edge coming in at the other
CUT, SQUARE = 0.3, 2  # probability of a cut-out, its side


class Net(nn.Module):
    """Pictures -> z; the encoder alone gives h."""

    def __init__(self, projection: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(  # the code's ReLU comes before its max pooling: the same, on four times as much
            nn.Conv2d(1, 32, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(inplace=True),
            nn.Conv2d(32, DIM, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(DIM, 128), nn.ReLU(), nn.Linear(128, projection))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class Draws(NamedTuple):
    """What a view of a batch leaves to chance."""

    noise: Tensor  # (b, 1, side, side), N(0, 1)
    gain: Tensor  # (b, 1, 1, 1)
    shift: tuple[int, int]  # down, right
    corner: tuple[int, int] | None  # of the cut-out, top and left


def drawn(shape: torch.Size, draw: torch.Generator) -> Draws:
    """Noise for every pixel, a gain for every picture, shift and cut-out for the whole batch (code)."""
    noise = torch.randn(shape, generator=draw)
    gain = DIMMEST + (BRIGHTEST - DIMMEST) * torch.rand(shape[0], 1, 1, 1, generator=draw)
    down, right = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=draw).tolist()
    cut = float(torch.rand((), generator=draw)) < CUT
    top, left = torch.randint(shape[-1] - SQUARE, (2,), generator=draw).tolist()  # never at the last row or column
    return Draws(noise, gain, (down, right), (top, left) if cut else None)


def view(x: Tensor, draws: Draws) -> Tensor:
    """Noise, gain, shift, cut-out in this order, and back into [0, 1] at the end alone (code)."""
    x = (x + NOISE * draws.noise.to(x.device)) * draws.gain.to(x.device)
    x = x.roll(draws.shift, (-2, -1))
    if draws.corner is not None:
        top, left = draws.corner
        x[..., top : top + SQUARE, left : left + SQUARE] = 0
    return x.clamp_(0, 1)


def labelled(n: int, labels: int, draws: int) -> Tensor:
    """Numbers of the pictures whose labels a probe may see, (r, labels): the code's own, for every seed; 0: all."""
    numbers = [torch.randperm(n, generator=torch.Generator().manual_seed(r)) for r in range(draws)]
    return torch.stack(numbers)[:, : labels or n]


def probe(h: Tensor, y: Tensor, classes: int, lr: float, steps: int, key: tuple[int | str, ...]) -> nn.ParameterList:
    """Linear classifiers side by side, each trained by Adam on its own labelled pictures, all of them in each update.

    Args:
        h: (r, n, d); y: (r, n).
        key: of the random numbers they start from.

    Returns:
        weights (r, d, classes) and biases (r, 1, classes)
    """
    r, n, d = h.shape
    draw = generator(*key)
    start = [(2 * torch.rand(r, rows, classes, generator=draw) - 1) / d**0.5 for rows in (d, 1)]  # torch's own
    weight, bias = parameters = nn.ParameterList(p.to(h.device) for p in start)
    optimizer = torch.optim.Adam(parameters, lr, fused=True)
    for _ in range(steps):
        logits = torch.baddbmm(bias, h, weight)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / n  # summed over probes
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return parameters


@torch.no_grad()
def accuracy(parameters: nn.ParameterList, h: Tensor, y: Tensor) -> float:
    """Share of the pictures h (m, d) that a probe classifies right, mean over probes."""
    weight, bias = parameters
    return ((h @ weight + bias).argmax(-1) == y).double().mean().item()
