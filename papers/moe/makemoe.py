"""The character model of makeMoE: a small Transformer whose feed-forward networks are noisy top-k mixtures of experts.

AviSoori1x/makeMoE at 0d68228, makeMoE_from_Scratch.ipynb ("code" below), a published run of this paper's gate on a text
anybody has. Unlike the paper's layer its gate and experts have biases, its gate starts at random, no loss evens out the
load, and the gate's noise stays on in the evaluation.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papers.moe.model import Experts, MoE, dropped
from papers.moe.routing import Draws, NoisyTopK


class Attention(nn.Module):
    """Causal; scores are divided by the root of the model's width, not of a head's (code)."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d)

    def forward(self, x: Tensor, dropout: float, draws: Draws) -> Tensor:
        """(b, t, d) -> (b, t, d)."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (b, heads, t, d / heads)
        scores = (q * d**-0.5) @ k.mT
        later = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        y = dropped(weights, dropout, draws) @ v
        return dropped(self.proj(y.transpose(1, 2).reshape(b, t, d)), dropout, draws)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MoE(norm(x))."""

    def __init__(self, d: int, heads: int, moe: MoE) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention, self.moe = Attention(d, heads), moe

    def forward(self, x: Tensor, dropout: float, draws: Draws) -> Tensor:
        x = x + self.attention(self.norm1(x), dropout, draws)
        y, _ = self.moe(self.norm2(x).flatten(0, 1), draws)
        return x + y.view_as(x)


class Transformer(nn.Module):
    """Embedded characters and places, blocks, a norm, the softmax.

    Args:
        length: places.
        units: hidden units of an expert. n: experts, k of them active.
        dropout: of attention's weights and output and of each expert's output.
    """

    def __init__(
        self, vocabulary: int, length: int, d: int, heads: int, layers: int, units: int, n: int, k: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.embedding, self.places = nn.Embedding(vocabulary, d), nn.Embedding(length, d)
        self.layers = nn.ModuleList(
            Block(d, heads, MoE(NoisyTopK(d, n, k, bias=True), Experts(n, (d, units, d), bias=True), dropout))
            for _ in range(layers)
        )
        self.norm, self.softmax = nn.LayerNorm(d), nn.Linear(d, vocabulary)

    @property
    def moes(self) -> list[MoE]:
        return [layer.moe for layer in self.layers if isinstance(layer, Block)]

    @torch.no_grad()
    def initialise(self, draw: torch.Generator) -> None:
        """Embeddings N(0, 1), matrices N(0, 2 / fan-in), biases uniform in +-1 / sqrt(fan-in) (torch, code)."""

        def matrix(weight: Tensor, bias: Tensor | None, fan_in: int) -> None:
            weight.normal_(0.0, math.sqrt(2 / fan_in), generator=draw)
            if bias is not None:
                bias.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=draw)

        for module in self.modules():
            if isinstance(module, nn.Linear):
                matrix(module.weight, module.bias, module.in_features)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(generator=draw)
            elif isinstance(module, Experts):
                for weight, bias in zip(module.weights, module.biases, strict=True):
                    matrix(weight, bias, weight.shape[1])
            elif isinstance(module, NoisyTopK):
                for weight, bias in ((module.w_gate, module.b_gate), (module.w_noise, module.b_noise)):
                    matrix(weight, bias, len(weight))

    def forward(self, words: Tensor, following: Tensor, draws: Draws) -> Tensor:
        """Negative log-likelihood of the following characters, (b, t) in nats. Draws are the gate's noise, always, and
        in training dropout."""
        dropout = self.dropout if self.training else 0.0
        x = self.embedding(words) + self.places.weight[: words.shape[1]]
        for layer in self.layers:
            x = layer(x, dropout, draws)
        return F.cross_entropy(self.softmax(self.norm(x)).mT, following, reduction="none")
