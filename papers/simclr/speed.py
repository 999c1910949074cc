"""A training step on two views beside the same in torch.nn, and the views themselves; growth with the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.speed import Case, Growth, Peer, Step, training
from papers.simclr.augment import Views, to_rows
from papers.simclr.config import Config
from papers.simclr.model import nt_xent
from papers.simclr.train import STYLE, build, make_optimizer

CFG = Config(depth=18, batch_size=32)
LR, TAU, SIDE = 1.0, 0.5, 32


def ours(pictures: int = CFG.batch_size) -> Step:
    net = build(CFG)
    net.initialise(0, CFG.dialect)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(2 * pictures, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    return training(net, make_optimizer(CFG, net), lambda: nt_xent(net(x), TAU)[0])


class Block(nn.Module):
    def __init__(self, c_in: int, c: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c, 3, stride, 1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)
        skip = [nn.Conv2d(c_in, c, 1, stride, bias=False), nn.BatchNorm2d(c)] if project else []
        self.skip = nn.Sequential(*skip)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


def plain_net() -> nn.Module:
    """ResNet-18 with a 3x3 stem, as one would write it; every stage projects its first shortcut, as the code does."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    c = 64
    for stage in range(4):
        for i in range(2):
            layers.append(Block(c, 64 * 2**stage, 2 if stage and not i else 1, not i))
            c = 64 * 2**stage
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for _ in range(CFG.head_layers - 1):
        layers += [nn.Linear(c, c, bias=False), nn.BatchNorm1d(c), nn.ReLU()]
    layers += [nn.Linear(c, CFG.projection, bias=False), nn.BatchNorm1d(CFG.projection)]
    layers[-1].bias.requires_grad_(False)
    return nn.Sequential(*layers)


class PlainLARS(torch.optim.Optimizer):
    """One tensor after the other, as public implementations have it."""

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                g = p.grad
                if p.ndim > 1:
                    g = g.add(p, alpha=1e-6)
                    w_norm, g_norm = torch.norm(p), torch.norm(g)
                    one = torch.ones_like(w_norm)
                    g = g.mul(torch.where((w_norm > 0) & (g_norm > 0), 0.001 * w_norm / g_norm, one))
                state = self.state[p]
                if "v" not in state:
                    state["v"] = torch.zeros_like(p)
                state["v"].mul_(0.9).add_(g, alpha=LR)
                p.sub_(state["v"])


def plain() -> Step:
    net, x = plain_net(), torch.rand(2 * CFG.batch_size, 3, SIDE, SIDE)
    learning = [p for p in net.parameters() if p.requires_grad]

    def loss() -> Tensor:
        z = F.normalize(net(x), dim=1)
        logits = z @ z.T / TAU
        logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
        return F.cross_entropy(logits, torch.arange(len(z)).roll(CFG.batch_size))

    return training(net, PlainLARS(learning, {}), loss)


def views() -> Step:
    """Both views of a batch of pictures: crop, mirror, colours, grey."""
    pixels = torch.randint(256, (512, SIDE, SIDE, 3), dtype=torch.uint8)
    draw = Views(to_rows(pixels), 0, STYLE[CFG.dialect], views=2, strength=CFG.strength)
    epoch, index = [0], torch.arange(512)

    def run() -> None:
        draw(index, epoch[0])
        epoch[0] += 1

    return Step(run)


CASES = {
    "resnet18": Case(
        f"ResNet-18 for 32x32, {CFG.batch_size} pictures in two views, NT-Xent, LARS",
        ours,
        {"torch.nn, LARS by tensors": Peer("torch", plain)},
        "momentum",
    ),
    "views": Case("two augmented views of 512 pictures of 32x32", views),
}
GROWTH = Growth("pictures", (16, 32, 64), ours)
