"""Samplers of a trained model, and what else runs the chain backwards: interpolation, progressive decoding.

A sampler is a function that leads a batch from x_t to x_s, s < t, and says which picture it has in mind; s = -1 is the
picture itself. One more sampler is one more function here, under `@sampler`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.claims import nearest
from common.errors import UserError
from common.random import generator
from papers.ddpm.diffusion import Diffusion

Move = Callable[["Jump", Tensor, Tensor], tuple[Tensor, Tensor]]
SAMPLERS: dict[str, Move] = {}


def sampler(move: Move) -> Move:
    """Make a sampler known by its name."""
    SAMPLERS[move.__name__] = move
    return move


class Jump(NamedTuple):
    """From step t to step s of a diffusion, and the noise that may be added on the way."""

    diffusion: Diffusion
    t: int
    s: int
    noise: Tensor

    @property
    def alpha_bars(self) -> tuple[float, float]:
        """alpha_bar at t and at s."""
        table = self.diffusion.alpha_bar
        return table[self.t].item(), table[self.s].item() if self.s >= 0 else 1.0


@sampler
def ancestral(jump: Jump, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Algorithm 2. Over several steps at once: the same for the chain that has only these steps."""
    diffusion, t = jump.diffusion, torch.full((len(x),), jump.t, device=x.device)
    p = diffusion.reverse(out, x, t, clip=True)
    mean, sd = p.mean, torch.exp(0.5 * p.log_variance)
    if jump.s != jump.t - 1:
        here, there = jump.alpha_bars
        beta = 1 - here / there
        mean = there**0.5 * beta / (1 - here) * p.x0 + (here / there) ** 0.5 * (1 - there) / (1 - here) * x
        sd = (beta if diffusion.variance == "beta" else beta * (1 - there) / (1 - here)) ** 0.5
    return (mean + sd * jump.noise if jump.s >= 0 else mean), p.x0  # no noise at the last step


@sampler
def ddim(jump: Jump, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Without noise (Song, Meng, Ermon 2021, arXiv 2010.02502, Eq. 12 with sigma = 0)."""
    diffusion, t = jump.diffusion, torch.full((len(x),), jump.t, device=x.device)
    x0 = diffusion.reverse(out, x, t, clip=True).x0
    there = jump.alpha_bars[1]
    return there**0.5 * x0 + (1 - there) ** 0.5 * diffusion.eps_of(x0, x, t), x0


def find(name: str, diffusion: Diffusion, steps: int) -> Move:
    """A sampler by its name.

    Raises:
        UserError: no such sampler, or it cannot take this number of steps.
    """
    if name not in SAMPLERS:
        raise UserError(f"unknown sampler {name!r}{nearest(name, SAMPLERS)} (known: {', '.join(SAMPLERS)})")
    if not 1 <= steps <= diffusion.steps:
        raise UserError(f"--sample-steps {steps} is not between 1 and the {diffusion.steps} diffusion steps")
    if diffusion.variance == "learned" and steps < diffusion.steps and name == "ancestral":
        raise UserError(f"learned variances know single steps: --sample-steps {diffusion.steps}, or --sampler ddim")
    return SAMPLERS[name]


class Chain:
    """The reverse process of a network by one sampler in some number of steps.

    Args:
        steps: how many of the diffusion's, spread evenly; the first and the last are among them.
    """

    def __init__(self, diffusion: Diffusion, net: nn.Module, name: str, steps: int) -> None:
        self.diffusion, self.net, self.move = diffusion, net, find(name, diffusion, steps)
        last = diffusion.steps - 1
        self.times = [round(i * last / (steps - 1)) for i in range(steps)] if steps > 1 else [last]  # rising

    @torch.no_grad()
    def run(
        self, x: Tensor, numbers: torch.Generator, start: int | None = None, watch: Callable | None = None
    ) -> Tensor:
        """Lead x, at step `start` (T - 1 if None), to pictures; noise is drawn on the CPU from `numbers`.

        Args:
            watch: called with (s, x_s, x0-hat) after every move.
        """
        times = self.times if start is None else [t for t in self.times if t < start] + [start]
        for i in range(len(times) - 1, -1, -1):
            t, s = times[i], times[i - 1] if i else -1
            noise = torch.randn(x.shape, generator=numbers).to(x.device, memory_format=torch.channels_last)
            out = self.net(x, torch.full((len(x),), t, device=x.device))
            x, x0 = self.move(Jump(self.diffusion, t, s, noise), x, out)
            if watch is not None:
                watch(s, x, x0)
        return x

    def sample(
        self, shape: tuple[int, ...], key: tuple[int | str, ...], device: torch.device, watch: Callable | None = None
    ) -> Tensor:
        """Pictures (b, c, h, w) around [-1, 1], a pure function of the key."""
        numbers = generator(*key)
        x = torch.randn(shape, generator=numbers).to(device, memory_format=torch.channels_last)
        return self.run(x, numbers, watch=watch)

    def between(self, first: Tensor, second: Tensor, t: int, shares: Tensor, numbers: torch.Generator) -> Tensor:
        """Section 4.4: both pictures at step t, mixed there in `shares`, and led back; (shares, c, h, w)."""
        pair = torch.stack([first, second])
        eps = torch.randn(pair.shape, generator=numbers).to(first.device)
        a, b = self.diffusion.q_sample(pair, torch.full((2,), t, device=first.device), eps)
        mixed = torch.lerp(a, b, shares.to(a).view(-1, 1, 1, 1))
        return self.run(mixed.contiguous(memory_format=torch.channels_last), numbers, start=t)
