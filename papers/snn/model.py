"""Spiking networks trained by surrogate gradients, many at once.

Papers: F. Zenke, T. P. Vogels, "The Remarkable Robustness of Surrogate Gradient Learning for Instilling Complex
Function in Spiking Neural Networks", Neural Computation 33(4), 2021. E. O. Neftci, H. Mostafa, F. Zenke, "Surrogate
Gradient Learning in Spiking Neural Networks", IEEE Signal Processing Magazine 36, 2019, arXiv 1901.09948: the
discrete-time neuron and its gradient. Y. Wu et al., "STBP", Front. Neurosci. 12:331, 2018, arXiv 1706.02609.

One neuron covers them and the libraries, which differ in what the reset multiplies and in the order of updates:
    J[t] = decay_syn J[t-1] + x[t-lag] + S[t-lag_recurrent] V            synaptic current
    R[t] = S[t-lag_reset]                                                the spike that resets
    U[t] = (decay U[t-1] + gain J[t]) (1 - R[t])                         reset "whole": Z&V, spytorch, stork
         = decay U[t-1] (1 - R[t]) + gain J[t]                           "before": STBP, SpikingJelly
         = decay U[t-1] + gain J[t] - threshold R[t]                     "subtract": snnTorch's Leaky and Synaptic
         = decay U[t-1] + gain J[t]                                      "none": a readout
    S[t] = step(U[t] - threshold)

Every tensor has a leading axis for the nets of a stack (seeds, and cells of a grid), which share nothing.

Glossary (code: paper, shape)
    s, b, t, n, u   nets of the stack, samples, time steps, inputs and neurons of a layer
    x               input current, (s, b, t, u); (s, b, 1, u) where it is the same at all steps
    W, V            feedforward and recurrent weights, (s, n, u), (s, u, u)
    S, U            spikes and membrane potential, (s, b, t, u)
    P               U before a "whole" reset, which is what the gradient of a reset needs; else U
    count           spikes of a neuron in a sample, (s, b, u)
    beta            steepness of the surrogate, one number per net
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError
from common.random import generator

Reset = Literal["whole", "before", "subtract", "none"]
Surrogate = Literal["superspike", "asymptotic", "sigmoid", "esser", "rectangle", "arctan", "spike", "zero"]
Loss = Literal["max", "sum", "rate"]
RESETS: tuple[Reset, ...] = ("whole", "before", "subtract", "none")
SURROGATES: tuple[Surrogate, ...] = (
    "superspike", "asymptotic", "sigmoid", "esser", "rectangle", "arctan", "spike", "zero",
)  # fmt: skip


class Neuron(NamedTuple):
    """A layer's neurons, in the letters of the module's equations."""

    decay: float
    decay_syn: float = 0.0
    gain: float = 1.0
    threshold: float = 1.0
    start: float = 0.0  # U[-1]
    reset: Reset = "whole"
    lag: int = 0
    lag_recurrent: int = 1
    lag_reset: int = 1
    reset_gradient: bool = False  # whether R[t] is differentiated
    recurrent_gradient: bool = True  # whether S is, on its way through V
    surrogate: Surrogate = "superspike"


class Times(NamedTuple):
    """Input in which every neuron spikes once at most: when[s, b, n] int32, silent from `steps` on."""

    when: Tensor

    def spikes(self, steps: int, dtype: torch.dtype) -> Tensor:
        """(s, b, t, n) zeros and ones."""
        at = torch.arange(steps, device=self.when.device)
        return (self.when[:, :, None] == at[:, None]).to(dtype)


def surrogate_derivative(shape: Surrogate, x: Tensor, spikes: Tensor, beta: Tensor) -> Tensor:
    """What stands for the derivative of the step at x = U - threshold (Zenke and Vogels, Section 2 and Figure 3a)."""
    z = beta * x.abs()
    match shape:
        case "superspike":
            return 1 / ((z + 1) * (z + 1))
        case "asymptotic":  # Figure 5a: its integral over x does not vanish as beta grows
            return beta / ((z + 1) * (z + 1))
        case "sigmoid":
            e = torch.exp(-z)
            return e / ((1 + e) * (1 + e))
        case "esser":
            return (1 - z).clamp_min(0)
        case "rectangle":  # STBP's h1, half-width 1 / beta
            return (z < 1).to(x.dtype)
        case "arctan":
            return 1 / (1 + z * z)
        case "spike":  # snnTorch's "spike operator"
            return spikes
        case "zero":  # the true derivative
            return torch.zeros_like(x)


class Spike(torch.autograd.Function):
    """step(U - threshold) forwards, the surrogate backwards."""

    @staticmethod
    def forward(ctx: Any, U: Tensor, threshold: float, beta: Tensor, shape: Surrogate) -> Tensor:
        spikes = (threshold < U).to(U.dtype)
        ctx.save_for_backward(U, spikes, beta)
        ctx.threshold, ctx.shape = threshold, shape
        return spikes

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        U, spikes, beta = ctx.saved_tensors
        return g * surrogate_derivative(ctx.shape, U - ctx.threshold, spikes, beta), None, None, None


Layer = tuple[Any, Tensor, Any]  # S, P, count; S and count are None of a readout


def lif_steps(
    x: Tensor | None, W: Tensor | None, V: Tensor | None, times: Times | None, neuron: Neuron, beta: list[float],
    steps: int,
) -> Layer:  # fmt: skip
    """The neuron's equations step by step, for autograd: on any device, in any precision; the kernel's oracle."""
    if times is not None:
        assert W is not None
        x = times.spikes(steps, W.dtype) @ W[:, None]
    assert x is not None
    steepness = torch.tensor(beta, dtype=x.dtype, device=x.device)[:, None, None]
    zero = x.new_zeros(x.shape[0], x.shape[1], x.shape[3])
    J, U = zero, zero + neuron.start
    spikes: list[Tensor] = []
    kept: list[Tensor] = []
    for t in range(steps):
        J = neuron.decay_syn * J
        if t >= neuron.lag:
            J = J + x[:, :, t - neuron.lag if x.shape[2] > 1 else 0]
        if V is not None and t >= neuron.lag_recurrent:
            S = spikes[t - neuron.lag_recurrent]
            J = J + (S if neuron.recurrent_gradient else S.detach()) @ V
        U = neuron.decay * U
        R = spikes[t - neuron.lag_reset] if neuron.reset != "none" and t >= neuron.lag_reset else None
        if R is not None and not neuron.reset_gradient:
            R = R.detach()
        if neuron.reset == "before" and R is not None:
            U = U * (1 - R)
        U = U + neuron.gain * J
        if neuron.reset == "subtract" and R is not None:
            U = U - neuron.threshold * R
        kept.append(U)
        if neuron.reset == "whole" and R is not None:
            U = U * (1 - R)
        if neuron.reset != "none":
            spikes.append(Spike.apply(U, neuron.threshold, steepness, neuron.surrogate))
    P = torch.stack(kept, 2)
    if neuron.reset == "none":
        return None, P, None
    S = torch.stack(spikes, 2)
    return S, P.detach() if neuron.reset == "whole" else P, S.sum(2)


def lif(
    x: Tensor | None, W: Tensor | None, V: Tensor | None, times: Times | None, neuron: Neuron, beta: list[float],
    steps: int,
) -> Layer:  # fmt: skip
    """A layer over all steps, from its current x, or from its input's spike times and W."""
    if (x if x is not None else W).device.type == "cpu":  # type: ignore[union-attr]
        from papers.snn.kernel import Compiled

        return Compiled.apply(x, W, V, times, neuron, beta, steps)
    return lif_steps(x, W, V, times, neuron, beta, steps)


