"""The sparsely-gated mixture-of-experts layer, and the language models around it.

Paper: N. Shazeer, A. Mirhoseini, K. Maziarz, A. Davis, Q. Le, G. Hinton, J. Dean, "Outrageously Large Neural Networks:
The Sparsely-Gated Mixture-of-Experts Layer", ICLR 2017, arXiv 1701.06538. The gates are in `routing.py`.

Glossary (name here: symbol in the paper, shape)
    x, y        input and output of the layer, (t, d)
    weights     the experts' matrices, each (n, fan-in, fan-out); E_i(x) = ReLU(x W1_i) W2_i, no biases (C.1)
    rows        x of r pairs of a token and an expert, sorted by expert, (r, d)
    count       pairs of each expert, (n,)
    b, t        sentences and words in them; the layer sees all b t words of a batch at once (Section 3.1)
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from papers.moe.routing import Draws, Gate, Routing, computed_in, grouped, truncated_normal


class _Total(torch.autograd.Function):
    """Sum over the processes, of values and of gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _summed(grad, ctx.group), None


def _summed(x: Tensor, group: Any) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, group=group)
    return x


class _Exchange(torch.autograd.Function):
    """All-to-all of rows; gradients travel back the way the rows came."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
        ctx.way = send, receive, group
        received = rows.new_empty(sum(receive), rows.shape[1])
        dist.all_to_all_single(received, rows.contiguous(), receive, send, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        send, receive, group = ctx.way
        return _Exchange.apply(grad, receive, send, group), None, None, None


class Link:
    """The processes that share out the experts (Section 3.1): process i holds the i-th part of them.

    Gradients: each process is taken to have the loss of its own tokens, times the number of processes, and gradients
    to be averaged afterwards (as DistributedDataParallel does).
    """

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.group = dist.new_group()  # its own, so that it never waits behind the averaging of gradients

    def total(self, x: Tensor) -> Tensor:
        """Sum over the processes; so is its gradient."""
        return _Total.apply(x, self.group)

    def counts(self, count: Tensor) -> Tensor:
        """(n,) pairs this process has for each expert -> (world, n / world) pairs each process has for those here."""
        received = torch.empty_like(count)
        dist.all_to_all_single(received, count, group=self.group)
        return received.view(self.world, -1)

    def exchange(self, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """All-to-all: the first send[0] rows go to process 0, and so on; receive[i] come from process i."""
        return _Exchange.apply(rows, send, receive, self.group)


class Experts(nn.Module):
    """n feed-forward networks with ReLU between their layers.

    Args:
        widths: input, hidden layers, output.
        held: how many of the experts this process holds; all if None.
        bias: makeMoE's have biases; the paper's have none, and only those can be shared out among processes.
    """

    def __init__(self, n: int, widths: Sequence[int], held: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.n = n
        self.weights = nn.ParameterList(torch.empty(held or n, a, b) for a, b in pairwise(widths))
        self.biases = nn.ParameterList(torch.empty(n, b) for b in widths[1:] if bias)
        self.link: Link | None = None

    @torch.no_grad()
    def initialise(self, draw: torch.Generator, scale: float | None = None) -> None:
        """Uniform in +-1 / sqrt(fan-in), or a truncated normal of this scale."""
        for weight in self.weights:
            if scale is not None:
                truncated_normal(weight, scale, draw)
            else:
                nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5, generator=draw)

    def forward(self, rows: Tensor, count: Tensor) -> Tensor:
        """(r, d) -> (r, d): the rows of each expert through it."""
        link = self.link
        if link is None:
            return self.through(rows, count, list(self.weights), list(self.biases))
        own = self.n // link.world
        arriving = link.counts(count)  # (world, own)
        send, receive = count.view(link.world, own).sum(1).tolist(), arriving.sum(1).tolist()
        expert = torch.arange(own, device=count.device).repeat(link.world).repeat_interleave(arriving.flatten())
        order = expert.argsort(stable=True)  # they come sorted by process, then by expert
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        first = link.rank * own
        weights = [w if len(w) == own else w[first : first + own] for w in self.weights]
        rows = link.exchange(rows, send, receive).index_select(0, order)
        rows = self.through(rows, arriving.sum(0), weights).index_select(0, back)
        return link.exchange(rows, receive, send)

    @staticmethod
    def through(rows: Tensor, count: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] = ()) -> Tensor:
        expert = torch.arange(len(count), device=count.device).repeat_interleave(count) if biases else None
        for i, weight in enumerate(weights):
            rows = grouped(rows, weight, count)
            if expert is not None:
                rows = rows + biases[i].index_select(0, expert)
            if i < len(weights) - 1:
                rows = rows.relu_()  # its backward needs the result alone
        return rows


LARGE = 2**18  # numbers in an expert's matrix; from here on a turn for each expert costs nothing beside its products


class ByExperts(torch.autograd.Function):
    """sum_i G(x)_i E_i(x) of experts with one hidden layer on a CPU, one expert after the other: its rows stay in the
    cache. Of what is r rows long the hidden layer alone is kept: rows of x and dy are gathered anew, and G(x)_i has the
    gradient <dy W2^T, h>, which needs no output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, W1: Tensor, W2: Tensor, token: Tensor, count: Tensor) -> Tensor:
        h, y = x.new_empty(len(token), W1.shape[2]), x.new_zeros(len(x), W2.shape[2])
        ctx.parts = count.tolist()
        rows = (v.split(ctx.parts) for v in (gate[:, None], token, h))
        for w1, w2, g, at, h_i in zip(W1, W2, *rows, strict=True):
            torch.mm(x.index_select(0, at), w1, out=h_i).relu_()
            y.index_add_(0, at, torch.mm(h_i, w2).mul_(g))
        ctx.save_for_backward(x, gate, W1, W2, token, h)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, W1, W2, token, h = ctx.saved_tensors
        dx, (dgate, dW1, dW2) = torch.zeros_like(x), (torch.empty_like(v) for v in (gate, W1, W2))
        rows = (v.split(ctx.parts) for v in (gate[:, None], dgate, token, h))
        # where an expert has no rows, a product of nothing writes zeros
        for w1, w2, dw1, dw2, g, dg, at, h_i in zip(W1, W2, dW1, dW2, *rows, strict=True):
            dy_i = dy.index_select(0, at)
            dh = dy_i @ w2.T  # as if the gate were one, which comes in where rows are short
            dg.copy_(torch.linalg.vecdot(dh, h_i))
            torch.ops.aten.threshold_backward.grad_input(dh, h_i, 0, grad_input=dh)
            torch.mm(h_i.T, dy_i.mul_(g), out=dw2)
            torch.mm(x.index_select(0, at).mul_(g).T, dh, out=dw1)
            dx.index_add_(0, at, torch.mm(dh, w1.T).mul_(g))
        return dx, dgate, dW1, dW2, None, None


