"""Local response normalisation, locally connected layers, and the nets made of them.

Paper: A. Krizhevsky, I. Sutskever, G. E. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
NIPS 2012. `AlexNet` is Figure 2. `CifarNet` is the "four-layer CNN" of Section 3.3, which the paper leaves to the
author's code: layers-conv-local-13pct.cfg (without normalisation) and -11pct.cfg (with it) of cuda-convnet, read at
github.com/dnouri/cuda-convnet (e4ac0c1), a fork of the original.

Everything is laid out channels last: a window over neighbouring maps is then a product with a banded matrix.

Glossary (code: paper, shape)
    a, out       activity a^i_{x,y} of kernel i and its response-normalised b^i_{x,y} (Section 3.3), (b, c, h, w)
    k, n         constants of the normalisation: offset, and number of neighbouring maps
    alpha, beta  its scale and power; cuda-convnet's scale is alpha * n (it divides by the size of the window)
    s            k + alpha * sum of squares over the window: the base of the power
    z, 2         width and stride of a pooling window (Section 3.4: z = 3 overlaps, z = 2 does not)
    keep         units of the two hidden layers that dropout keeps (Section 4.2), (b, 2 * 4096) bool
    b, c, h, w   images, maps, rows, columns; p = h * w places of a locally connected layer
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
}  # f(x) = max(0, x), f(x) = tanh(x) (Section 3.1)


def inverse_power(s: Tensor, beta: float) -> Tensor:
    """s^-beta; for the paper's 0.75 by two square roots, which are far cheaper than a power."""
    if beta != 0.75:
        return s.pow(-beta)
    r = s.rsqrt()
    return r.sqrt() * r