def membrane(P: Tensor, S: Tensor | None, neuron: Neuron) -> Tensor:
    """U from what a layer keeps."""
    if S is None or neuron.reset != "whole":
        return P
    U = P.clone()
    U[:, :, neuron.lag_reset :] *= 1 - S[:, :, : -neuron.lag_reset]
    return U


# ---- networks


class Block(NamedTuple):
    """One layer of the notation "32C3-P2-128-10"."""

    kind: Literal["dense", "conv", "mean", "max"]
    into: tuple[int, ...]  # (n,), or (channels, height, width)
    out: tuple[int, ...]
    size: int = 0  # of a convolution's kernel or a pool's window


def parse_net(net: str, inputs: tuple[int, ...]) -> list[Block]:
    """Dense layers as numbers, "32C3": 32 maps by 3 x 3 with zero padding, "P2" and "M2": mean and max of 2 x 2."""
    blocks: list[Block] = []
    for word in net.split("-"):
        match = re.fullmatch(r"(\d+)(?:C(\d+))?|([PM])(\d+)", word)
        if not match or (not word.isdigit() and len(inputs) != 3):
            raise UserError(f"--net {net!r}: {word!r} is no layer here; write 100-10 or 32C3-P2-128-10")
        maps, kernel, pool, window = match.groups()
        if pool:
            size = int(window)
            out: tuple[int, ...] = (inputs[0], inputs[1] // size, inputs[2] // size)
            blocks.append(Block("mean" if pool == "P" else "max", inputs, out, size))
        elif kernel:
            out = (int(maps), *inputs[1:])
            blocks.append(Block("conv", inputs, out, int(kernel)))
        else:
            out = (int(maps),)
            blocks.append(Block("dense", (math.prod(inputs),), out))
        inputs = out
    if blocks[-1].kind != "dense":
        raise UserError(f"--net {net!r} should end with the number of outputs")
    return blocks


class Trace(NamedTuple):
    """What a forward pass leaves: of every spiking layer below the readout, then of the readout."""

    counts: list[Tensor]
    layers: list[tuple[Tensor | None, Tensor, Neuron]]
    spikes: Tensor | None  # of the readout, (s, b, t, classes)
    potential: Tensor


class Network(nn.Module):
    """The parameters of a stack of nets, and their common shape.

    Args:
        copies: nets in the stack.
        inputs: (n,) or (channels, height, width).
        encoders: spiking neurons per input channel, each with its own gain and bias (spytorch Tutorial 5); 0: none.
    """

    def __init__(
        self, copies: int, inputs: tuple[int, ...], net: str, hidden: Neuron, readout: Neuron, steps: int, *,
        recurrent: bool = False, bias: bool = False, batch_norm: bool = False, encoders: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        super().__init__()
        self.hidden, self.readout, self.steps, self.encoders = hidden, readout, steps, encoders
        # spytorch Tutorial 5: no synapse, and the reset comes one step late
        self.encoder = hidden._replace(decay_syn=0.0, lag=1, lag_reset=2, start=0.0, reset_gradient=False)
        self.blocks = parse_net(net, (inputs[0] * encoders,) if encoders else inputs)
        shapes: dict[str, tuple[int, ...]] = {}
        if encoders:
            shapes["gain"] = shapes["shift"] = self.blocks[0].into
        self.fan_in: dict[str, int] = {}  # of weights and biases
        for i, block in enumerate(self.blocks):
            if block.kind not in ("dense", "conv"):
                continue
            into = block.into if block.kind == "dense" else (block.into[0], block.size, block.size)
            shapes[f"w{i}"] = (*into, *block.out) if block.kind == "dense" else (block.out[0], *into)
            self.fan_in[f"w{i}"] = math.prod(into)
            if bias:
                shapes[f"b{i}"] = block.out[:1]
                self.fan_in[f"b{i}"] = math.prod(into)
            if recurrent and block is not self.blocks[-1]:
                shapes[f"v{i}"] = (*block.out, *block.out)
                self.fan_in[f"v{i}"] = block.out[0]
            if batch_norm and block.kind == "conv":
                shapes[f"scale{i}"] = shapes[f"offset{i}"] = block.out[:1]
                self.register_buffer(f"running_mean{i}", torch.zeros(copies, block.out[0], device=device))
                self.register_buffer(f"running_var{i}", torch.ones(copies, block.out[0], device=device))
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(copies, *shape, device=device)))

    @torch.no_grad()
    def initialise(
        self, seeds: Sequence[int], how: Literal["uniform", "normal", "fluctuation"], scale: float,
        scale_recurrent: float, rate: float,
    ) -> None:  # fmt: skip
        """Draw the weights of each net from its seed: every cell of a seed starts alike.

        Args:
            how: "uniform" in +-scale / sqrt(n) (with scale 1 torch.nn.Linear's default, of biases too), "normal" with
                that standard deviation, or "fluctuation": normal, so that inputs of `rate` spikes a step make the
                membrane fluctuate by `scale` (Rossbroich, Gygax and Zenke 2022; stork).
            scale_recurrent: in the place of scale, for V.
        """
        last = f"w{len(self.blocks) - 1}"
        for i, seed in enumerate(seeds):
            numbers = generator(seed, "weights")
            for name, parameter in self.named_parameters():
                shape = parameter.shape[1:]
                if name in self.fan_in:
                    size = (scale_recurrent if name.startswith("v") else scale) / math.sqrt(self.fan_in[name])
                    if how == "fluctuation":
                        size /= math.sqrt(rate * squared_psp(self.readout if name == last else self.hidden))
                    if how == "uniform":
                        parameter[i] = (torch.rand(shape, generator=numbers) * 2 - 1) * size
                    else:
                        parameter[i] = torch.randn(shape, generator=numbers) * size
                elif name in ("gain", "shift"):
                    parameter[i] = torch.randn(shape, generator=numbers)
                else:  # of batch normalisation
                    parameter[i] = 1.0 if name.startswith("scale") else 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and running statistics by name: what `forward` works on, whole or cut along the stack."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def forward(self, tensors: Mapping[str, Tensor], x: Tensor | Times, beta: list[float], keep: bool = False) -> Trace:
        """Run (s, b, t or 1, ...) currents or spike times through the nets whose tensors these are.

        Args:
            keep: hold on to all layers' spikes and potentials, for pictures.
        """
        counts: list[Tensor] = []
        layers: list[tuple[Tensor | None, Tensor, Neuron]] = []

        def spiking(neuron: Neuron, out: Layer) -> Tensor:
            S, P, count = out
            counts.append(count)
            if keep:
                layers.append((S.detach(), P.detach(), neuron))
            return S

        if self.encoders:
            assert isinstance(x, Tensor)
            tiled = x.repeat(1, 1, 1, self.encoders)
            current = tensors["gain"][:, None, None] * (tiled + tensors["shift"][:, None, None])
            x = spiking(self.encoder, lif(current, None, None, None, self.encoder, beta, self.steps))
            counts.clear()  # penalties are on the hidden layers
        for i, block in enumerate(self.blocks):
            last = block is self.blocks[-1]
            neuron, W, V, bias = self.readout if last else self.hidden, tensors.get(f"w{i}"), None, tensors.get(f"b{i}")
            if block.kind in ("mean", "max"):
                assert isinstance(x, Tensor)
                x = pooled(x, block)
                continue
            assert W is not None
            V = tensors.get(f"v{i}")
            if isinstance(x, Times):
                out = lif(None, W, V, x, neuron, beta, self.steps)
            else:
                current = dense(x, W, bias) if block.kind == "dense" else convolved(x, W, bias, block.size)
                if f"scale{i}" in tensors:
                    norm = (tensors[f"{name}{i}"] for name in ("running_mean", "running_var", "scale", "offset"))
                    current = normalised(current, *norm, training=self.training)
                out = lif(current.flatten(3), None, V, None, neuron, beta, self.steps)
            if last:
                return Trace(counts, layers, out[0], out[1])
            x = spiking(neuron, out)
            x = x.reshape(*x.shape[:3], *block.out)
        raise AssertionError("a net ends with a dense layer")