class MoE(nn.Module):
    """y = sum_i G(x)_i E_i(x) (Eq. 1); with one expert and no gate, y = E_0(x).

    Args:
        dropout: of each expert's output, in training (makeMoE).
    """

    def __init__(self, gate: Gate | None, experts: Experts, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate, self.experts, self.dropout = gate, experts, dropout

    def initialise(self, draw: torch.Generator, scale: float | None = None) -> None:
        if self.gate is not None:
            self.gate.initialise(draw)
        self.experts.initialise(draw, scale)

    def join(self, link: Link | None) -> None:
        """Share the experts out among processes, or, with None, compute alone."""
        self.experts.link = link
        if self.gate is not None:
            self.gate.total = (lambda x: x) if link is None else link.total

    def forward(self, x: Tensor, draws: Draws | None = None) -> tuple[Tensor, Routing | None]:
        """(t, d) -> (t, d). The gate computes in float32 under mixed precision (Switch Section 2.4).

        Args:
            draws: random numbers of training; none: evaluation, without noise.
        """
        if self.gate is None:
            return self.experts(x, torch.full((1,), len(x), device=x.device)), None
        weight = next(self.gate.parameters())
        plain = torch.autocast(x.device.type, enabled=False) if x.device.type != "meta" else nullcontext()
        with plain:
            routing = self.gate(x.to(weight.dtype), draws)
        weights = self.experts.weights
        here = x.device.type == "cpu" and self.experts.link is None
        plain_experts = len(weights) == 2 and not self.dropout and not self.experts.biases
        if here and plain_experts and weights[0][0].numel() >= LARGE:
            inputs = (v.to(computed_in("cpu") or x.dtype) for v in (x, routing.gate, *weights))
            return ByExperts.apply(*inputs, routing.token, routing.taken), routing
        rows = self.experts(x.index_select(0, routing.token), routing.taken)
        if self.training and self.dropout:
            # drawn token by token, so that sharing a batch out among processes changes nothing
            place = routing.token.argsort(stable=True).argsort()
            rows = rows * dropped(torch.ones_like(rows), self.dropout, draws)[place]
        rows = rows * routing.gate.to(rows.dtype)[:, None]
        return torch.zeros_like(x, dtype=rows.dtype).index_add(0, routing.token, rows), routing


def dropped(x: Tensor, rate: float, draws: Draws | None) -> Tensor:
    """Dropout; none without draws (evaluation)."""
    if draws is None or not rate:
        return x
    return x * ((draws.uniform(*x.shape) >= rate) * (1 / (1 - rate)))


def lstm(d: int, units: int) -> nn.LSTM:
    """(b, t, d) -> (b, t, d), projected where units differ from d, with one bias a gate where torch has two."""
    layer = nn.LSTM(d, units, batch_first=True, proj_size=0 if units == d else d)
    layer.bias_hh_l0.requires_grad_(False)
    return layer


class LanguageModel(nn.Module):
    """Embedding, LSTM, MoE, LSTM, softmax; dropout and then a residual connection around each but the ends (C.1).

    Args:
        units: of an LSTM; projected to d where they differ from it.
        middle: between the two LSTMs: the MoE, two more LSTMs (4xLSTM-512), or nothing and one LSTM in all
            (LSTM-2048-512).
        squashed: the MoE's output goes through a sigmoid (C.1), which Switch layers lack.
    """

    def __init__(
        self, vocabulary: int, d: int, units: int, middle: MoE | Literal["lstm", "none"], dropout: float = 0.0,
        squashed: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dropout, self.squashed = dropout, squashed
        lstms = 1 if middle == "none" else 2 if isinstance(middle, MoE) else 4
        layers: list[nn.Module] = [lstm(d, units) for _ in range(lstms)]
        if isinstance(middle, MoE):
            layers.insert(1, middle)
        self.embedding, self.layers = nn.Embedding(vocabulary, d), nn.ModuleList(layers)
        self.softmax = nn.Linear(d, vocabulary)

    @property
    def moe(self) -> MoE | None:
        return next((layer for layer in self.layers if isinstance(layer, MoE)), None)

    @torch.no_grad()
    def initialise(self, draw: torch.Generator, scale: float | None = None) -> None:
        """Embedding N(0, 1 / d); LSTMs uniform in +-1 / sqrt(units), as torch has them; the softmax likewise."""
        d = self.embedding.embedding_dim
        nn.init.normal_(self.embedding.weight, std=d**-0.5, generator=draw)
        for layer in self.layers:
            if isinstance(layer, MoE):
                layer.initialise(draw, scale)
            elif isinstance(layer, nn.LSTM):
                for weight in layer.parameters():
                    nn.init.uniform_(weight, -(layer.hidden_size**-0.5), layer.hidden_size**-0.5, generator=draw)
                layer.bias_hh_l0.zero_()  # type: ignore[operator]
        nn.init.uniform_(self.softmax.weight, -(d**-0.5), d**-0.5, generator=draw)
        nn.init.zeros_(self.softmax.bias)

    def hidden(self, words: Tensor, draws: Draws | None = None) -> tuple[Tensor, Routing | None]:
        """(b, t) -> (b, t, d), what the softmax sees."""
        routing = None
        h = dropped(self.embedding(words), self.dropout, draws)
        for layer in self.layers:
            if isinstance(layer, MoE):
                y, routing = layer(h.flatten(0, 1), draws)
                y = (y.sigmoid() if self.squashed else y).view_as(h)
            else:
                y, _ = layer(h)
            h = h + dropped(y, self.dropout, draws)
        return h, routing

    def forward(
        self, words: Tensor, following: Tensor, draws: Draws | None = None, samples: int = 0
    ) -> tuple[Tensor, Routing | None]:
        """Negative log-likelihood of the following words, (b, t) in nats.

        Args:
            samples: train the softmax against so many sampled words; 0: against all.
        """
        h, routing = self.hidden(words, draws)
        h, target = h.flatten(0, 1), following.flatten()
        if samples and draws is not None:
            loss = sampled_cross_entropy(h, self.softmax.weight, self.softmax.bias, target, draws.uniform(samples))
        else:
            loss = F.cross_entropy(self.softmax(h), target, reduction="none")
        return loss.view_as(following), routing


def sampled_cross_entropy(h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, uniform: Tensor) -> Tensor:
    """Cross-entropy whose partition function is estimated by importance sampling (Bengio and Senecal 2003), (r,).

    Words are numbered by falling frequency; m are drawn, with replacement, from
    q(w) = log((w + 2) / (w + 1)) / log(v + 1).
    Z is estimated by exp(logit) of the target and the sum of exp(logit) / (m q) over the other samples.

    Args:
        h: (r, d); target: (r,); uniform: (m,) in [0, 1).
    """
    v, m = len(weight), len(uniform)
    sample = ((uniform * math.log(v + 1)).exp() - 1).long().clamp(max=v - 1)

    times = (m * torch.log1p(1 / (sample + 1.0)) / math.log(v + 1)).log()  # each is expected so often
    true = (h * weight.index_select(0, target)).sum(1) + bias.index_select(0, target)
    others = F.linear(h, weight.index_select(0, sample), bias.index_select(0, sample)) - times
    others = others.masked_fill(sample == target[:, None], -torch.inf)
    return torch.cat([true[:, None], others], 1).logsumexp(1) - true
