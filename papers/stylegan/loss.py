"""Losses (code: training/loss.py): non-saturating logistic with R1, and WGAN-GP with its drift term."""

import torch
import torch.nn.functional as F
from torch import Tensor


def squared_gradient(scores: Tensor, x: Tensor) -> Tensor:
    """|d score / d x|² of every picture, (b,), itself differentiable."""
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3))


def logistic(real: Tensor, fake: Tensor, x: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """D's loss with R1, gamma / 2 times the squared gradient at real pictures, and that penalty's mean."""
    loss, penalty = F.softplus(fake) + F.softplus(-real), squared_gradient(real, x).mean()
    return loss.mean() + gamma / 2 * penalty, penalty


def wgan(real: Tensor, fake: Tensor, between: Tensor, x: Tensor, weight: float, drift: float) -> tuple[Tensor, Tensor]:
    """D's loss: `between` are its scores of x, pictures on the way from real to generated ones."""
    penalty = (squared_gradient(between, x).sqrt() - 1).square().mean()
    return (fake - real + drift * real.square()).mean() + weight * penalty, penalty