def squared_psp(neuron: Neuron) -> float:
    """Sum over steps of the squared membrane potential after one input spike of weight 1 (stork get_lif_kernel)."""
    longest = max(-1 / math.log(neuron.decay), -1 / math.log(neuron.decay_syn))
    total, U, current = 0.0, 0.0, 1.0
    for _ in range(round(10 * longest)):
        total += U * U
        U, current = neuron.decay * U + neuron.gain * current, neuron.decay_syn * current
    return total


class Product(torch.autograd.Function):
    """rows @ W of each net, (s, r, n) @ (s, n, u). Narrow results are made lying down: up to seven times faster."""

    NARROW = 64

    @staticmethod
    def forward(ctx: Any, rows: Tensor, W: Tensor) -> Tensor:
        ctx.save_for_backward(rows, W)
        if W.shape[2] < Product.NARROW:
            return torch.bmm(W.mT, rows.mT).mT.contiguous()
        return torch.bmm(rows, W)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        rows, W = ctx.saved_tensors
        dW = torch.bmm(g.mT, rows).mT if W.shape[2] < Product.NARROW else torch.bmm(rows.mT, g)
        return torch.bmm(g, W.mT) if ctx.needs_input_grad[0] else None, dW


def dense(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """(s, b, t, ...) -> (s, b, t, u): all steps and samples as one product."""
    s, b, t = x.shape[:3]
    out = Product.apply(x.reshape(s, b * t, -1), W)
    return (out if bias is None else out + bias[:, None]).view(s, b, t, -1)


def _as_maps(x: Tensor) -> Tensor:
    """(s, b, t, c, h, w) -> (b * t, s * c, h, w): nets side by side as groups of channels."""
    return x.flatten(1, 2).transpose(0, 1).flatten(1, 2)


def _from_maps(maps: Tensor, s: int, b: int, t: int) -> Tensor:
    return maps.unflatten(1, (s, -1)).transpose(0, 1).unflatten(1, (b, t))


def convolved(x: Tensor, W: Tensor, bias: Tensor | None, size: int) -> Tensor:
    """The same convolution at all steps."""
    s, b, t = x.shape[:3]
    maps = F.conv2d(_as_maps(x), W.flatten(0, 1), None if bias is None else bias.flatten(), padding=size // 2, groups=s)
    return _from_maps(maps, s, b, t)


def pooled(x: Tensor, block: Block) -> Tensor:
    """Mean or maximum of the spikes in each window."""
    pool = F.avg_pool2d if block.kind == "mean" else F.max_pool2d
    return _from_maps(pool(_as_maps(x), block.size), *x.shape[:3])


def normalised(x: Tensor, mean: Tensor, var: Tensor, scale: Tensor, offset: Tensor, *, training: bool) -> Tensor:
    """Batch normalisation over samples, steps and places."""
    mean, var, scale, offset = (v.view(-1) for v in (mean, var, scale, offset))
    return _from_maps(F.batch_norm(_as_maps(x), mean, var, scale, offset, training=training), *x.shape[:3])


# ---- objectives


def log_scores(trace: Trace, loss: Loss) -> Tensor:
    """What the class is chosen by, (s, b, classes): the largest potential over time, or the number of spikes."""
    if loss == "max":
        return trace.potential.amax(2)
    assert trace.spikes is not None
    return trace.spikes.sum(2)


def losses(trace: Trace, y: Tensor, loss: Loss) -> Tensor:
    """Per sample, (s, b), for labels (s, b).

    "max": cross-entropy of the largest potential over time (Zenke and Vogels). "sum": cross-entropy of the potential,
    summed over steps (snnTorch Tutorial 5). "rate": mean squared distance of the rates from one-hot (STBP).
    """
    if loss == "max":
        return F.cross_entropy(trace.potential.amax(2).flatten(0, 1), y.flatten(), reduction="none").view_as(y)
    if loss == "sum":
        every = trace.potential.flatten(0, 2)
        repeated = y[..., None].expand(-1, -1, trace.potential.shape[2])
        return F.cross_entropy(every, repeated.flatten(), reduction="none").view_as(repeated).sum(2)
    assert trace.spikes is not None
    rates = trace.spikes.mean(2)
    return (rates - F.one_hot(y, rates.shape[-1]).to(rates)).square().mean(-1)


class Penalties(NamedTuple):
    """Weights of the activity penalties of each hidden layer.

    lower, upper: (weight, spikes). stork: weight * mean over samples of the squared shortfall of every neuron's count,
    and of the squared excess of the layer's mean count. total, square: spytorch Tutorial 3: of all spikes in the batch,
    and of a neuron's squared count over the whole batch, a mean over neurons.
    """

    lower: tuple[float, float] = (0.0, 0.0)
    upper: tuple[float, float] = (0.0, 0.0)
    total: float = 0.0
    square: float = 0.0

    def __call__(self, counts: list[Tensor], everyone: Callable[[Tensor], Tensor], processes: int) -> Tensor:
        """The penalty of each net, (s,).

        Args:
            everyone: sum over the processes that share the batch; gradients are a mean over them.
        """
        value = counts[0].new_zeros(len(counts[0]))
        for count in counts:
            if self.lower[0]:
                value = value + self.lower[0] * (self.lower[1] - count).clamp_min(0).square().mean((1, 2))
            if self.upper[0]:
                value = value + self.upper[0] * (count.mean(2) - self.upper[1]).clamp_min(0).square().mean(1)
            if self.total:
                value = value + self.total * processes * count.sum((1, 2))
            if self.square:
                mine = count.sum(1)
                whole = everyone(mine.detach())
                value = value + self.square * (whole.square() + 2 * whole * processes * (mine - mine.detach())).mean(1)
        return value


class SMORMS3(torch.optim.Optimizer):
    """Simon Funk's optimiser (sifter.org/~simon/journal/20150420.html), per weight, as stork has it."""

    def __init__(self, params: Any, lr: float = 1e-3, eps: float = 1e-16) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"mem": torch.ones_like(p), "g": torch.zeros_like(p), "g2": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                mem, g, g2 = (self.state[p][name] for name in ("mem", "g", "g2"))
                r = 1 / (mem + 1)
                g.mul_(1 - r).addcmul_(r, p.grad)
                g2.mul_(1 - r).addcmul_(r, p.grad.square())
                q = g.square() / (g2 + group["eps"])
                mem.mul_(1 - q).add_(1)
                p.sub_(q.clamp_max(group["lr"]) * p.grad / (g2.sqrt() + group["eps"]))
