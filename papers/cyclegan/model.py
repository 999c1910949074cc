"""Cycle-consistent adversarial networks: generators, patch discriminators, their objectives, the pool of pictures.

Zhu, Park, Isola, Efros, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks", ICCV 2017.

Glossary (code: paper, shape)
    x, y            pictures of the domains X and Y, in [-1, 1]                (b, 3, h, w)
    G, F            generators X -> Y and Y -> X (official code: G_A, G_B)
    D_X, D_Y        discriminators (official code: D_B, D_A)                   (b, 1, h', w')
    fake_y, fake_x  G(x), F(y)
    back_x, back_y  F(G(x)), G(F(y))
    same_y, same_x  G(y), F(x)
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from common.random import generator

Terms = dict[str, Tensor]


def norm(channels: int) -> nn.Module:
    """Each channel of each picture to mean 0 and variance 1: instance normalisation without parameters or running
    statistics. A group for each channel takes a CPU half the time of `nn.InstanceNorm2d`.
    """
    return nn.GroupNorm(channels, channels, affine=False)


class Block(nn.Module):
    """R<k> of Appendix 7.2: two 3x3 convolutions, reflection padding, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), norm(channels), nn.ReLU(True),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), norm(channels),
        )  # fmt: skip

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


class Generator(nn.Sequential):
    """c7s1-64, d128, d256, R256 times `blocks`, u128, u64, c7s1-3 (Appendix 7.2), for width = 64.

    u<k> is a transposed convolution of stride 2: the paper's "fractional-strided with stride 1/2".
    """

    def __init__(self, width: int = 64, blocks: int = 6) -> None:
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), norm(width), nn.ReLU(True)]
        widths = (width, 2 * width, 4 * width)
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), norm(b), nn.ReLU(True)]
        layers += [Block(4 * width) for _ in range(blocks)]
        for a, b in pairwise(widths[::-1]):
            layers += [nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1), norm(b), nn.ReLU(True)]
        last = nn.Conv2d(width, 3, 7)
        last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third less time on a CPU
        super().__init__(*layers, nn.ReflectionPad2d(3), last, nn.Tanh())


class Discriminator(nn.Sequential):
    """C64-C128-C256-C512 and a convolution to one score a patch (Appendix 7.2), for width = 64 and layers = 3.

    `layers` convolutions halve the picture; the last two do not. Three of them see patches of 70 x 70.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        made: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
        for i, (a, b) in enumerate(pairwise(widths), 1):
            stride = 2 if i < layers else 1
            made += [nn.Conv2d(a, b, 4, stride=stride, padding=1), norm(b), nn.LeakyReLU(0.2, True)]
        super().__init__(*made, nn.Conv2d(widths[-1], 1, 4, padding=1))


def receptive_field(net: nn.Module) -> int:
    """Side of the patch of the input on which one output depends, normalisation's statistics apart."""
    side, stride = 1, 1
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            side += (layer.kernel_size[0] - 1) * stride
            stride *= layer.stride[0]
    return side


class Networks(nn.ModuleDict):
    """The two generators, or the two discriminators, by the domain they give or judge: one module, one optimiser."""

    def __init__(self, x: nn.Module, y: nn.Module) -> None:
        super().__init__({"x": x, "y": y})

    @torch.no_grad()
    def initialise(self, seed: int, purpose: str, sd: float) -> None:
        """Weights from N(0, sd^2), biases 0 (Appendix 7.1); a function of (seed, purpose) alone."""
        numbers = generator(seed, "initialise", purpose)
        for p in self.parameters():  # drawn apart: a tensor's layout would change which number goes where
            p.copy_(torch.empty(p.shape).normal_(0.0, sd, generator=numbers)) if p.ndim > 1 else p.zero_()


