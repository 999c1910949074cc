"""Graph convolutional networks, many independent nets at once.

Paper: Kipf and Welling, "Semi-Supervised Classification with Graph Convolutional Networks", ICLR 2017,
https://arxiv.org/abs/1609.02907. Official code: tkipf/gcn.

Glossary (name here: symbol in the paper, shape)
    features:     X, (n, f), sparse, rows sum to 1
    propagation:  [S_0 ... S_K], (n, n * k), sparse; A^ of Eq. 8 where k = 1
    weight:       [Theta_0 ... Theta_K] = W^(l), (s, f, k, d)
    hidden:       H^(l), (s, n, d); logits: before the softmax of Eq. 9, (s, n, c)
    s nets trained together (one per seed, or per seed and fold), n nodes, k supports, c classes
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.random import generator, integer
from papers.gcn.propagation import Field


class GCN(nn.Module):
    """Z = S sigma(S ... sigma(S X W^(0)) ... W^(L-1)) (Eq. 9 for two layers), without biases, as in the official code.

    Args:
        nets: how many independent nets.
        widths: features, hidden units of each layer, outputs.
        supports: matrices Theta_k per layer (Table 3).
        dropout: rate on the input of the first layer (stored entries of X only) and of the last one.
        residual: Eq. 14 between hidden layers.
    """

    def __init__(
        self,
        nets: int,
        widths: Sequence[int],
        supports: int = 1,
        dropout: float = 0.0,
        residual: bool = False,
        activation: Callable[[Tensor], Tensor] = torch.relu,
    ) -> None:
        super().__init__()
        self.dropout, self.residual, self.activation = dropout, residual, activation
        self.weights = nn.ParameterList(torch.empty(nets, f, supports, d) for f, d in pairwise(widths))

    @torch.no_grad()
    def initialize(self, keys: Sequence[tuple[int, ...]]) -> None:
        """Glorot uniform for each matrix on its own; net i's numbers depend on keys[i] alone."""
        for layer, weight in enumerate(self.weights):
            _, f, k, d = weight.shape
            bound = math.sqrt(6 / (f + d))
            for net, key in zip(weight, keys, strict=True):
                drawn = torch.rand(k, f, d, generator=generator(*key, "initialize", layer))
                net.copy_(((2 * drawn - 1) * bound).transpose(0, 1))

    def masks(self, field: Field, keys: Sequence[tuple[int, ...]], step: int) -> list[Tensor | None]:
        """What dropout keeps in one step, for each layer's input; a pure function of each net's key and the step."""
        masks: list[Tensor | None] = [None] * len(self.weights)
        if self.dropout:
            masks[0] = keep(field.features.entries, self.dropout, keys, "first", step).to(self.weights[0].device)
        if self.dropout and len(masks) > 1:
            n, d = field.propagations[-1].shape[1] // self.weights[-1].shape[2], self.weights[-1].shape[1]
            last = keep(n * d, self.dropout, keys, "last", step).view(len(keys), n, d)
            masks[-1] = last.to(self.weights[0].device)
        return masks

    def layers(
        self, field: Field, masks: Sequence[Tensor | None] | None = None, nets: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The outputs of one layer after the other, (s, n_l, d_l); arguments as in `forward`."""
        weights = list(self.weights) if nets is None else [weight[nets] for weight in self.weights]
        masks = masks or [None] * len(weights)
        last = len(weights) - 1
        hidden = torch.empty(0)
        for layer, (weight, propagation) in enumerate(zip(weights, field.propagations, strict=True)):
            s, _, _, d = weight.shape
            if layer == 0:  # X W^(0): (s, n_0, k * d)
                product = field.features.matmul(weight.flatten(2), masks[0], self.dropout)
            else:
                mask = masks[layer]
                inputs = hidden if mask is None else hidden * mask * (1 / (1 - self.dropout))
                product = torch.bmm(inputs, weight.flatten(2))
            output = propagation.matmul(product.reshape(s, -1, d))  # (s, n_{l-1} * k, d) → (s, n_l, d)
            if layer < last:
                output = self.activation(output)
            if self.residual and 0 < layer < last:
                output = output + hidden[:, field.inner[layer]]
            hidden = output
            yield hidden

    def forward(self, field: Field, masks: Sequence[Tensor | None] | None = None, nets: Tensor | None = None) -> Tensor:
        """Logits of the field's nodes, (s, n, c).

        Args:
            masks: what dropout keeps (training); none: no dropout (evaluation).
            nets: evaluate these nets only.
        """
        for output in self.layers(field, masks, nets):
            logits = output
        return logits

    def penalty(self, weight_decay: float) -> Tensor:
        """weight_decay / 2 ||W||^2 of the first layer's matrices, (s,)."""
        return weight_decay / 2 * torch.linalg.vector_norm(self.weights[0].flatten(1), dim=1) ** 2


def keep(entries: int, rate: float, keys: Sequence[tuple[int, ...]], *purpose: int | str) -> Tensor:
    """Which entries dropout keeps, (s, entries) bool.

    Drawn by numpy's SFC64 on the CPU for every device: 16 random bits an entry, ten times faster than torch's
    generator, and the same on a GPU.
    """
    kept = np.empty((len(keys), entries), dtype=bool)
    threshold = round((1 - rate) * 2**16)
    for row, key in zip(kept, keys, strict=True):
        bits = np.random.SFC64(integer(*key, "dropout", *purpose)).random_raw((entries + 3) // 4)
        np.less(bits.view(np.uint16)[:entries], threshold, out=row)
    return torch.from_numpy(kept)


def cross_entropy(logits: Tensor, labels: Tensor, share: Tensor) -> Tensor:
    """Mean over the labelled nodes of each net (Eq. 10), (s,).

    Args:
        labels: (n,).
        share: (s, n), 1 / (number of nodes) where a node counts, else 0.
    """
    s = len(logits)
    loss = F.cross_entropy(logits.transpose(1, 2), labels.expand(s, -1), reduction="none")  # (s, n)
    return (loss * share).sum(1)


def accuracy(logits: Tensor, labels: Tensor, share: Tensor) -> Tensor:
    """Percent of the counted nodes classified right, (s,); not a number for a net that diverged."""
    right = ((logits.argmax(2) == labels) * share).sum(1) * 100
    return torch.where(logits.isfinite().all(2).all(1), right, torch.nan)
