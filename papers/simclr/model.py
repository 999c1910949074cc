"""SimCLR: an encoder and a head trained to tell two views of a picture from all other pictures.

Paper: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML
2020, https://arxiv.org/abs/2002.05709. "The code" is google-research/simclr at 383d414, in its first version's setting.

Glossary (name here: symbol in the paper, shape)
    x:           x~_i, augmented views, (b, 3, side, side); all first views of a process, then its second ones
    h:           h_i = f(x~_i), what the encoder gives, (b, d)
    z:           z_i = g(h_i), what the head gives, (b, k)
    tau:         temperature of the loss (Eq. 1)
    n, N:        pictures of this process's part of a batch, and of the whole batch: 2n and 2N views
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather

from common.batchnorm import BatchNorm
from common.errors import UserError
from common.random import generator

Dialect = Literal["google", "lightly"]
Head = Literal["nonlinear", "linear", "none"]
BLOCKS = {  # of each stage (resnet.py of the code); 10 is ours
    10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3),
}  # fmt: skip


class Block(nn.Module):
    """y = ReLU(F(x) + shortcut(x)); of a bottleneck the 3x3 convolution has the stride.

    Args:
        width: channels of the 3x3 convolutions; a bottleneck puts out four times as many.
        project: the shortcut is a 1x1 convolution.
        zero: the last gain starts at zero, so that the block starts as its shortcut.
    """

    def __init__(self, c_in: int, width: int, stride: int, bottleneck: bool, project: bool, zero: bool) -> None:
        super().__init__()
        layers = [(3, width, stride), (3, width, 1)]  # kernel, channels, stride
        if bottleneck:
            layers = [(1, width, 1), (3, width, stride), (1, 4 * width, 1)]
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        c = c_in
        for kernel, c_out, step in layers:
            self.convolutions.append(nn.Conv2d(c, c_out, kernel, step, kernel // 2, bias=False))
            self.norms.append(BatchNorm(c_out))
            c = c_out
        if zero:
            nn.init.zeros_(self.norms[-1].weight)  # type: ignore[arg-type]
        self.shortcut = nn.Sequential()
        if project:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c, 1, stride, bias=False), BatchNorm(c))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c_in, h, w) -> (b, c_out, h / stride, w / stride)"""
        y = x
        for i, (conv, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = norm(conv(y if i == 0 else F.relu_(y)))
        y += self.shortcut(x)
        return F.relu_(y)


class Encoder(nn.Module):
    """f: a ResNet without its classifier; normalisation is over the whole batch of all processes (Section 2.2).

    Args:
        width: multiplier of all channels (Section 6: 1, 2, 4).
        stem: "cifar": one 3x3 convolution, no pooling (B.9); "imagenet": 7x7 with stride 2, then max pooling.
        dialect: "google": the first block of every stage projects its shortcut and last gains start at zero;
            "lightly": shortcuts are projected where the shape changes, gains start at one.

    Raises:
        UserError: no such depth or width.
    """

    def __init__(
        self,
        depth: int,
        width: float = 1,
        stem: Literal["cifar", "imagenet"] = "cifar",
        dialect: Dialect = "google",
    ) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise UserError(f"encoders have {', '.join(map(str, BLOCKS))} layers, not {depth}")
        if round(64 * width) < 1:
            raise UserError(f"a width of {width} leaves no channels; 1 is the paper's")
        bottleneck, google, c = depth >= 50, dialect == "google", round(64 * width)
        kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
        first: list[nn.Module] = [nn.Conv2d(3, c, kernel, stride, kernel // 2, bias=False), BatchNorm(c), nn.ReLU(True)]
        if stem == "imagenet":  # TensorFlow's SAME: of an even size the last row and column are padded, not the first
            first += [nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2)]
        self.stem = nn.Sequential(*first)
        blocks = []
        for stage, n in enumerate(BLOCKS[depth]):
            channels = round(64 * width) * 2**stage
            for i in range(n):
                stride = 2 if stage and i == 0 else 1
                c_out = channels * (4 if bottleneck else 1)
                project = i == 0 if google else stride != 1 or c != c_out
                blocks.append(Block(c, channels, stride, bottleneck, project, zero=google))
                c = c_out
        self.stages = nn.Sequential(*blocks)
        self.dim = c

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, side, side) -> h (b, d)"""
        return self.stages(self.stem(x)).mean((2, 3))


def projection(kind: Head, dim: int, out: int, layers: int, dialect: Dialect) -> nn.Sequential:
    """g (Section 4.2), with the code's batch normalisation after every layer; the code's last one only scales."""
    head = nn.Sequential()
    if kind == "nonlinear":
        for _ in range(layers - 1):
            head.extend([nn.Linear(dim, dim, bias=False), BatchNorm(dim), nn.ReLU(True)])
    if kind != "none":
        head.extend([nn.Linear(dim, out, bias=False), BatchNorm(out)])
        if dialect == "google":
            head[-1].bias.requires_grad_(False)
    return head


class Net(nn.Module):
    """Encoder and head: z, or the logits of a supervised baseline.

    Args:
        apart: each view goes through the net by itself, with its own normalisation statistics (lightly); together (the
            code) the views of a batch share them.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, apart: bool = False) -> None:
        super().__init__()
        self.encoder, self.head, self.apart = encoder, head, apart

    def forward(self, x: Tensor) -> Tensor:
        """Views (2n, 3, side, side), or pictures, -> z (2n, k)"""
        if self.apart:
            return torch.cat([self.head(self.encoder(view)) for view in x.chunk(2)])
        return self.head(self.encoder(x))

    @torch.no_grad()
    def initialise(self, seed: int, dialect: Dialect) -> None:
        """google: convolutions truncated N(0, 1 / fan-in), layers N(0, 0.01^2); lightly: torch's U(+-1 / sqrt(fan-in)).

        Biases start at zero.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                draw, w = generator(seed, "initialise", name), module.weight
                bound = 1 / math.sqrt(w[0].numel())
                if dialect == "lightly":
                    w.copy_(bound * (2 * torch.rand(w.shape, generator=draw) - 1))
                elif isinstance(module, nn.Linear):
                    w.copy_(0.01 * torch.randn(w.shape, generator=draw))
                else:
                    sd = bound / 0.87962566103423978  # so that what is left of the normal has the wanted deviation
                    nn.init.trunc_normal_(w, 0.0, sd, -2 * sd, 2 * sd, generator=draw)
                if module.bias is not None:
                    module.bias.zero_()


def gathered(z: Tensor) -> Tensor:
    """z of all processes, one after the other; its gradient comes back summed over them."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return z
    return torch.cat(all_gather(z))


