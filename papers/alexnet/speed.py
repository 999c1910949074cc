"""A training step of the CIFAR-10 net and of the ImageNet net beside the same in torch.nn; growth with the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.random import generator
from common.speed import Case, Growth, Peer, Step, training
from papers.alexnet.config import PRESETS
from papers.alexnet.model import AlexNet, CifarNet, initialise
from papers.alexnet.train import make_optimizer

SMALL, LARGE = PRESETS["sec3.3-lrn"], PRESETS["table2-1cnn"]
LARGE_BATCH = 16


def momentum(net: nn.Module) -> torch.optim.SGD:
    """With one decay for all; the layers' own ones cost no time."""
    return torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)


def ours(batch: int = SMALL.batch_size) -> Step:
    net = CifarNet(SMALL.maps, SMALL.lrn, SMALL.pool, size=SMALL.size)
    initialise(net.layers, SMALL.init_sd, SMALL.init_bias, generator(0, "init"))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(batch, 3, SMALL.size, SMALL.size).to(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,))
    return training(net, make_optimizer(SMALL, [net]), lambda: F.cross_entropy(net(x), y))


class Local(nn.Module):
    """A locally connected layer by unfold and einsum."""

    def __init__(self, c_in: int, c_out: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(side * side, c_in * 9, c_out) * 0.04)
        self.bias, self.side = nn.Parameter(torch.zeros(side * side, c_out)), side

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("bkp,pko->bpo", F.unfold(x, 3, padding=1), self.weight) + self.bias
        return y.mT.unflatten(2, (self.side, self.side))


def plain() -> Step:
    maps, n = SMALL.maps, SMALL.batch_size
    net = nn.Sequential(
        nn.Conv2d(3, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.LocalResponseNorm(9, 0.001, 0.75, 1.0),
        nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), nn.LocalResponseNorm(9, 0.001, 0.75, 1.0),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Local(64, maps[0], 6), nn.ReLU(), Local(maps[0], maps[1], 6), nn.ReLU(),
        nn.Flatten(), nn.Linear(36 * maps[1], 10),
    )  # fmt: skip
    x, y = torch.randn(n, 3, SMALL.size, SMALL.size), torch.randint(10, (n,))
    return training(net, momentum(net), lambda: F.cross_entropy(net(x), y))


def ours_large() -> Step:
    net = AlexNet()
    initialise(net.layers, LARGE.init_sd, LARGE.init_bias, generator(0, "init"))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(LARGE_BATCH, 3, 224, 224).to(memory_format=torch.channels_last)
    y = torch.randint(1000, (LARGE_BATCH,))

    def loss() -> Tensor:
        return F.cross_entropy(net(x, torch.rand(LARGE_BATCH, 2 * net.hidden) < 0.5), y)

    return training(net, make_optimizer(LARGE, [net]), loss)


def plain_large() -> Step:
    net = nn.Sequential(
        nn.ZeroPad2d((0, 3, 0, 3)),
        nn.Conv2d(3, 96, 11, 4), nn.ReLU(), nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0), nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Flatten(), nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(),
        nn.Linear(4096, 1000),
    )  # fmt: skip
    x, y = torch.randn(LARGE_BATCH, 3, 224, 224), torch.randint(1000, (LARGE_BATCH,))
    return training(net, momentum(net), lambda: F.cross_entropy(net(x), y))


CASES = {
    "cifar": Case(
        f"the net with response normalisation, {SMALL.size}x{SMALL.size}, batch {SMALL.batch_size}, SGD with momentum",
        ours,
        {"torch.nn": Peer("torch", plain)},
        "momentum",
    ),
    "imagenet": Case(
        f"the net of Figure 2, 224x224, batch {LARGE_BATCH}, dropout, SGD with momentum",
        ours_large,
        {"torch.nn": Peer("torch", plain_large)},
        "momentum",
    ),
}
GROWTH = Growth("pictures", (32, 128, 512), ours)
