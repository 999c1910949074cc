"""Which expert sees which token: the gates of the paper and of Switch Transformers, and their balance losses.

Papers: Shazeer et al. 2017 (Sections 2.1 and 4, Appendices A, B, F) and Fedus et al. 2022 ("Switch").

Glossary (name here: symbol in the paper, shape)
    x                tokens, (t, d)
    w_gate, w_noise  W_g, W_noise, (d, n)
    clean, noisy     x W_g and H(x) (Eq. 4), (t, n)
    gate             the entries of G(x) that are not 0
    importance       Importance(X), Eq. 6, (n,)
    load             Load(X), Eq. 10, (n,)
    t tokens, n experts, k of them active for a token, r pairs of a token and an expert
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.random import generator

Exploration = Literal["argmax", "sample", "dropout", "jitter"]


class Routing(NamedTuple):
    """r pairs of a token and an expert, sorted by expert, and how evenly the experts are used.

    Attributes:
        token: (r,) which row of x.
        gate: (r,) G(x)_i.
        taken: (n,) pairs of each expert: the first taken[0] are expert 0's, and so on.
        importance, load: (n,) over the batch of all processes.
        penalty: what the gate itself adds to the loss: Switch's Eq. 4; the thresholds' loss of Appendix F.
    """

    token: Tensor
    gate: Tensor
    taken: Tensor
    importance: Tensor
    load: Tensor
    penalty: Tensor


class Draws:
    """The random numbers of one training step, a function of its key and of the order in which they are asked for.

    Every process draws those of the whole batch and takes its rows, so that their number moves no result.
    """

    def __init__(self, *key: int | str, device: torch.device | str = "cpu", part: tuple[int, int] = (0, 1)) -> None:
        self._generator = generator(*key, device=device)
        self._part = part

    def _drawn(self, draw: Callable[..., Tensor], rows: int, *more: int) -> Tensor:
        rank, world = self._part
        whole = draw(rows * world, *more, generator=self._generator, device=self._generator.device)
        return whole[rank * rows : (rank + 1) * rows]

    def normal(self, rows: int, *more: int) -> Tensor:
        return self._drawn(torch.randn, rows, *more)

    def uniform(self, rows: int, *more: int) -> Tensor:
        return self._drawn(torch.rand, rows, *more)


def cv_squared(x: Tensor) -> Tensor:
    """Square of the coefficient of variation (Eq. 7, 11), with the population's variance, as in the authors' code."""
    return x.var(correction=0) / (x.mean() ** 2 + 1e-10)


def top_k(clean: Tensor, sd: Tensor, normal: Tensor | None, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy top-k gating (Eq. 3 to 5).

    Args:
        sd: softplus(x W_noise), (t, n).
        normal: standard normal noise, (t, n); none: no noise (evaluation).

    Returns:
        The k experts (t, k), their gates (t, k), and P(x, i) (t, n): the probability that i is among the k when its
        noise alone is drawn anew (Eq. 8, 9); without noise, or with k = n, 1 for the chosen and 0 for the others.
    """
    noisy = clean if normal is None else clean + normal * sd
    n = clean.shape[1]
    values, expert = noisy.topk(min(k + 1, n))
    chosen, gate = expert[:, :k], values[:, :k].softmax(1)
    if normal is None or k == n:
        return chosen, gate, torch.zeros_like(clean).scatter(1, chosen, 1.0)
    kth, following = values[:, k - 1 : k], values[:, k : k + 1]
    kth_excluding = torch.where(noisy > following, following, kth)
    return chosen, gate, torch.special.ndtr((clean - kth_excluding) / sd)


