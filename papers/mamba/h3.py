"""The small language model of the H3 paper's two synthetic tasks, with H3, S4D or attention inside.

D. Fu et al., "Hungry Hungry Hippos", ICLR 2023, Table 1; all sizes and rules are those of the code its authors give for
it, HazyResearch/safari at 02220c6: `lm_simple`, `configs/experiment/synthetics` ("code" below). Unlike `model.py`'s H3
the shift is a state space of its own (it can look back over all of the sequence), and S4D has no convolution before it.

Glossary: x (b, l, d); n conjugate pairs of a diagonal state space, half its state size.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.optim import decay_groups
from papers.mamba.model import STEP_MAX, STEP_MIN

Mixer = Literal["h3", "s4d", "attention"]


def convolution(x: Tensor, kernel: Tensor, skip: Tensor) -> Tensor:
    """y_t = skip x_t + sum_(l <= t) kernel_l x_(t - l), as products with (l, l) matrices: sequences are short here."""
    length = x.shape[1]
    rows = F.pad(kernel.flip(1), (0, length)).unfold(1, length, 1)[:, :length].flip(1)  # (d, l, l): K_(t - s), s <= t
    rows = rows + torch.diag_embed(skip[:, None].expand(-1, length))
    return (rows @ x.permute(2, 1, 0).to(rows.dtype).contiguous()).permute(2, 1, 0).to(x.dtype)


class Diagonal(nn.Module):
    """K_l = 2 Re sum_n C_n B_n a_n^l, and a skip D.

    Args:
        rule: "bilinear", with A_n = -1/2 + i pi n and B = 1 to each channel (H3's second state space); or "zoh", with
            one A for all channels, its frequencies those of S4D-Inv, and B in C from the start (S4D).
    """

    def __init__(self, d: int, n: int, rule: Literal["bilinear", "zoh"]) -> None:
        super().__init__()
        self.rule, own = rule, d if rule == "bilinear" else 1
        self.log_step, self.D = nn.Parameter(torch.empty(d)), nn.Parameter(torch.empty(d))
        self.A_log, self.A_imag = nn.Parameter(torch.empty(own, n)), nn.Parameter(torch.empty(own, n))
        self.B = nn.Parameter(torch.empty(d, n, 2)) if rule == "bilinear" else None
        self.C = nn.Parameter(torch.empty(d, n, 2))

    def kernel(self, length: int) -> Tensor:
        """K (d, l)."""
        A, step = torch.complex(-self.A_log.exp(), self.A_imag), self.log_step.exp()[:, None]
        C, z = torch.view_as_complex(self.C), step * A
        if self.B is not None:
            C, rate = C * torch.view_as_complex(self.B) * step / (1 - z / 2), ((1 + z / 2) / (1 - z / 2)).log()
        else:
            C, rate = C * (z.exp() - 1) / A, z
        inner = max(1, math.isqrt(length))
        place = torch.arange(max(inner, -(-length // inner)), device=rate.device)

        def powers(k: Tensor) -> tuple[Tensor, Tensor]:
            size, angle = (rate.real[:, None] * k).exp(), rate.imag[:, None] * k
            return size * angle.cos(), size * angle.sin()  # (d, k, n)

        # a^l = a^(inner i) a^j, in real arithmetic: torch multiplies stacks of complex matrices one by one
        (u, v), (x, y) = powers(inner * place[:, None]), powers(place[:inner, None])
        c, s = C.real[:, None], C.imag[:, None]
        K = 2 * torch.cat([c * u - s * v, -(c * v + s * u)], -1) @ torch.cat([x, y], -1).mT
        return K.flatten(1)[:, :length]

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return convolution(x, self.kernel(x.shape[1]), self.D)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        self.log_step.uniform_(math.log(STEP_MIN), math.log(STEP_MAX), generator=generator)
        self.D.normal_(0.0, 1.0, generator=generator)
        self.C.normal_(0.0, 0.5**0.5, generator=generator)
        self.A_log.fill_(math.log(0.5))
        n = self.A_imag.shape[1]
        place = torch.arange(n)
        if self.B is not None:
            self.A_imag.copy_(math.pi * place)
            self.B.copy_(torch.tensor([1.0, 0.0]))
        else:  # B is scaled so that a step of ones leaves the random C a variance of 1
            self.A_imag.copy_(2 * n / math.pi * (2 * n / (1 + 2 * place) - 1))
            B = torch.view_as_complex(torch.empty(n, 2).normal_(0.0, 0.5**0.5, generator=generator))
            B = B / (2 * (B / torch.complex(-self.A_log[0].exp(), self.A_imag[0])).abs().square().sum()).sqrt()
            self.C.copy_(torch.view_as_real(torch.view_as_complex(self.C) * B.to(self.C.device)))


class Shift(nn.Module):
    """A state space whose state is the last `size` inputs: K_l = sum_m B_m C_(l + m), first B = e_1; a skip D."""

    def __init__(self, d: int, size: int) -> None:
        super().__init__()
        self.D = nn.Parameter(torch.empty(d))
        self.B, self.C = nn.Parameter(torch.empty(d, size)), nn.Parameter(torch.empty(d, size))

    def forward(self, x: Tensor) -> Tensor:
        length, size = x.shape[1], self.B.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            later = F.pad(self.C, (0, max(length, size))).unfold(1, size, 1)[:, :length]  # (d, l, size)
            return convolution(x, (later @ self.B[..., None])[..., 0], self.D)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        self.D.normal_(0.0, 1.0, generator=generator)
        self.B.zero_()[:, 0] = 1.0
        bound = self.C.shape[1] ** -0.5
        self.C.uniform_(-bound, bound, generator=generator)


class H3(nn.Module):
    """q times the diagonal state space's view of (the shifted k times v) (Figure 1 of the H3 paper, heads of 1)."""

    def __init__(self, d: int, state: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.shift, self.ssm = Shift(d, state), Diagonal(d, state // 2, "bilinear")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.in_proj(x).chunk(3, -1)
        return self.out_proj(q * self.ssm(self.shift(k) * v))


class S4D(nn.Module):
    def __init__(self, d: int, state: int) -> None:
        super().__init__()
        self.ssm, self.out_proj = Diagonal(d, state // 2, "zoh"), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(F.gelu(self.ssm(x)))


class Attention(nn.Module):
    """Causal, one head, dropout on its weights."""

    def __init__(self, d: int, dropout: float) -> None:
        super().__init__()
        self.in_proj, self.out_proj, self.dropout = nn.Linear(d, 3 * d), nn.Linear(d, d), dropout

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.in_proj(x).chunk(3, -1)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True))


class Block(nn.Module):
    """x + mixer(norm(x)), then x + MLP(norm(x)); LayerNorm, GELU's tanh form, four times as many hidden units."""

    def __init__(self, d: int, mixer: H3 | S4D | Attention) -> None:
        super().__init__()
        self.norm, self.norm2, self.mixer = nn.LayerNorm(d), nn.LayerNorm(d), mixer
        self.mlp1, self.mlp2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm(x))
        return x + self.mlp2(F.gelu(self.mlp1(self.norm2(x)), approximate="tanh"))


class SmallLM(nn.Module):
    """Tokens in, logits of the next token out; the head is the embedding.

    Args:
        places: rows of attention's table of positions; the state spaces have none.
        dropout: of the embedded tokens, and of attention's weights.
    """

    def __init__(
        self, vocabulary: int, d: int, layers: int, mixer: Mixer, state: int, places: int, dropout: float
    ) -> None:
        super().__init__()

        def made() -> H3 | S4D | Attention:
            if mixer == "attention":
                return Attention(d, dropout)
            return H3(d, state) if mixer == "h3" else S4D(d, state)

        self.dropout = dropout
        self.embedding = nn.Embedding(vocabulary, d)
        self.positions = nn.Embedding(places, d) if mixer == "attention" else None
        self.layers = nn.ModuleList(Block(d, made()) for _ in range(layers))
        self.norm_f = nn.LayerNorm(d)

    def forward(self, tokens: Tensor, last: int = 0) -> Tensor:
        """Logits (b, l, vocabulary) of (b, l) tokens, or of the `last` positions alone."""
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[: tokens.shape[1]]
        x = F.dropout(x, self.dropout, self.training)
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm_f(x[:, -last:]), self.embedding.weight)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Matrices N(0, 0.02), biases 0; the MLP's and attention's output matrices / sqrt(2 layers)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, 0.02, generator=generator)
                if isinstance(module, nn.Linear):
                    module.bias.zero_()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, Diagonal | Shift):
                module.initialise(generator)
        for layer in self.layers:
            assert isinstance(layer, Block)
            for out in [layer.mlp2] + ([layer.mixer.out_proj] if isinstance(layer.mixer, Attention) else []):
                out.weight.div_(math.sqrt(2 * len(self.layers)))

    def decay_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Everything decays, biases too, but Delta, A and B of the state spaces."""
        inside = ("log_step", "A_log", "A_imag", "B")
        return decay_groups(self, weight_decay, lambda name, p: name.rpartition(".")[2] not in inside)