class ResponseNorm(torch.autograd.Function):
    """b_i = a_i * s_i^-beta with s = k + alpha * (a^2 @ band), the window being a banded matrix of zeros and ones."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, band: Tensor, alpha: float, beta: float, k: float) -> Tensor:
        rows = a.permute(0, 2, 3, 1).contiguous()  # (b, h, w, c): a view of channels-last input
        with torch.autocast(a.device.type, enabled=False):
            square = rows.float().square().view(-1, rows.shape[-1])
            s = (square @ (alpha * band)).add_(k).view_as(rows)
        power = inverse_power(s, beta)
        ctx.save_for_backward(rows, s, power, band)
        ctx.factor = 2 * alpha * beta
        return (rows * power).to(a.dtype).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # d b_i / d a_j = [i = j] s_i^-beta - 2 alpha beta a_i s_i^(-beta - 1) band_ij a_j
        rows, s, power, band = ctx.saved_tensors
        (gradient,) = gradients
        own = gradient.permute(0, 2, 3, 1).contiguous() * power
        with torch.autocast(rows.device.type, enabled=False):
            t = (own * rows).div_(s).view(-1, rows.shape[-1])
            others = (t @ band).view_as(rows) * rows
        own.sub_(others, alpha=ctx.factor)
        return own.to(gradient.dtype).permute(0, 3, 1, 2), None, None, None, None


class LocalResponseNorm(nn.Module):
    """Section 3.3: b^i = a^i / (k + alpha * sum_{j = i - n/2}^{i + n/2} (a^j)^2)^beta, j within the layer's kernels.

    torch.nn.LocalResponseNorm divides its alpha by the window: it is this one at alpha = its alpha / size.
    """

    band: Tensor

    def __init__(self, channels: int, k: float = 2.0, n: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> None:
        super().__init__()
        self.k, self.n, self.alpha, self.beta = k, n, alpha, beta
        maps = torch.arange(channels)
        near = (maps[:, None] - maps).abs() <= n // 2
        self.register_buffer("band", near.float(), persistent=False)

    def forward(self, a: Tensor) -> Tensor:
        """(b, c, h, w) -> the same shape."""
        return ResponseNorm.apply(a, self.band, self.alpha, self.beta, self.k)


class LocallyConnected(nn.Module):
    """A convolution that shares no weights between places ("local" in cuda-convnet): stride 1, size kept.

    In memory (h, w, b, c), so that the windows of a place are the rows of one matrix, and all places one batched
    product. The bias has one entry per output unit.
    """

    def __init__(self, in_maps: int, out_maps: int, size: int, kernel: int = 3) -> None:
        super().__init__()
        self.size, self.kernel = size, kernel
        self.weight = nn.Parameter(torch.empty(size * size, kernel * kernel * in_maps, out_maps))
        self.bias = nn.Parameter(torch.zeros(size * size, 1, out_maps))

    def forward(self, x: Tensor) -> Tensor:
        """(h, w, b, c) -> (h, w, b, out)."""
        m, steps = self.kernel // 2, range(self.kernel)
        x = F.pad(x, (0, 0, 0, 0, m, m, m, m))
        windows = torch.cat([x[i : i + self.size, j : j + self.size] for i in steps for j in steps], -1)
        rows = windows.flatten(0, 1)  # (p, b, kernel * kernel * c)
        return (torch.bmm(rows, self.weight) + self.bias).unflatten(0, (self.size, self.size))


def pooled_size(size: int, z: int) -> int:
    """Places that a pooling of width z and stride 2 leaves: cuda-convnet rounds up, 24 -> 12 -> 6 (layer.py)."""
    return -((size - z) // -2) + 1


class CifarNet(nn.Module):
    """conv 5x5x64, conv 5x5x64, two locally connected 3x3 layers, softmax; pooled after either convolution.

    Pooling after a rectification and before it are the same (both rise monotonically): the cheaper order is taken.

    Args:
        local_maps: maps of the locally connected layers: 64, 32 (11 %) or 32, 32 (13 %).
        lrn: normalise, after the first pooling and before the second (11pct.cfg: in this order).
    """

    def __init__(
        self,
        local_maps: Sequence[int],
        lrn: bool,
        z: int = 3,
        activation: str = "relu",
        size: int = 24,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.z, self.activation = z, ACTIVATIONS[activation]
        self.conv1 = nn.Conv2d(3, 64, 5, padding=2)
        self.conv2 = nn.Conv2d(64, 64, 5, padding=2)
        norms = [LocalResponseNorm(64, k=1.0, n=9, alpha=0.001 / 9) if lrn else nn.Identity() for _ in range(2)]
        self.norm1, self.norm2 = norms
        side = pooled_size(pooled_size(size, z), z)
        self.local3 = LocallyConnected(64, local_maps[0], side)
        self.local4 = LocallyConnected(local_maps[0], local_maps[1], side)
        self.fc10 = nn.Linear(side * side * local_maps[1], classes)

    @property
    def layers(self) -> list[nn.Module]:
        return [self.conv1, self.conv2, self.local3, self.local4, self.fc10]

    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.z, 2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, size, size) -> logits (b, classes)."""
        f = self.activation
        x = self.norm1(f(self.pool(self.conv1(x))))  # (b, 64, 12, 12)
        x = self.pool(self.norm2(f(self.conv2(x))))  # (b, 64, 6, 6)
        x = x.permute(2, 3, 0, 1)  # (h, w, b, c)
        x = f(self.local4(f(self.local3(x))))
        return self.fc10(x.permute(2, 0, 1, 3).flatten(1))


class Nets(nn.ModuleList):
    """Nets that train on the same batches and share nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, h, w) -> (nets, b, classes)."""
        return torch.stack([net(x) for net in self])


