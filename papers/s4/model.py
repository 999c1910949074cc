"""Efficiently Modeling Long Sequences with Structured State Spaces (Gu, Goel, Re 2022): the deep net, and its rivals.

Glossary: b batch, h channels (d_model), l length, c classes. Inside the net sequences are (b, h, l): the FFT and the
convolution of width one want time last.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.batchnorm import BatchNorm
from common.errors import UserError
from common.initial import torch_default
from papers.s4.convolution import convolve, convolve_both_ways
from papers.s4.kernel import DenseKernel, DiagonalKernel, Init, S4Kernel

Kind = Literal["s4", "s4d", "dense"]


class LayerNorm(nn.LayerNorm):
    """Over the channels of (b, h, l)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2).contiguous()


class Dropout(nn.Module):
    """Whole channels of a sequence (tied over time), or single numbers."""

    def __init__(self, p: float, tied: bool) -> None:
        super().__init__()
        self.p, self.tied = p, tied

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0 or not self.training:
            return x
        return F.dropout1d(x, self.p) if self.tied else F.dropout(x, self.p)


class Layer(nn.Module):
    """The S4 layer (Section 3.4): SSM + D u, GELU, dropout, 1x1 convolution, GLU. (b, h, l) -> (b, h, l).

    Args:
        state: n. length: the longest sequence (for "s4"). copies: of (A, B); 0: one a channel. both_ways: a second
            kernel runs from the end. glu: gate the output; else it is linear. early_dropout: drop before GELU too.
        learn_b: train B (of S4D).
    """

    def __init__(
        self, kind: Kind, h: int, state: int, length: int, init: Init, copies: int, softplus: bool, both_ways: bool,
        glu: bool, dropout: float, tied: bool, early_dropout: bool, learn_b: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        channels = 2 if both_ways else 1
        self.kernel: S4Kernel | DiagonalKernel | DenseKernel
        if kind == "s4":
            self.kernel = S4Kernel(h, state, length, channels, copies, softplus, init)
        elif kind == "s4d":
            self.kernel = DiagonalKernel(h, state, channels, copies, softplus, init, learn_b)
        else:
            self.kernel = DenseKernel(h, state, channels, copies, softplus, init)
        self.d = nn.Parameter(torch.empty(h))
        self.early = Dropout(dropout if early_dropout else 0.0, tied)
        self.late = Dropout(dropout, tied)
        self.output = nn.Conv1d(h, 2 * h if glu else h, 1)
        self.glu, self.both_ways = glu, both_ways

    def initialise(self, generator: torch.Generator) -> None:
        self.kernel.initialise(generator)
        with torch.no_grad():
            self.d.copy_(torch.randn(self.d.shape, generator=generator))
        torch_default(self.output, generator)

    def forward(self, u: Tensor) -> Tensor:
        with torch.autocast(u.device.type, enabled=False):  # in bf16 the kernel or the FFT would spoil training
            u = u.float() if u.dtype in (torch.bfloat16, torch.float16) else u
            k = self.kernel(u.shape[-1])
            k0 = torch.cat([k[0, :, :1] + self.d[:, None], k[0, :, 1:]], -1)  # D u is a kernel of one place
            y = convolve_both_ways(u, k0, k[1]) if self.both_ways else convolve(u, k0)
        return self.mixed(y)

    def mixed(self, y: Tensor) -> Tensor:
        y, bias = self.late(F.gelu(self.early(y))), self.output.bias
        assert bias is not None
        y = torch.baddbmm(bias[:, None], self.output.weight[..., 0].expand(len(y), -1, -1), y)  # conv1d is slower
        return F.glu(y, 1) if self.glu else y

    def step(self, u: Tensor, state: Tensor, recurrence: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """One step of a causal layer: u (b, h) -> y (b, h), and the state after it."""
        y, state = self.kernel.step(u, state, recurrence)
        return self.mixed((y[..., 0] + self.d * u)[..., None])[..., 0], state


class Block(nn.Module):
    """x + dropout(layer(x)), normalised before or after."""

    def __init__(self, layer: Layer, norm: nn.Module, pre_norm: bool, dropout: float, tied: bool) -> None:
        super().__init__()
        self.layer, self.norm, self.pre_norm, self.dropout = layer, norm, pre_norm, Dropout(dropout, tied)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        u = self.norm(x) if self.pre_norm else x
        x = x + self.dropout(self.layer(u if mask is None else u * mask))
        return x if self.pre_norm else self.norm(x)

    def step(self, x: Tensor, state: Tensor, recurrence: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        u = self.norm(x[..., None])[..., 0] if self.pre_norm else x
        y, state = self.layer.step(u, state, recurrence)
        x = x + y
        return x if self.pre_norm else self.norm(x[..., None])[..., 0], state


class S4Net(nn.Module):
    """Encoder, blocks of S4, S4D or dense SSM layers, mean over time, linear classifier.

    Args:
        inputs: numbers at each step; tokens: or, if not 0, size of a vocabulary. More: `Layer`.
        last: classify by the last place instead of the mean.
    """

    def __init__(
        self, *, kind: Kind, inputs: int, tokens: int, classes: int, depth: int, h: int, state: int, length: int,
        init: Init, copies: int, softplus: bool, both_ways: bool, glu: bool, norm: Literal["layer", "batch"],
        pre_norm: bool, dropout: float, tied: bool, early_dropout: bool, learn_b: bool = True, last: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.last = last
        self.encoder: nn.Embedding | nn.Linear = nn.Embedding(tokens, h) if tokens else nn.Linear(inputs, h)

        def normalise() -> nn.Module:
            return LayerNorm(h) if norm == "layer" else BatchNorm(h)

        def layer() -> Layer:
            return Layer(
                kind, h, state, length, init, copies, softplus, both_ways, glu, dropout, tied, early_dropout,
                learn_b,
            )  # fmt: skip

        self.blocks = nn.ModuleList(Block(layer(), normalise(), pre_norm, dropout, tied) for _ in range(depth))
        self.norm = normalise() if pre_norm else nn.Identity()
        self.head = nn.Linear(h, classes)

    def layers(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]

    def initialise(self, generator: torch.Generator) -> None:
        """Draw every parameter (Section 3.4, App. B; else torch's defaults, as the official code)."""
        with torch.no_grad():
            if isinstance(self.encoder, nn.Embedding):
                self.encoder.weight.copy_(torch.randn(self.encoder.weight.shape, generator=generator))
            else:
                torch_default(self.encoder, generator)
        for block in self.layers():
            block.layer.initialise(generator)
        torch_default(self.head, generator)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(b, l, inputs) numbers or (b, l) tokens -> (b, c); what lies beyond `lengths` (b,) enters no SSM."""
        # (b, h, l), copied: through a transposed view torch normalises a batch seven times slower
        x = self.encoder(x).transpose(1, 2).contiguous()
        mask = None
        if lengths is not None:
            mask = (torch.arange(x.shape[-1], device=x.device) < lengths[:, None]).to(x.dtype)[:, None]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return self.head(x[..., -1] if self.last else x.mean(-1))

    def steps(self, x: Tensor) -> Iterator[Tensor]:
        """The net as a recurrence (layer normalisation, causal, evaluation): logits (b, c) after every step."""
        blocks = self.layers()
        if any(block.layer.both_ways for block in blocks):
            raise UserError("a net that runs both ways has no step")
        x, total = self.encoder(x), torch.zeros(())
        recurrences = [block.layer.kernel.recurrence() for block in blocks]
        states = [first.new_zeros(len(x), *first.shape[:2]) for first, *_ in recurrences]
        for t in range(x.shape[1]):
            y = x[:, t]
            for i, block in enumerate(blocks):
                y, states[i] = block.step(y, states[i], recurrences[i])
            y = self.norm(y[..., None])[..., 0]
            total = total + y
            yield self.head(y if self.last else total / (t + 1))


def optimiser_groups(
    model: nn.Module, lr: float, weight_decay: float, kernel_lr: float, dt_lr: float
) -> list[dict[str, Any]]:
    """A, B, P at `kernel_lr` and Delta at `dt_lr`, neither with decay; all others at `lr` with decay.

    A kernel_lr or dt_lr of 0 keeps these parameters as they were drawn.
    """
    slow, dt, others = [], [], []
    kernels = (S4Kernel, DiagonalKernel, DenseKernel)
    owners = {id(p): (m, name) for m in model.modules() for name, p in m.named_parameters(recurse=False)}
    for parameter in model.parameters():
        module, name = owners[id(parameter)]
        if isinstance(module, kernels) and name == "dt_parameter":
            dt.append(parameter.requires_grad_(dt_lr > 0))
        elif isinstance(module, kernels) and name in module.slow:
            slow.append(parameter.requires_grad_(kernel_lr > 0))
        else:
            others.append(parameter)
    groups = [(others, lr, weight_decay), (slow, kernel_lr, 0.0), (dt, dt_lr, 0.0)]
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for parameters, rate, decay in groups
        if rate and parameters
    ]


# ---- what Tables 1, 3 and 4 compare with


class Attention(nn.Module):
    """Self-attention over (b, l, h). "naive" builds the (l, l) matrix, as in 2021; "fused" is torch's kernel."""

    def __init__(self, h: int, heads: int, fused: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.fused, self.dropout = heads, fused, dropout
        self.qkv, self.out = nn.Linear(h, 3 * h, bias=False), nn.Linear(h, h, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, length, h = x.shape
        q, k, v = self.qkv(x).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (b, heads, l, d)
        drop = self.dropout if self.training else 0.0
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)
        else:
            score = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            score = score if mask is None else score.masked_fill(~mask, -torch.inf)
            y = F.dropout(score.softmax(-1), drop) @ v
        return self.out(y.transpose(1, 2).reshape(b, length, h))


class Transformer(nn.Module):
    """Long Range Arena's vanilla encoder: sinusoidal positions, pre-norm blocks, class token, one hidden layer."""

    positions: Tensor

    def __init__(
        self, tokens: int, classes: int, depth: int, h: int, heads: int, mlp: int, length: int, dropout: float,
        fused: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.token, self.embedding = nn.Parameter(torch.zeros(1, 1, h)), nn.Embedding(tokens, h)
        place = torch.arange(length + 1)[:, None] * torch.exp(torch.arange(0, h, 2) * (-math.log(10_000.0) / h))
        table = torch.stack([place.sin(), place.cos()], -1).flatten(1)
        self.register_buffer("positions", table, persistent=False)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                "norm1": nn.LayerNorm(h), "attention": Attention(h, heads, fused, dropout), "norm2": nn.LayerNorm(h),
                "mlp": nn.Sequential(nn.Linear(h, mlp), nn.GELU("tanh"), nn.Dropout(dropout), nn.Linear(mlp, h)),
            })
            for _ in range(depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(h)
        self.head = nn.Sequential(nn.Linear(h, mlp), nn.ReLU(), nn.Linear(mlp, classes))

    def initialise(self, generator: torch.Generator) -> None:
        """Xavier uniform (flax's LeCun normal in the head), biases near 0, embeddings N(0, 1)."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith("embedding"):
                    parameter.normal_(generator=generator)
                elif parameter.ndim == 2:
                    out, into = parameter.shape
                    out = out // 3 if "qkv" in name else out  # q, k and v each on their own
                    spread = 1 / math.sqrt(into) if name.startswith("head") else math.sqrt(2 / (into + out))
                    parameter.uniform_(-math.sqrt(3) * spread, math.sqrt(3) * spread, generator=generator)
                elif name.endswith("bias"):
                    parameter.normal_(0, 1e-6, generator=generator)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Tokens (b, l) -> (b, c); places beyond `lengths` are not attended to."""
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embedding(x)], 1)
        x = self.drop(x + self.positions[: x.shape[1]])
        mask = None
        if lengths is not None:
            mask = (torch.arange(x.shape[1], device=x.device) <= lengths[:, None])[:, None, None]
        for block in self.blocks:
            x = x + self.drop(block["attention"](block["norm1"](x), mask))  # type: ignore[index]
            x = x + self.drop(block["mlp"](block["norm2"](x)))  # type: ignore[index]
        return self.head(self.norm(x[:, 0]))
