"""Updates of AEVB's and IWAE's nets beside the same in torch.nn; how they grow with the seeds."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.random import generator
from common.speed import Case, Growth, Peer, Step, training
from papers.vae.config import Config
from papers.vae.model import VAE, draw

PIXELS = 784
AEVB = Config()  # Section 5: 500 tanh units, 20 latents, batch 100, Adagrad
UNITS, LATENTS, BATCH, SAMPLES = 200, 50, 20, 50  # IWAE Table 1: two layers of 200, 50 latents, k = 50, batch 20


def ours(seeds: int = 1) -> Step:
    cfg = AEVB
    model = VAE(list(range(seeds)), PIXELS, [[500]], (20,), "bernoulli", True, "cpu")
    model.initialise("normal", 0.01, None)
    x = torch.rand(seeds, cfg.batch_size, PIXELS)
    optimizer = torch.optim.Adagrad([model.theta], lr=cfg.lr, eps=cfg.eps, maximize=True, fused=True)
    step = [0]

    @torch.no_grad()
    def run() -> None:
        numbers = [generator(seed, "noise", step[0]) for seed in range(seeds)]
        model.ascend(x, draw(numbers, (cfg.batch_size, 1, 20), "cpu"), "elbo")
        optimizer.step()
        step[0] += 1

    return Step(run, model.theta.numel())


def iwae() -> Step:
    model = VAE([0], PIXELS, [[UNITS, UNITS]], (LATENTS,), "bernoulli", False, "cpu")
    model.initialise("glorot", 0.0, None)
    x = (torch.rand(1, BATCH, PIXELS) < 0.2).float()
    optimizer = torch.optim.Adam([model.theta], lr=1e-3, maximize=True, fused=True)
    step = [0]

    @torch.no_grad()
    def run() -> None:
        model.ascend(x, draw([generator(0, "noise", step[0])], (BATCH, SAMPLES, LATENTS), "cpu"), "iwae")
        optimizer.step()
        step[0] += 1

    return Step(run, model.theta.numel())


def tanh_net(*sizes: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def plain() -> Step:
    """As pytorch/examples has it (vae/main.py), with AEVB's tanh, sizes and optimiser."""
    encoder, decoder = tanh_net(PIXELS, 500, 40), tanh_net(20, 500, PIXELS)
    both, x = nn.ModuleList([encoder, decoder]), torch.rand(AEVB.batch_size, PIXELS)

    def loss() -> Tensor:
        mu, log_var = encoder(x).chunk(2, -1)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * log_var)
        bce = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        return bce - 0.5 * torch.sum(1 + log_var - mu.square() - log_var.exp())

    return training(both, torch.optim.Adagrad(both.parameters(), lr=0.01), loss)


def plain_iwae() -> Step:
    encoder, decoder = tanh_net(PIXELS, UNITS, UNITS, 2 * LATENTS), tanh_net(LATENTS, UNITS, UNITS, PIXELS)
    both, x = nn.ModuleList([encoder, decoder]), (torch.rand(BATCH, PIXELS) < 0.2).float()

    def loss() -> Tensor:
        mu, log_sigma = (v[:, None] for v in encoder(x).chunk(2, -1))
        eps = torch.randn(BATCH, SAMPLES, LATENTS)
        z = mu + eps * log_sigma.exp()
        log_p = -F.binary_cross_entropy_with_logits(
            decoder(z), x[:, None].expand(-1, SAMPLES, -1), reduction="none"
        ).sum(-1)
        log_w = log_p + (0.5 * (eps.square() - z.square()) + log_sigma).sum(-1)
        return -(torch.logsumexp(log_w, 1) - math.log(SAMPLES)).sum()

    return training(both, torch.optim.Adam(both.parameters(), lr=1e-3), loss)


CASES = {
    "aevb": Case(
        f"784-500-20-500-784, batch {AEVB.batch_size}, Adagrad", ours, {"torch.nn": Peer("torch", plain)}, "adagrad"
    ),
    "iwae-k50": Case(
        f"784-200-200-50-200-200-784, k = {SAMPLES}, batch {BATCH}, Adam",
        iwae,
        {"torch.nn": Peer("torch", plain_iwae)},
        "adam",
    ),
}
GROWTH = Growth("seeds", (1, 4, 16), ours)
