"""Mamba, its language model, and the blocks and inner layers it is compared with.

Paper: A. Gu, T. Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", COLM 2024, arXiv 2312.00752.
What the text leaves out follows the official code, github.com/state-spaces/mamba at e9594ce ("code" below).

Glossary (code: paper, shape)
    x, y            input and output of a block, (b, l, d); inside, d is the inner width E D
    delta           step size Delta (Algorithm 2), (b, l, d)
    A, B, C, D      parameters of the state space; A (d, n), B and C (b, l, n), skip D (d,)
    z               gate (Figure 3), (b, l, d)
    h               state, (b, d, n)
    n               state dimension N; r: rank of Delta's projection (Section 3.6)

A block's state is what it carries from token to token: for Mamba the last `kernel - 1` inputs of the convolution and h,
for attention all keys and values.
"""

import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.optim import decay_groups
from papers.mamba.scan import selective_scan

Layer = Literal["s6", "s4-complex", "s4-real", "hyena"]
KERNEL = 4  # width of the causal convolution
STEP_MIN, STEP_MAX, STEP_FLOOR = 1e-3, 1e-1, 1e-4  # Delta at the start, log-uniform (Section 3.6; code)


class CausalConv(nn.Conv1d):
    """Depthwise convolution that looks back, y_t = b + sum_k w_k x_{t - 3 + k}; channels last."""

    def __init__(self, d: int) -> None:
        super().__init__(d, d, KERNEL, groups=d)

    def shifted(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """(y (b, l, d), what the next piece must be given); `before` is (b, 3, d)."""
        length, w = x.shape[1], self.weight[:, 0]
        x = F.pad(x, (0, 0, KERNEL - 1, 0)) if before is None else torch.cat([before.to(x.dtype), x], 1)
        assert self.bias is not None
        y = torch.addcmul(self.bias, x[:, :length], w[:, 0])
        for k in range(1, KERNEL):
            y = torch.addcmul(y, x[:, k : k + length], w[:, k])
        return y, x[:, length:]


class S6(nn.Module):
    """The selective layer (Algorithm 2).

    Args:
        rank: r; 0 makes Delta static (Table 9, first row).
        selective: which of "delta", "b", "c" depend on the input (Table 7); the others are parameters, B and C then
            (d, n), a row to each channel as in S4.
        real: A_n = -(n + 1) at the start (S4D-Real); else all -1/2 (Table 8).
    """

    def __init__(self, d: int, n: int, rank: int, selective: tuple[str, ...], init: str = "-(n+1)") -> None:
        super().__init__()
        self.d, self.n, self.init = d, n, init
        self.rank = rank if "delta" in selective else 0
        self.parts = (self.rank, n * ("b" in selective), n * ("c" in selective))
        self.x_proj = nn.Linear(d, sum(self.parts), bias=False) if sum(self.parts) else None
        self.dt_proj = nn.Linear(self.rank, d) if self.rank else None
        self.dt_bias = None if self.rank else nn.Parameter(torch.empty(d))
        self.B = None if "b" in selective else nn.Parameter(torch.empty(d, n))
        self.C = None if "c" in selective else nn.Parameter(torch.empty(d, n))
        self.A_log, self.D = nn.Parameter(torch.empty(d, n)), nn.Parameter(torch.empty(d))

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(y (b, l, d), last state)."""
        b, l, _ = x.shape  # noqa: E741
        low, B, C = (x.new_empty(b, l, 0),) * 3 if self.x_proj is None else self.x_proj(x).split(self.parts, -1)
        with torch.autocast(x.device.type, enabled=False):  # A, Delta and the state stay in float32
            if self.dt_proj is not None:
                exact = self.dt_proj.weight.dtype
                delta = F.softplus(F.linear(low.to(exact), self.dt_proj.weight, self.dt_proj.bias))
            else:
                assert self.dt_bias is not None
                delta = F.softplus(self.dt_bias).expand(b, l, -1)
            A = -torch.exp(self.A_log)
            if self.B is None and self.C is None:
                return selective_scan(x, delta, A, B, C, self.D, h)
            # A constant B or C differs from channel to channel. Both commute with the diagonal A, so each of the n
            # states becomes a channel of its own with a state of one.
            one = x.new_ones(b, l, 1)
            drive = x.unsqueeze(-1) * (one if self.B is not None else B).unsqueeze(-2)  # (b, l, d, n or 1)
            wide = [v.expand(b, l, self.d, self.n).flatten(2) for v in (drive, delta.unsqueeze(-1))]
            start = None if h is None else h.flatten(1).unsqueeze(-1)
            y, last = selective_scan(wide[0], wide[1], A.view(-1, 1), one, one, A.new_zeros(A.numel()), start)
            y = y.unflatten(-1, (self.d, self.n))
            for constant in (self.B, self.C):
                y = y if constant is None else y * constant
            y = y.sum(-1) if self.C is not None else (y @ C.unsqueeze(-1)).squeeze(-1)
            return y + self.D * x, last.view(b, self.d, self.n)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        step = torch.empty_like(self.D).uniform_(math.log(STEP_MIN), math.log(STEP_MAX), generator=generator).exp()
        step.clamp_(min=STEP_FLOOR)
        bias = self.dt_proj.bias if self.dt_proj is not None else self.dt_bias
        assert bias is not None
        bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus's inverse
        if self.dt_proj is not None:
            self.dt_proj.weight.uniform_(-(self.rank**-0.5), self.rank**-0.5, generator=generator)
        rates = {"-(n+1)": torch.arange(1.0, self.n + 1), "-1/2": torch.full((self.n,), 0.5)}
        if self.init == "random":  # exp(N(0, 1)), Table 8
            self.A_log.normal_(0.0, 1.0, generator=generator)
        else:
            self.A_log.copy_(rates[self.init].log().expand(self.d, -1))
        self.D.fill_(1.0)
        for constant in (self.B, self.C):
            if constant is not None:
                constant.normal_(0.0, 1.0, generator=generator)


def long_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """Causal convolution by FFT: x (b, l, d) with kernel (d, l), in float32."""
    length = x.shape[1]
    size = 2 * length
    spectrum = torch.fft.rfft(x.float().mT, n=size) * torch.fft.rfft(kernel.float(), n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :length].mT


class S4(nn.Module):
    """S4D: diagonal, time-invariant; A_n = -1/2 + i pi n (S4D-Lin) or -(n + 1) (S4D-Real); B = 1, zero-order hold."""

    def __init__(self, d: int, n: int, complex_: bool) -> None:
        super().__init__()
        self.complex, n = complex_, n // 2 if complex_ else n
        self.log_step, self.D = nn.Parameter(torch.empty(d)), nn.Parameter(torch.empty(d))
        self.A_log = nn.Parameter(torch.empty(d, n))
        self.A_imag = nn.Parameter(torch.empty(d, n)) if complex_ else None
        self.C = nn.Parameter(torch.empty(d, n, 2) if complex_ else torch.empty(d, n))

    def kernel(self, length: int) -> Tensor:
        """K (d, l): C (exp(Delta A) - 1) / A exp(l Delta A), its powers as blocks times places in a block."""
        A, C = -torch.exp(self.A_log), 1.0 * self.C
        if self.A_imag is not None:
            A, C = torch.complex(A, self.A_imag), 2 * torch.view_as_complex(C)
        rate = A * self.log_step.exp()[:, None]  # (d, n)
        C = C * (torch.exp(rate) - 1) / A
        inner = max(1, math.isqrt(length))
        outer = -(-length // inner)
        place = torch.arange(inner, device=rate.device)
        block = inner * torch.arange(outer, device=rate.device)
        K = (C[:, None] * torch.exp(rate[:, None] * block[:, None])) @ torch.exp(rate[:, :, None] * place)
        return (K.real if self.complex else K).flatten(1)[:, :length]

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, None]:
        with torch.autocast(x.device.type, enabled=False):
            return (long_convolution(x, self.kernel(x.shape[1])) + self.D * x).to(x.dtype), None

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        self.log_step.uniform_(math.log(STEP_MIN), math.log(STEP_MAX), generator=generator)
        place = torch.arange(self.A_log.shape[1])
        self.A_log.copy_((torch.full_like(place, 0.5, dtype=torch.float) if self.complex else place + 1.0).log())
        if self.A_imag is not None:
            self.A_imag.copy_(math.pi * place)
        self.C.normal_(0.0, 0.5**0.5 if self.complex else 1.0, generator=generator)
        self.D.fill_(1.0)


class Hyena(nn.Module):
    """A long convolution whose kernel is a small network of the position (Poli et al. 2023), with its decay window.

    Args:
        longest: length the positions are scaled by.
        trained: rows of the position table that are parameters. Rows beyond the training length never see a
            gradient, so there the formula they start from gives the same network without the memory.
    """

    BANDS, WIDTH = 16, 64  # the table has 2 * 16 + 1 columns

    def __init__(self, d: int, longest: int, trained: int) -> None:
        super().__init__()
        self.longest, self.D = longest, nn.Parameter(torch.empty(d))
        self.positions = nn.Parameter(torch.empty(trained, 2 * self.BANDS + 1))
        w, columns = self.WIDTH, 2 * self.BANDS + 1
        self.hidden = nn.ModuleList([nn.Linear(columns, w), nn.Linear(w, w), nn.Linear(w, w)])
        self.frequency, self.out = nn.Parameter(torch.empty(w)), nn.Linear(w, d, bias=False)

    def table(self, first: int, end: int) -> Tensor:
        """Rows of the position table as they start: place, cosines and sines, (l, 33)."""
        place = torch.arange(first, end, device=self.D.device, dtype=torch.float32)[:, None]
        bands = torch.linspace(1e-4, self.BANDS - 1, self.BANDS, device=self.D.device)
        angle = bands * (2 * math.pi * place / self.longest)
        return torch.cat([place / max(1, self.longest - 1), angle.cos(), -angle.sin()], 1)

    def kernel(self, length: int) -> Tensor:
        if length > self.longest:
            raise UserError(f"a sequence of {length} is longer than the {self.longest} places Hyena was built for")
        known = self.positions[:length]
        rows = known if length <= len(known) else torch.cat([known, self.table(len(known), length)])
        z = rows
        for layer in self.hidden:
            z = torch.sin(self.frequency * layer(z))
        slow, fast = (math.log(1e-2) / share for share in (1.5, 0.3))
        decay = torch.linspace(slow, fast, self.out.out_features, device=z.device).abs()
        place = torch.arange(length, device=z.device)[:, None] / max(1, self.longest - 1)
        return (self.out(z) * torch.exp(-place * decay)).mT

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, None]:
        with torch.autocast(x.device.type, enabled=False):
            return (long_convolution(x, self.kernel(x.shape[1])) + self.D * x).to(x.dtype), None

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        self.positions.copy_(self.table(0, len(self.positions)).to(self.positions.device))
        self.frequency.fill_(1.0)
        self.D.normal_(0.0, 1.0, generator=generator)


def inner_layer(
    kind: Layer, d: int, n: int, rank: int, selective: tuple[str, ...], init: str, longest: int, trained: int
) -> nn.Module:
    if kind == "s6":
        return S6(d, n, rank, selective, init)
    return Hyena(d, longest, trained) if kind == "hyena" else S4(d, n, kind == "s4-complex")


class Gated(nn.Module):
    """Figure 3: convolution and inner layer on one branch, SiLU of the other as its gate; without the gate, plain."""

    def __init__(self, d: int, expand: int, ssm: nn.Module, gate: bool) -> None:
        super().__init__()
        self.inner, self.gate = expand * d, gate
        self.in_proj = nn.Linear(d, self.inner * (2 if gate else 1), bias=False)
        self.conv1d, self.ssm = CausalConv(self.inner), ssm
        self.out_proj = nn.Linear(self.inner, d, bias=False)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        before, h = state or (None, None)
        x, *z = self.in_proj(x).split(self.inner, -1)
        x, before = self.conv1d.shifted(x, before)
        y, h = self.ssm(F.silu(x), h)
        return self.out_proj(y * F.silu(z[0]) if z else y), (before, h)


class H3(nn.Module):
    """Fu et al. 2023, one channel to a head: q times the inner layer's view of (shifted k times v)."""

    def __init__(self, d: int, ssm: nn.Module) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.conv1d, self.ssm = CausalConv(d), ssm

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        before, h = state or (None, None)
        q, k, v = self.in_proj(x).chunk(3, -1)
        k, before = self.conv1d.shifted(k, before)
        y, h = self.ssm(k * v, h)
        return self.out_proj(q * y), (before, h)


class Attention(nn.Module):
    """Causal multi-head attention; `positions` "rope" turns queries and keys, "xpos" lets them fade with distance."""

    def __init__(self, d: int, heads: int, positions: str) -> None:
        super().__init__()
        if d % (2 * heads):
            raise UserError(f"{heads} heads of an even size do not divide a width of {d}")
        self.heads, self.positions = heads, positions
        self.in_proj, self.out_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def _turned(self, x: Tensor, first: int, power: float) -> Tensor:
        half = x.shape[-1] // 2
        place = torch.arange(first, first + x.shape[2], device=x.device, dtype=torch.float32)[:, None]
        share = torch.arange(half, device=x.device) / half
        angle = place * 10_000.0**-share
        size = ((share + 0.4) / 1.4) ** (power * place / 512) if self.positions == "xpos" else 1.0
        cos, sin = (size * angle.cos()).to(x.dtype), (size * angle.sin()).to(x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        b, l, d = x.shape  # noqa: E741
        q, k, v = self.in_proj(x).view(b, l, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        first = 0 if state is None else state[0].shape[2]
        if self.positions in ("rope", "xpos"):
            q, k = self._turned(q, first, 1.0), self._turned(k, first, -1.0)
        mask = None
        if state is not None:
            k, v = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
            mask = torch.ones(l, first + l, dtype=torch.bool, device=x.device).tril(first) if l > 1 else None
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=state is None)
        return self.out_proj(y.transpose(1, 2).reshape(b, l, d)), (k, v)


class Residual(nn.Module):
    """x + mixer(norm(x)), and in a Transformer x + MLP(norm(x)) after it."""

    def __init__(self, d: int, mixer: Gated | H3 | Attention, norm: Any, mlp: int) -> None:
        super().__init__()
        self.norm, self.mixer = norm(d, eps=1e-5), mixer
        self.norm2 = norm(d, eps=1e-5) if mlp else None
        self.mlp1 = nn.Linear(d, mlp) if mlp else None
        self.mlp2 = nn.Linear(mlp, d) if mlp else None

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.mixer(self.norm(x), state)
        x = x + y
        if self.norm2 is not None and self.mlp1 is not None and self.mlp2 is not None:
            x = x + self.mlp2(F.gelu(self.mlp1(self.norm2(x))))
        return x, state


class Model(nn.Module):
    """Tokens in, logits of the next token out.

    Args:
        vocabulary: number of tokens, filled up to a multiple of `pad_to`.
        block: "mamba", "plain" (without the gate), "h3", "attention", or "transformer" (attention and MLP).
        layer: inner layer of the first three.
        rank: r of S6; 0: Delta is static.
        longest, trained: for Hyena.
        tied: the head is the embedding.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        d: int,
        layers: int,
        block: str = "mamba",
        layer: Layer = "s6",
        n: int = 16,
        expand: int = 2,
        rank: int = 4,
        selective: tuple[str, ...] = ("delta", "b", "c"),
        init: str = "-(n+1)",
        heads: int = 8,
        positions: str = "none",
        layer_norm: bool = False,
        tied: bool = True,
        pad_to: int = 8,
        longest: int = 0,
        trained: int = 0,
    ) -> None:
        super().__init__()
        self.d, self.positions = d, positions
        self.in_pieces = block in ("attention", "transformer") or layer == "s6"  # whether it can carry a state
        inner = d if block == "h3" else expand * d
        padded = -(-vocabulary // pad_to) * pad_to
        norm: Any = nn.LayerNorm if layer_norm else nn.RMSNorm

        def mixer() -> Gated | H3 | Attention:
            if block in ("attention", "transformer"):
                return Attention(d, heads, positions)
            ssm = inner_layer(layer, inner, n, rank, selective, init, longest, trained)
            return H3(d, ssm) if block == "h3" else Gated(d, expand, ssm, block == "mamba")

        self.embedding = nn.Embedding(padded, d)
        self.layers = nn.ModuleList(
            Residual(d, mixer(), norm, 4 * d if block == "transformer" else 0) for _ in range(layers)
        )
        self.norm_f = norm(d, eps=1e-5)
        self.head = nn.Linear(d, padded, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    @property
    def blocks(self) -> list[Residual]:
        return cast(list[Residual], list(self.layers))

    def _embedded(self, tokens: Tensor, first: int) -> Tensor:
        x = self.embedding(tokens)
        if self.positions == "absolute":  # sinusoids: they reach any length and have no parameters
            place = torch.arange(first, first + tokens.shape[1], device=x.device, dtype=torch.float32)[:, None]
            rate = 10_000.0 ** (-torch.arange(0, self.d, 2, device=x.device) / self.d)
            x = x + torch.stack([(place * rate).sin(), (place * rate).cos()], -1).flatten(1).to(x.dtype)
        return x

    def forward(self, tokens: Tensor, last: int = 0) -> Tensor:
        """Logits (b, l, vocabulary) of (b, l) tokens, or of the `last` positions alone."""
        x = self._embedded(tokens, 0)
        for layer in self.blocks:
            x, _ = layer(x)
        return self.head(self.norm_f(x[:, -last:]))

    def read(self, tokens: Tensor, states: list[Any] | None = None, last: int = 1) -> tuple[Tensor, list[Any]]:
        """Go on from `states`: logits (b, last, vocabulary), and the states after these tokens.

        One token at a time this is generation in constant memory (attention excepted); long sequences are read in
        pieces. Gradients do not go from piece to piece.

        Raises:
            UserError: the inner layer is a convolution over the whole sequence.
        """
        if not self.in_pieces:
            raise UserError("a convolution over the whole sequence carries no state: only s6 and attention do")
        before = [None] * len(self.layers) if states is None else states
        past = before[0][0].shape[2] if states and self.positions == "absolute" else 0  # type: ignore[index]
        x, after = self._embedded(tokens, past), []
        for layer, state in zip(self.blocks, before, strict=True):
            x, state = layer(x, state)
            after.append(state)
        return self.head(self.norm_f(x[:, -last:])), after

    @torch.no_grad()
    def generate(self, tokens: Tensor, count: int) -> Tensor:
        """(b, count) most likely tokens after (b, l) given ones."""
        logits, states = self.read(tokens)
        said = [logits[:, -1].argmax(-1, keepdim=True)]
        for _ in range(count - 1):
            logits, states = self.read(said[-1], states)
            said.append(logits[:, -1].argmax(-1, keepdim=True))
        return torch.cat(said, 1)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """The code's `_init_weights`: torch's uniform matrices, zero biases, output matrices / sqrt(layers)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                bound = module.weight[0].numel() ** -0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    if isinstance(module, nn.Conv1d):
                        module.bias.uniform_(-bound, bound, generator=generator)
                    else:
                        module.bias.zero_()
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.weight.fill_(1.0)
                if isinstance(module, nn.LayerNorm):
                    module.bias.zero_()
        for layer in self.blocks:
            out = [layer.mixer.out_proj] + ([layer.mlp2] if layer.mlp2 is not None else [])
            for matrix in out:
                matrix.weight.div_(math.sqrt(len(self.layers) * len(out)))
        for module in self.modules():  # after the matrices: these have their own rules
            if isinstance(module, S6 | S4 | Hyena):
                module.initialise(generator)
        self.embedding.weight.normal_(0.0, 0.02, generator=generator)
        if self.head.weight is not self.embedding.weight:
            bound = self.d**-0.5
            self.head.weight.uniform_(-bound, bound, generator=generator)

    def decay_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Two parameter groups: matrices and the embedding decay; gains, biases, and all of the state space do not."""
        inside = ("A_log", "A_imag", "D", "B", "C", "log_step", "positions", "frequency")
        return decay_groups(self, weight_decay, lambda name, p: p.ndim > 1 and name.rpartition(".")[2] not in inside)
