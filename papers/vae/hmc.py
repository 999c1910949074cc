"""Hybrid (Hamiltonian) Monte Carlo over the latents of a trained generative model: AEVB Appendices D and E.

Chains stand side by side, (s, b, z): one per image and seed, each with its own step size.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from papers.vae.model import VAE, draw

LogJoint = Callable[[Tensor], tuple[Tensor, Tensor]]  # z -> log p(x, z), (s, b), and its derivative, (s, b, z)


class Hmc:
    """One Markov chain per image. The step size is tuned so that 90 % of the proposals are accepted (Appendix E)."""

    def __init__(self, leapfrog_steps: int, acceptance: float = 0.9, rate: float = 1.02) -> None:
        self.leapfrog_steps = leapfrog_steps
        # An accepted proposal lengthens the step, a rejected one shortens it by more: in balance at the target.
        self.longer, self.shorter = rate, rate ** (-acceptance / (1 - acceptance))

    def step(
        self, log_joint: LogJoint, z: Tensor, size: Tensor, numbers: Sequence[torch.Generator], tune: bool
    ) -> Tensor:
        """Propose and accept or reject, in place in z (s, b, z) and, when tuning, size (s, b).

        Returns:
            log p(x, z) of the states the chains end in, (s, b).
        """
        _, b, n = z.shape
        noise = draw(numbers, (b, n), z.device)
        uniform = torch.stack([torch.rand(b, generator=rng) for rng in numbers]).to(z.device)
        eps = size[..., None]
        before, g = log_joint(z)
        velocity, moved = noise, z
        energy = before - 0.5 * velocity.square().sum(-1)
        for _ in range(self.leapfrog_steps):
            velocity = velocity + 0.5 * eps * g
            moved = moved + eps * velocity
            after, g = log_joint(moved)
            velocity = velocity + 0.5 * eps * g
        accepted = torch.log(uniform) < after - 0.5 * velocity.square().sum(-1) - energy
        z.copy_(torch.where(accepted[..., None], moved, z))
        if tune:
            size *= torch.where(accepted, self.longer, self.shorter)
        return torch.where(accepted, after, before)


def kernel_density(fitted: Tensor, at: Tensor) -> Tensor:
    """log q at points `at` of a Gaussian kernel density estimate (covariance shape, Scott's width).

    Args:
        fitted: (..., n, z) samples. at: (..., m, z).

    Returns:
        (..., m).
    """
    n, dims = fitted.shape[-2:]
    centred = fitted - fitted.mean(-2, keepdim=True)
    covariance = centred.mT @ centred / (n - 1)
    covariance = covariance + 1e-6 * torch.eye(dims, device=fitted.device, dtype=fitted.dtype)
    factor = torch.linalg.cholesky(covariance) * n ** (-1 / (dims + 4))
    whiten = [torch.linalg.solve_triangular(factor, points.mT, upper=False).mT for points in (fitted, at)]
    log_kernels = -0.5 * torch.cdist(whiten[1], whiten[0]).square() - 0.5 * dims * math.log(2 * math.pi)
    log_volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.logsumexp(log_kernels, -1) - math.log(n) - log_volume[..., None]


@torch.no_grad()
def marginal_likelihood(
    model: VAE,
    x: Tensor,
    samples: int,
    leapfrog_steps: int,
    burn_in_steps: int,
    numbers: Sequence[torch.Generator],
) -> Tensor:
    """log p(x) of each image (s, b, d) -> (s, b): AEVB Appendix D.

    Sample the posterior, fit a density q(z) to it, sample again, and average q(z) / p(x, z): its mean is 1 / p(x).
    """
    s, b = x.shape[:2]
    z = torch.zeros(s, b, model.latents[0], device=x.device)
    size = torch.full((s, b), 0.05, device=x.device)
    chain = Hmc(leapfrog_steps)

    def log_joint(z: Tensor) -> tuple[Tensor, Tensor]:
        return model.log_joint(x, z)

    for _ in range(burn_in_steps):
        chain.step(log_joint, z, size, numbers, tune=True)
    kept, log_p = [], []
    for _ in range(2 * samples):
        log_p.append(chain.step(log_joint, z, size, numbers, tune=False))
        kept.append(z.clone())
    states, joint = torch.stack(kept, 2), torch.stack(log_p, 2)  # (s, b, 2l, z), (s, b, 2l)
    log_q = kernel_density(states[:, :, :samples], states[:, :, samples:])
    return math.log(samples) - torch.logsumexp(log_q - joint[:, :, samples:], -1)