class AlexNet(nn.Module):
    """Figure 2: five convolutions, three fully connected layers; ReLU after each but the last.

    The columns on two GPUs are groups. A convolution of stride 4 on 224 pixels leaves 55 places because cuda-convnet
    rounds up and reads zeros beyond the right and lower edge (layer.py, "modulesX").

    Args:
        maps, groups: kernels of the convolutions, and columns into which the layer's connections fall.
        lrn: normalise after the first two ReLUs.
        z: width of the pooling windows after both normalisations and after the last convolution; 3 and 2 leave equally
            many places (Section 3.4), which for 2 means rounding down.
    """

    KERNELS, HIDDEN = (11, 5, 3, 3, 3), 4096

    def __init__(
        self,
        maps: Sequence[int] = (96, 256, 384, 384, 256),
        groups: Sequence[int] = (1, 2, 1, 2, 2),
        lrn: bool = True,
        z: int = 3,
        classes: int = 1000,
        hidden: int = HIDDEN,
    ) -> None:
        super().__init__()
        self.z, self.hidden = z, hidden
        self.convs = nn.ModuleList()
        for i, (c_in, c_out, g) in enumerate(zip((3, *maps), maps, groups, strict=False)):
            kernel = self.KERNELS[i]
            self.convs.append(
                nn.Conv2d(c_in, c_out, kernel, 4 if i == 0 else 1, 0 if i == 0 else kernel // 2, groups=g)
            )
        self.norms = nn.ModuleList(LocalResponseNorm(c) if lrn else nn.Identity() for c in maps[:2])
        sizes = [maps[-1] * 6 * 6, hidden, hidden, classes]
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    @property
    def layers(self) -> list[nn.Module]:
        return [*self.convs, *self.fcs]

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(b, 3, 224, 224) -> logits (b, classes).

        Args:
            keep: units that dropout keeps; without it every unit counts half, as in the test (Section 4.2).
        """
        x = F.pad(x, (0, 3, 0, 3))
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if i not in (0, 1, len(self.convs) - 1):
                x = F.relu(x)  # (b, 384, 13, 13)
            elif i < 2:
                x = F.max_pool2d(self.norms[i](F.relu(x)), self.z, 2)  # (b, 96, 27, 27), (b, 256, 13, 13)
            else:
                x = F.relu(F.max_pool2d(x, self.z, 2))  # (b, 256, 6, 6)
        x = x.flatten(1)
        for i, fc in enumerate(self.fcs[:-1]):
            x = F.relu(fc(x))
            x = x * 0.5 if keep is None else x * keep[:, i * self.hidden : (i + 1) * self.hidden]
        return self.fcs[-1](x)


class MnistNet(nn.Module):
    """Five convolutions and three fully connected layers on 32 x 32 grey images, as a course's lab shrinks `AlexNet`.

    Vishal8500/DL-LAB at a3bce28, Lab-2/AlexNet.ipynb: no normalisation, no groups; 7, 4, 2 and 1 places a side.

    Args:
        maps: kernels of the convolutions.
        hidden: units of either hidden fully connected layer.
    """

    KERNELS = (11, 5, 3, 3, 3)

    def __init__(self, maps: Sequence[int] = (64, 192, 384, 256, 256), hidden: int = 4096, classes: int = 10) -> None:
        super().__init__()
        self.hidden = hidden
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel, 1 if i else 4, kernel // 2 if i else 2)
            for i, (a, b, kernel) in enumerate(zip((1, *maps), maps, self.KERNELS, strict=False))
        )
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([maps[-1], hidden, hidden, classes]))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(b, 1, 32, 32) -> logits (b, classes).

        Args:
            keep: units that dropout keeps, twice as large for it; without it all, as in the test.
        """
        for i, conv in enumerate(self.convs):
            x = F.relu(conv(x))
            if i < 2:
                x = F.max_pool2d(x, 3, 2, padding=1)
        x = F.max_pool2d(x, 2).flatten(1)
        for i, fc in enumerate(self.fcs[:-1]):
            x = F.relu(fc(x))
            x = x if keep is None else x * (2.0 * keep[:, i * self.hidden : (i + 1) * self.hidden])
        return self.fcs[-1](x)


def initialise(
    layers: Sequence[nn.Module], sds: Sequence[float], biases: Sequence[float], generator: torch.Generator
) -> None:
    """Weights from N(0, sd^2), biases constant, one value per layer (Section 5; cuda-convnet's initW and initB)."""
    for layer, sd, bias in zip(layers, sds, biases, strict=True):
        assert isinstance(layer, nn.Conv2d | nn.Linear | LocallyConnected)
        nn.init.normal_(layer.weight, 0.0, sd, generator=generator)
        if layer.bias is not None:
            nn.init.constant_(layer.bias, bias)