class Translation(nn.Module):
    """What the generators minimise, and their pictures (Equation 3; Section 5.2 for the identity).

    A network's inputs that are known at the same time go through it as one batch. Instance normalisation keeps
    pictures apart, so this is the same function in three passes where one call a picture takes four (or six).
    """

    def __init__(
        self,
        generators: Networks,
        discriminators: Networks,
        gan: bool,
        lambda_forward: float,
        lambda_backward: float,
        lambda_identity: float,
        paired: bool = False,
    ) -> None:
        super().__init__()
        self.generators = generators
        self.judges = (discriminators,)  # a tuple: their weights are no part of this module, nor of this update
        self.gan, self.paired, self.lambda_identity = gan, paired, lambda_identity
        self.lambda_forward, self.lambda_backward = lambda_forward, lambda_backward

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Terms]:
        """Returns the sum of all weighted terms, F(y), G(x), and the terms without their weights."""
        G, F = self.generators["y"], self.generators["x"]
        forward, backward = self.lambda_forward, self.lambda_backward
        identity = self.lambda_identity > 0
        there = not self.paired and forward > 0, not self.paired and backward > 0

        fake_y, *same_y = G(torch.cat([x, y]) if identity else x).split(len(x))
        towards_x = [y, *([x] if identity else []), *([fake_y] if there[0] else [])]
        fake_x, *more = F(torch.cat(towards_x) if len(towards_x) > 1 else y).split(len(y))

        terms: Terms = {}
        total = x.new_zeros(())
        if self.gan:
            D_X, D_Y = self.judges[0]["x"], self.judges[0]["y"]
            terms |= {"gan_y": lsgan(D_Y(fake_y), 1.0), "gan_x": lsgan(D_X(fake_x), 1.0)}
            total = total + terms["gan_y"] + terms["gan_x"]
        if self.paired:
            terms |= {"pair_y": l1(fake_y, y), "pair_x": l1(fake_x, x)}
            total = total + forward * terms["pair_y"] + backward * terms["pair_x"]
        if there[0]:
            terms["cycle_x"] = l1(more.pop(), x)
            total = total + forward * terms["cycle_x"]
        if there[1]:
            terms["cycle_y"] = l1(G(fake_x), y)
            total = total + backward * terms["cycle_y"]
        if identity:
            terms |= {"identity_y": l1(same_y[0], y), "identity_x": l1(more.pop(), x)}
            weighted = backward * terms["identity_y"] + forward * terms["identity_x"]
            total = total + self.lambda_identity * weighted
        return total, fake_x.detach(), fake_y.detach(), {name: term.detach() for name, term in terms.items()}


class Judgement(nn.Module):
    """What the discriminators minimise: half the sum of the squared errors of real and generated pictures."""

    def __init__(self, discriminators: Networks) -> None:
        super().__init__()
        self.discriminators = discriminators

    def forward(self, x: Tensor, pooled_x: Tensor, y: Tensor, pooled_y: Tensor) -> tuple[Tensor, Terms]:
        """Returns the sum of both networks' losses, and the two."""
        terms = {}
        for name, real, fake in (("x", x, pooled_x), ("y", y, pooled_y)):
            of_real, of_fake = self.discriminators[name](torch.cat([real, fake])).split(len(real))
            terms[f"judge_{name}"] = 0.5 * (lsgan(of_real, 1.0) + lsgan(of_fake, 0.0))
        return terms["judge_x"] + terms["judge_y"], {name: term.detach() for name, term in terms.items()}


def lsgan(scores: Tensor, target: float) -> Tensor:
    """Least squares in place of Equation 1's log likelihood (Section 4)."""
    return (scores - target).square().mean(dtype=torch.promote_types(scores.dtype, torch.float32))


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference (Equation 2)."""
    return (a - b).abs().mean()


def linear_decay(epoch: int, constant_epochs: int, decay_epochs: int) -> float:
    """The official code's multiplier of lr: 1, then down by 1 / (decay_epochs + 1) an epoch, never quite 0."""
    return 1.0 - max(0, epoch + 1 - constant_epochs) / (decay_epochs + 1)


class Pool:
    """The last generated pictures, for the discriminators (Section 4).

    Until it is full every picture is kept and returned. Then each is returned itself, or, as often, changes places
    with one drawn at random. How full it is, and what is drawn, depends on the step alone; the pictures are state.
    """

    def __init__(self, size: int, shape: tuple[int, ...], device: torch.device | str = "cpu") -> None:
        self.pictures = torch.zeros(size, *shape, device=device)

    def query(self, fresh: Tensor, step: int, numbers: torch.Generator) -> Tensor:
        """Pictures (b, 3, h, w) of the whole batch of a step -> as many, some of them from earlier steps."""
        size, b = len(self.pictures), len(fresh)
        if size == 0:
            return fresh
        swap, places = torch.rand(b, generator=numbers) > 0.5, torch.randint(size, (b,), generator=numbers)
        given = fresh.clone()
        for i in range(b):
            seen = step * b + i
            if seen < size:
                self.pictures[seen] = fresh[i]
            elif swap[i]:
                place = int(places[i])
                given[i], self.pictures[place] = self.pictures[place].clone(), fresh[i]
        return given
