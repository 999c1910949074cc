"""An update of both nets beside the same in torch.nn; how it grows with the batch."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.speed import Case, Growth, Peer, Step
from papers.dcgan import model as nets
from papers.dcgan.config import PRESETS, Config
from papers.dcgan.train import build, real

DIGITS, COLOURS = Config(), PRESETS["laptop-cifar10"]
BATCH = DIGITS.batch_size


def both(g: nn.Module, d: nn.Module, x: Tensor, y: Tensor, z: int, fused: bool, reach: float) -> Step:
    """One update of G, then one of D, by the same rules on either side.

    Args:
        reach: z is uniform in +-reach.
    """
    adam = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), weight_decay=2.5e-5, fused=fused)
    g_adam, d_adam = adam(g.parameters()), adam(d.parameters())

    def run() -> None:
        g_adam.zero_grad(set_to_none=True)
        loss = real(d(g(reach * (2 * torch.rand(len(x), z) - 1), y), y))
        if fused:
            loss.backward(inputs=list(g.parameters()))  # as train.py: D's own gradients are not wanted
        else:
            loss.backward()
        g_adam.step()
        d_adam.zero_grad(set_to_none=True)
        drawn = g(reach * (2 * torch.rand(len(x), z) - 1), y).detach() if not fused else without(g, len(x), z, y)
        (real(d(x, y)) + real(-d(drawn, y))).backward()
        d_adam.step()

    return Step(run, sum(p.numel() for net in (g, d) for p in net.parameters()))


@torch.no_grad()
def without(g: nn.Module, n: int, z: int, y: Tensor) -> Tensor:
    """Pictures by which G does not learn."""
    return g(2 * torch.rand(n, z) - 1, y)


def ours(batch: int = BATCH, cfg: Config = DIGITS) -> Step:
    side, colours = (28, 1) if cfg is DIGITS else (32, 3)
    g, d = build(cfg, side, colours)
    for net, name in ((g, "generator"), (d, "discriminator")):
        nets.initialise(net, cfg.init_sd, 0, name)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(batch, colours, side, side).to(memory_format=torch.channels_last)
    return both(g, d, x, torch.randint(10, (batch,)), cfg.latents, True, 1.0)


def with_label(h: Tensor, y: Tensor) -> Tensor:
    """[h, y]: the label's one-hot vector, as constant maps where h is made of maps."""
    one_hot = F.one_hot(y, 10).to(h.dtype)
    if h.ndim == 2:
        return torch.cat([h, one_hot], 1)
    return torch.cat([h, one_hot[:, :, None, None].expand(-1, -1, *h.shape[2:])], 1)


class PlainGenerator(nn.Module):
    """The conditional nets with the label put beside every layer's input, as the released script has them."""

    def __init__(self) -> None:
        super().__init__()
        self.full1, self.bn1 = nn.Linear(110, 1024, bias=False), nn.BatchNorm1d(1024, affine=False)
        self.full2, self.bn2 = nn.Linear(1034, 6272, bias=False), nn.BatchNorm1d(6272, affine=False)
        self.deconv1 = nn.ConvTranspose2d(138, 64, 5, 2, 2, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(64, affine=False)
        self.deconv2 = nn.ConvTranspose2d(74, 1, 5, 2, 2, 1, bias=False)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.full1(with_label(z, y))))
        h = F.relu(self.bn2(self.full2(with_label(h, y)))).view(-1, 128, 7, 7)
        h = F.relu(self.bn3(self.deconv1(with_label(h, y))))
        return torch.sigmoid(self.deconv2(with_label(h, y)))


class PlainDiscriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(11, 64, 5, 2, 2, bias=False)
        self.conv2, self.bn2 = nn.Conv2d(74, 128, 5, 2, 2, bias=False), nn.BatchNorm2d(128, affine=False)
        self.full1, self.bn3 = nn.Linear(6282, 1024, bias=False), nn.BatchNorm1d(1024, affine=False)
        self.full2 = nn.Linear(1034, 1, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(with_label(x, y)), 0.2)
        h = F.leaky_relu(self.bn2(self.conv2(with_label(h, y))), 0.2).flatten(1)
        h = F.leaky_relu(self.bn3(self.full1(with_label(h, y))), 0.2)
        return self.full2(with_label(h, y))[:, 0]


def plain() -> Step:
    g, d = PlainGenerator(), PlainDiscriminator()
    return both(g, d, torch.rand(BATCH, 1, 28, 28), torch.randint(10, (BATCH,)), DIGITS.latents, False, 1.0)


class Unlabelled(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.net(x)


def plain_colours() -> Step:
    """The unconditional nets of 32x32, layer for layer."""
    of_g, of_d = nets.maps32(COLOURS.width)
    first, c = 4 * COLOURS.width, 4 * COLOURS.width
    g: list[nn.Module] = [nn.Linear(COLOURS.latents, 16 * first, bias=False), nn.BatchNorm1d(16 * first), nn.ReLU()]
    g.append(nn.Unflatten(1, (first, 4, 4)))
    for i, (width, stride) in enumerate(of_g):
        g.append(nn.ConvTranspose2d(c, width, 3, stride, 1, stride - 1, bias=False))
        g += [nn.BatchNorm2d(width), nn.ReLU()] if i < len(of_g) - 1 else [nn.Tanh()]
        c = width
    d: list[nn.Module] = []
    c = 3
    for i, (width, stride) in enumerate(of_d):
        d += [nn.Conv2d(c, width, 3, stride, 1, bias=False), *([nn.BatchNorm2d(width)] if i else []), nn.LeakyReLU(0.2)]
        c = width
    d += [nn.Flatten(), nn.Linear(16 * c, 1, bias=False), nn.Flatten(0)]
    x, y = torch.rand(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    return both(Unlabelled(nn.Sequential(*g)), Unlabelled(nn.Sequential(*d)), x, y, COLOURS.latents, False, 1.0)


CASES = {
    "mnist": Case(
        f"the conditional nets of 28x28, batch {BATCH}, an update of each, Adam",
        ours,
        {"torch.nn": Peer("torch", plain)},
        "adam",
    ),
    "cifar10": Case(
        f"the nets of 32x32, width {COLOURS.width}, batch {BATCH}, an update of each, Adam",
        lambda: ours(cfg=COLOURS),
        {"torch.nn": Peer("torch", plain_colours)},
        "adam",
    ),
}
GROWTH = Growth("pictures", (32, 128, 512), ours)
