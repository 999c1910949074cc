"""An update of both nets beside a public port's; how it grows with the resolution."""

from collections.abc import Callable
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.speed import Case, Growth, Peer, Step, checkout, module_at
from papers.stylegan.config import Config
from papers.stylegan.loss import logistic, squared_gradient
from papers.stylegan.model import Generator, initialise
from papers.stylegan.train import build

SIDE, BATCH = 16, 4
ADAM = partial(torch.optim.Adam, lr=1e-3, betas=(0.0, 0.99))


def updates(
    g: nn.Module, d: nn.Module, fused: bool, d_loss: Callable[[], Tensor], g_loss: Callable[[], Tensor]
) -> Step:
    """D, then G."""
    g_adam, d_adam = ADAM(g.parameters(), fused=fused), ADAM(d.parameters(), fused=fused)

    def run() -> None:
        d_adam.zero_grad(set_to_none=True)
        g.requires_grad_(False)
        d_loss().backward()
        d_adam.step()
        g.requires_grad_(True)
        d.requires_grad_(False)
        g_adam.zero_grad(set_to_none=True)
        g_loss().backward()
        g_adam.step()
        d.requires_grad_(True)

    return Step(run, sum(p.numel() for p in chain(g.parameters(), d.parameters())))


def ours(side: int = SIDE) -> Step:
    cfg = Config(resolution=side)
    g, d = build(cfg, 3)
    for net, name in ((g, "generator"), (d, "discriminator")):
        initialise(net, 0, name)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stage, x = g.stages - 1, torch.rand(BATCH, 3, side, side)

    def scores() -> Tensor:
        return d(made(g, stage), stage)

    def d_loss() -> Tensor:
        real = x.clone().requires_grad_()
        return logistic(d(real, stage), scores(), real, cfg.gamma)[0]

    return updates(g, d, True, d_loss, lambda: F.softplus(-scores()).mean())


def made(g: Generator, stage: int) -> Tensor:
    """Pictures of new latents."""
    w = g.mapping(torch.randn(BATCH, g.latents))[:, None].expand(-1, 2 * (stage + 1), -1)
    return g(w, g.noise(BATCH, stage, torch.default_generator), stage)


def port() -> Step:
    """rosinality's nets, cut off above the resolution; its train.py takes R1 so."""
    path = checkout("style-based-gan-pytorch", "https://github.com/rosinality/style-based-gan-pytorch")
    module = module_at(path / "model.py", "rosinality_stylegan")
    g, d, stage = module.StyledGenerator(512), module.Discriminator(from_rgb_activate=True), SIDE.bit_length() - 3
    g.generator.progression, g.generator.to_rgb = (
        part[: stage + 1] for part in (g.generator.progression, g.generator.to_rgb)
    )
    d.progression, d.from_rgb, d.n_layer = d.progression[-stage - 1 :], d.from_rgb[-stage - 1 :], stage + 1
    x = torch.rand(BATCH, 3, SIDE, SIDE)

    def scores() -> Tensor:
        return d(g(torch.randn(BATCH, 512), step=stage, alpha=1), step=stage, alpha=1)

    def d_loss() -> Tensor:
        x.requires_grad_()
        real = d(x, step=stage, alpha=1)
        return (F.softplus(-real) + F.softplus(scores())).mean() + 5 * squared_gradient(real, x).mean()

    return updates(g, d, False, d_loss, lambda: F.softplus(-scores()).mean())


CASES = {
    "growing": Case(
        f"configuration E at {SIDE}x{SIDE}, batch {BATCH}, R1, an update of each, Adam",
        ours,
        {"rosinality's port": Peer("style-based-gan-pytorch", port, "one noise map a resolution")},
        "adam",
    ),
}
GROWTH = Growth("side", (8, 16, 32), ours)