def nt_xent(z: Tensor, tau: float, normalised: bool = True) -> tuple[Tensor, Tensor]:
    """Eq. 1 and Algorithm 1: how little a view's other view stands out among all 2N - 1 others; mean over views.

    The mean over processes of this value, and of its gradient, is the whole batch's.

    Args:
        z: (2n, k), first views before second ones.
        normalised: by cosine similarity; False: by inner product (Table 5).

    Returns:
        (loss, share of views whose other view is the most similar)
    """
    z = F.normalize(z.float(), dim=1) if normalised else z.float()
    everyone = gathered(z)  # (2N, k)
    rank = distributed.get_rank() if len(everyone) > len(z) else 0
    views = torch.arange(len(z), device=z.device)
    mine, other = rank * len(z) + views, rank * len(z) + views.roll(len(z) // 2)
    logits = (z @ everyone.T / tau).index_put_((views, mine), torch.tensor(-torch.inf, device=z.device))  # (2n, 2N)
    return F.cross_entropy(logits, other), (logits.detach().argmax(1) == other).float().mean()


def nearest(h: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Class of each h (b, d) by a vote of its k nearest in `bank` (n, d); all have unit length.

    A vote weighs exp(cosine similarity / temperature): Wu et al. 2018, as lightly's benchmark has it.
    """
    s, index = (h @ bank.T).topk(min(k, len(bank)))
    votes = torch.zeros(len(h), classes, device=h.device)
    return votes.scatter_add_(1, labels[index], (s / temperature).exp()).argmax(1)
