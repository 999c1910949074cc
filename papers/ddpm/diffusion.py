"""The Gaussian diffusion process, its reverse, the objectives and the bound (Sections 2 and 3), without a network.

"code" is github.com/hojonathanho/diffusion at 1e0dceb, `diffusion_utils_2.py`.

Glossary (code: paper; t counts from 0, the paper's t - 1)
    x0, x_t             pictures and what q(x_t | x_0) makes of them, (b, c, h, w) in [-1, 1]
    eps                 the noise in x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps (Eq. 4)
    beta, alpha_bar     beta_t and the product of all 1 - beta up to t, (T,) float64
    mu_tilde            mean of the posterior q(x_{t-1} | x_t, x_0); beta_tilde its variance (Eq. 7)
    out                 what the network says: eps, mu_tilde or x0, and behind it log sigma^2 where that is learned
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Predicts = Literal["eps", "mean", "x0"]
Variance = Literal["beta", "posterior", "learned"]


class Reverse(NamedTuple):
    """p(x_{t-1} | x_t) = N(mean, exp(log_variance)), and the picture it has in mind."""

    mean: Tensor
    log_variance: Tensor
    x0: Tensor


class Diffusion:
    """T steps whose beta rises linearly, both ends included (Section 4), or as Nichol and Dhariwal 2021 have it.

    Args:
        schedule: linear from beta_start to beta_end; cosine: alpha_bar falls like a squared cosine (their Eq. 17).
        predicts: what the network's output means (Section 3.2, Table 2).
        variance: sigma_t^2 is beta_t, beta_tilde_t (Section 3.2), or learned (Table 2: diagonal).
    """

    def __init__(
        self,
        steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        predicts: Predicts = "eps",
        variance: Variance = "beta",
        device: torch.device | str = "cpu",
        schedule: Literal["linear", "cosine"] = "linear",
    ) -> None:
        self.steps, self.predicts, self.variance = steps, predicts, variance
        beta = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        if schedule == "cosine":
            falling = torch.cos((torch.arange(steps + 1).double() / steps + 0.008) / 1.008 * math.pi / 2).square()
            beta = (1 - falling[1:] / falling[:-1]).clamp(max=0.999)
        alpha_bar = torch.cumprod(1 - beta, 0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        beta_tilde = beta * (1 - before) / (1 - alpha_bar)
        second = beta_tilde[1:2]  # the first posterior has no width: its variance is taken from the second (code)
        self.beta, self.alpha_bar = beta, alpha_bar
        self._tables = {
            "sqrt_alpha_bar": alpha_bar.sqrt(),
            "sqrt_rest": (1 - alpha_bar).sqrt(),
            "from_x0": beta * before.sqrt() / (1 - alpha_bar),  # mu_tilde = from_x0 x0 + from_x_t x_t (Eq. 7)
            "from_x_t": (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar),
            "log_beta": torch.cat([second, beta[1:]]).log(),
            "log_beta_tilde": torch.cat([second, beta_tilde[1:]]).log(),
        }
        self._tables = {name: table.to(device) for name, table in self._tables.items()}

    def at(self, name: str, t: Tensor, x: Tensor) -> Tensor:
        """A table's entries at t (b,), shaped to multiply x."""
        return self._tables[name][t].to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    # ---- the forward process

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) (Eq. 4)."""
        return self.at("sqrt_alpha_bar", t, x0) * x0 + self.at("sqrt_rest", t, x0) * eps

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(x_{t-1} | x_t, x_0) (Eqs. 6 and 7)."""
        mean = self.at("from_x0", t, x_t) * x0 + self.at("from_x_t", t, x_t) * x_t
        return mean, self.at("log_beta_tilde", t, x_t)

    # ---- the reverse process

    def eps_of(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that leads from x0 to x_t."""
        return (x_t - self.at("sqrt_alpha_bar", t, x_t) * x0) / self.at("sqrt_rest", t, x_t)

    def x0_of(self, said: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x0-hat from what the network predicts (Eq. 15, or Eq. 7 turned round)."""
        if self.predicts == "x0":
            return said
        if self.predicts == "eps":
            return (x_t - self.at("sqrt_rest", t, x_t) * said) / self.at("sqrt_alpha_bar", t, x_t)
        return (said - self.at("from_x_t", t, x_t) * x_t) / self.at("from_x0", t, x_t)

    def reverse(self, out: Tensor, x_t: Tensor, t: Tensor, clip: bool) -> Reverse:
        """p(x_{t-1} | x_t). A clipped x0-hat moves the mean too, unless the network predicts the mean (code)."""
        if self.variance == "learned":
            out, log_variance = out.chunk(2, 1)
        else:
            log_variance = self.at("log_beta" if self.variance == "beta" else "log_beta_tilde", t, x_t)
        x0 = self.x0_of(out, x_t, t)
        x0 = x0.clamp(-1, 1) if clip else x0
        mean = out if self.predicts == "mean" else self.posterior(x0, x_t, t)[0]
        return Reverse(mean, log_variance, x0)

    # ---- objectives and the bound

    def simple_loss(self, out: Tensor, x0: Tensor, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Unweighted squared error of what is predicted (Eq. 14; Table 2), per picture (b,)."""
        target = {"eps": eps, "x0": x0}[self.predicts] if self.predicts != "mean" else self.posterior(x0, x_t, t)[0]
        return (out - target).square().flatten(1).mean(1)

    def term(self, out: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, clip: bool) -> tuple[Tensor, Tensor]:
        """L_{t-1} of Eq. 5, or L_0 where t = 0, in bits per dimension (b,); and x0-hat.

        Args:
            clip: x0-hat to [-1, 1], as in every evaluation and never in training (code).
        """
        p = self.reverse(out, x_t, t, clip)
        mean, log_variance = self.posterior(x0, x_t, t)
        kl = normal_kl(mean, log_variance, p.mean, p.log_variance)
        decoder = -discretised_gaussian(x0, p.mean, 0.5 * p.log_variance)
        bits = torch.where(t == 0, decoder.flatten(1).mean(1), kl.flatten(1).mean(1)) / math.log(2)
        return bits, p.x0

    def prior(self, x0: Tensor) -> Tensor:
        """L_T = KL(q(x_T | x_0) || N(0, I)) in bits per dimension, in closed form, (b,)."""
        alpha_bar = self.alpha_bar[-1].item()
        square = alpha_bar * x0.double().square().flatten(1).mean(1)
        return 0.5 * (square - alpha_bar - math.log1p(-alpha_bar)) / math.log(2)


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) of each dimension, in nats."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (torch.expm1(ratio) - ratio + (mean1 - mean2).square() * torch.exp(-log_variance2))


def discretised_gaussian(x: Tensor, mean: Tensor, log_sd: Tensor) -> Tensor:
    """log of a Gaussian's mass in the bin of width 2/255 around x, the outer bins open (Eq. 13), in nats.

    With the code's approximation of the normal distribution function by a tanh, and its floor of 1e-12.
    """

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    precision, centred = torch.exp(-log_sd), x - mean
    upper, lower = cdf(precision * (centred + 1 / 255)), cdf(precision * (centred - 1 / 255))
    mass = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return mass.clamp_min(1e-12).log()