def by_expert(expert: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort pairs by expert, those of one expert in the order they came: expert (r,), order (r,), count (n,)."""
    expert, order = expert.sort(stable=True)
    ends = torch.searchsorted(expert, torch.arange(n, device=expert.device), right=True)
    return expert, order, ends.diff(prepend=ends.new_zeros(1))


def sum_by(expert: Tensor, value: Tensor, n: int) -> Tensor:
    """Sum of a value over the pairs of each expert, (n,)."""
    return value.new_zeros(n).scatter_add(0, expert, value)


class Gate(nn.Module):
    """What all gates share: `total` sums over the processes that share a batch."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.total: Callable[[Tensor], Tensor] = lambda x: x

    def initialise(self, draw: torch.Generator) -> None:
        """W_g = W_noise = 0: equal expected load, some noise (Appendix A)."""
        for weight in self.parameters():
            nn.init.zeros_(weight)


class NoisyTopK(Gate):
    """Noisy top-k gating with the smooth estimate of the load (Section 2.1, Appendix A); biases as in makeMoE."""

    def __init__(self, d: int, n: int, k: int, bias: bool = False) -> None:
        super().__init__(n)
        self.k = k
        self.w_gate, self.w_noise = nn.Parameter(torch.empty(d, n)), nn.Parameter(torch.empty(d, n))
        self.b_gate = nn.Parameter(torch.empty(n)) if bias else None
        self.b_noise = nn.Parameter(torch.empty(n)) if bias else None

    def chosen(self, x: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor, Tensor]:
        """As `top_k`."""
        normal = None if draws is None else draws.normal(len(x), self.n)
        clean, spread = x @ self.w_gate, x @ self.w_noise
        if self.b_gate is not None and self.b_noise is not None:
            clean, spread = clean + self.b_gate, spread + self.b_noise
        return top_k(clean, F.softplus(spread), normal, self.k)

    def forward(self, x: Tensor, draws: Draws | None) -> Routing:
        chosen, gate, p = self.chosen(x, draws)
        expert, order, count = by_expert(chosen.flatten(), self.n)
        gate = gate.flatten().index_select(0, order)
        importance, load = self.total(torch.stack([sum_by(expert, gate, self.n), p.sum(0)]))
        return Routing(order // self.k, gate, count, importance, load, x.new_zeros(()))


class Hierarchical(Gate):
    """A primary gate over groups, and in each group a gate of its own over its experts (Appendix B).

    Args:
        groups: a, the first-level branching; each has n / a experts.
        k: active at each level.
    """

    def __init__(self, d: int, n: int, groups: int, k: int) -> None:
        super().__init__(n)
        self.k, self.groups, self.size = k, groups, n // groups
        self.primary = NoisyTopK(d, groups, k)
        self.w_gate = nn.Parameter(torch.empty(groups, d, self.size))
        self.w_noise = nn.Parameter(torch.empty(groups, d, self.size))

    def forward(self, x: Tensor, draws: Draws | None) -> Routing:
        t, a, b, k = len(x), self.groups, self.size, self.k
        first, outer, p_first = self.primary.chosen(x, draws)
        group, order, members = by_expert(first.flatten(), a)
        token = order // k  # X^(i): the tokens of group i stand together
        logits = grouped(x.index_select(0, token), torch.cat([self.w_gate, self.w_noise], 2), members)  # (t k, 2b)
        normal = None if draws is None else draws.normal(t, k * b).view(t * k, b).index_select(0, order)
        second, inner, p_second = top_k(logits[:, :b], F.softplus(logits[:, b:]), normal, k)
        gate = (outer.flatten().index_select(0, order)[:, None] * inner).flatten()  # Eq. 12
        expert, order, count = by_expert((group[:, None] * b + second).flatten(), self.n)
        gate = gate.index_select(0, order)
        importance = sum_by(expert, gate, self.n)  # Eq. 13
        inside = p_second.new_zeros(a, b).index_add(0, group, p_second)  # Load_i(X^(i))_j
        sums = torch.cat([importance, inside.flatten(), p_first.sum(0), members.to(gate.dtype)])
        importance, inside, outside, held = self.total(sums).split([self.n, self.n, a, a])
        load = (outside / held.clamp(min=1))[:, None] * inside.view(a, b)  # Eq. 14
        return Routing(token.index_select(0, order // k), gate, count, importance, load.flatten(), x.new_zeros(()))


class Batchwise(Gate):
    """Strictly balanced gating (Appendix F): every expert takes the m = k t / n tokens of a process that suit it most.

    In evaluation an expert takes the tokens above its threshold, learned beside (Eq. 19, 20).
    """

    def __init__(self, d: int, n: int, k: int) -> None:
        super().__init__(n)
        self.k = k
        self.w_gate, self.threshold = nn.Parameter(torch.empty(d, n)), nn.Parameter(torch.empty(n))

    def initialise(self, draw: torch.Generator) -> None:
        """Not zero: with equal scores all experts would take the same tokens."""
        nn.init.normal_(self.w_gate, std=len(self.w_gate) ** -0.5, generator=draw)
        nn.init.constant_(self.threshold, 1 / self.n)

    def forward(self, x: Tensor, draws: Draws | None) -> Routing:
        t, n = len(x), self.n
        score = (x @ self.w_gate).softmax(1)  # G_sigma
        above = score > self.threshold
        penalty = x.new_zeros(())
        if draws is None:
            expert, token = above.T.nonzero(as_tuple=True)
        else:
            m = max(1, self.k * t // n)
            best = score.detach().topk(m, dim=0).indices.T  # (n, m)
            expert, token = torch.arange(n, device=x.device).repeat_interleave(m), best.flatten()
            mask = torch.zeros_like(above).scatter(0, best.T, True)
            wrong = above.to(x.dtype) - mask.to(x.dtype)
            penalty = (wrong * (score.detach() - self.threshold)).sum() / t  # Eq. 20
        value = score.flatten().index_select(0, token * n + expert)
        gate = value / sum_by(token, value, t).index_select(0, token)  # Eq. 16; a token nobody takes comes out as 0
        count = torch.bincount(expert, minlength=n)
        importance, load = self.total(torch.stack([sum_by(expert, gate, n), count.to(gate.dtype)]))
        return Routing(token, gate, count, importance, load, penalty)


class Switch(Gate):
    """Top-1 routing with a capacity (Switch Section 2): overflowing tokens are passed over, and come out as 0.

    Args:
        capacity_factor: an expert takes at most capacity_factor * t / n tokens of a process, first come first served.
        alpha: weight of the auxiliary loss (Eq. 4).
        exploration: how training explores (Table 11); `dropout` and `jitter` act on the router's input alone.
        scale: s of the initial truncated normal, sd sqrt(s / d) (Section 2.4).
    """

    def __init__(
        self, d: int, n: int, capacity_factor: float = 1.25, alpha: float = 0.01, exploration: Exploration = "jitter",
        scale: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__(n)
        self.capacity_factor, self.alpha, self.exploration, self.scale = capacity_factor, alpha, exploration, scale
        self.w_gate = nn.Parameter(torch.empty(d, n))

    def initialise(self, draw: torch.Generator) -> None:
        truncated_normal(self.w_gate, self.scale, draw)

    def forward(self, x: Tensor, draws: Draws | None) -> Routing:
        t, n = len(x), self.n
        if draws is not None and self.exploration == "jitter":
            x = x * (0.99 + 0.02 * draws.uniform(*x.shape))
        if draws is not None and self.exploration == "dropout":
            x = x * (draws.uniform(*x.shape) >= 0.1) / 0.9
        logits = x @ self.w_gate
        p = logits.softmax(1)
        score = logits.detach()
        if draws is not None and self.exploration == "sample":
            score = score - (-draws.uniform(t, n).clamp(1e-20).log()).log()  # Gumbel's noise: the argmax samples p
        chosen = score.argmax(1)
        gate = p.gather(1, chosen[:, None])[:, 0]
        expert, token, count = by_expert(chosen, n)
        asked = count.to(p.dtype)
        load, probability, tokens = self.total(torch.cat([asked, p.sum(0), p.new_full((1,), t)])).split([n, n, 1])
        penalty = self.alpha * n * (load.detach() * probability).sum() / tokens[0] ** 2  # Eq. 4 to 6
        capacity = math.ceil(self.capacity_factor * t / n)
        place = torch.arange(t, device=x.device) - (count.cumsum(0) - count).index_select(0, expert)
        expert, token = expert[place < capacity], token[place < capacity]
        gate = gate.index_select(0, token)
        importance = self.total(sum_by(expert, gate, n))
        return Routing(token, gate, count.clamp(max=capacity), importance, load, penalty)


def computed_in(kind: str) -> torch.dtype | None:
    """Autocast's precision on this kind of device, where it is on; it does not know grouped products."""
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


def grouped(x: Tensor, weight: Tensor, count: Tensor) -> Tensor:
    """x_j W_e for the rows j of expert e: (r, d), (n, d, h) -> (r, h), one call for all experts.

    Args:
        x: rows sorted by expert; d and h are multiples of 16 bytes.
        count: (n,) rows of each expert.
    """
    if dtype := computed_in(x.device.type):
        x, weight = x.to(dtype), weight.to(dtype)
    return F.grouped_mm(x, weight, offs=count.cumsum(0, dtype=torch.int32))


@torch.no_grad()
def truncated_normal(weight: Tensor, scale: float, draw: torch.Generator) -> None:
    """Mean 0, sd sqrt(scale / fan-in), cut at two of them (Switch Section 2.4); (..., fan-in, fan-out)."""
    sd = math.sqrt(scale / weight.shape[-2])
    nn.init.trunc_normal_(weight, std=sd, a=-2 * sd, b=2 * sd, generator=draw)
