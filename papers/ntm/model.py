"""Neural Turing machines as torch modules: many independent nets at once, differentiated by autograd.

Graves, Wayne, Danihelka. Neural Turing Machines. arXiv 1410.5401, 2014 (sections 3 and 4).

Glossary (code name, paper's symbol, shape):
    x            external input, (s, b, t, i)         s seeds (independent nets), b sequences, t steps, i input channels
    h            controller output, (s, b, c)         c units of all layers together
    r            r_t, what the heads read, (s, b, R, M)
    memory       M_t, (s, b, N, M)                    N rows (locations) of M columns
    w            w_t, weightings, (s, b, J, N)        J = 2R heads, the R read heads first, then the R write heads
    k, beta, g, gamma, s    key, key strength, interpolation gate, sharpening, shift weighting (Eq. 5 to 9)
    e, a         erase and add vectors of the write heads, (s, b, R, M)  (Eq. 3, 4)
Without heads the controller is the LSTM that the paper compares with.

The weights of a net are one vector, cut by `layout`: this is the readable version, the one for GPUs, and the oracle of
`kernel`, which trains on a CPU.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

TINY = 1e-16  # keeps log and division from 0


class Net(NamedTuple):
    """The shape of a net."""

    inputs: int
    outputs: int
    hidden: int  # units of a layer of the controller
    layers: int = 1
    lstm: int = 1  # 1: LSTM controller; 0: feed-forward
    heads: int = 1  # R: that many read heads and as many write heads; 0: no memory
    rows: int = 128  # N
    columns: int = 20  # M
    reach: int = 1  # shifts -reach ... reach are allowed
    squash: int = 0  # 1: keys and add vectors pass a tanh
    clip: float = 0.0  # where > 0, what leaves the controller is clipped to [-clip, clip]

    @property
    def head_sizes(self) -> list[int]:
        """Keys, strengths, gates, sharpenings and shifts of all heads; erase and add vectors of the write heads."""
        J, R, M = 2 * self.heads, self.heads, self.columns
        return [J * M, J, J, J, J * (2 * self.reach + 1), R * M, R * M]


def layout(net: Net) -> dict[str, tuple[int, ...]]:
    """The parts of a net's weight vector, in order. Weights are source-major, a bias is the last row.

    Every layer sees the input and the reads, and every layer feeds heads and output: the only reading under which the
    LSTM nets have the printed number of parameters (Table 3).
    """
    H, L, reads = net.hidden, net.layers, net.heads * net.columns
    gates, own = (4 * H, H) if net.lstm else (H, 0)
    parts: dict[str, tuple[int, ...]] = {}
    for layer in range(L):  # sources: x, the layer below, reads, the layer itself one step before, bias
        parts[f"layer{layer}"] = (net.inputs + (H if layer else 0) + reads + own + 1, gates)
    parts["heads"] = (L * H + 1 if net.heads else 0, sum(net.head_sizes))
    parts["output"] = (L * H + reads + 1, net.outputs)
    parts["h"] = parts["c"] = (L, own)  # initial state, learned (section 4)
    parts["r"] = (net.heads, net.columns)
    parts["memory"] = (net.columns if net.heads else 0, net.rows)  # column-major: a column is the fast index
    parts["w"] = (2 * net.heads, net.rows)  # logits of the initial weightings
    return parts


class NTM(nn.Module):
    """One net per seed, all of one shape."""

    def __init__(self, net: Net, seeds: int = 1) -> None:
        super().__init__()
        self.net = net
        self.theta = nn.Parameter(torch.empty(seeds, sum(math.prod(shape) for shape in layout(net).values())))

    def parts(self) -> dict[str, Tensor]:
        """name -> (s, *shape), views of the weights."""
        shapes = layout(self.net)
        cut = self.theta.split([math.prod(shape) for shape in shapes.values()], 1)
        return {name: part.view(len(part), *shape) for (name, shape), part in zip(shapes.items(), cut, strict=True)}

    def initialise(self, generators: Sequence[torch.Generator], memory: str, forget_bias: float) -> None:
        """Each net from its own generator, the same numbers in any precision.

        Args:
            memory: initial contents; "constant" 1e-6, "random" tanh of N(0, 0.5^2), "learned" small and uniform (the
                three schemes of Collier & Beel; all are trained), "uniform" in +-1/sqrt(N + M).
            forget_bias: of LSTM layers.
        """
        H, (N, M) = self.net.hidden, (self.net.rows, self.net.columns)
        with torch.no_grad():
            for i, generator in enumerate(generators):
                for name, part in self.parts().items():
                    drawn = torch.randn(part[i].shape, generator=generator, dtype=torch.float64)
                    if name in ("heads", "output") or name.startswith("layer"):
                        fan_in, fan_out = len(drawn) - 1, H if name.startswith("layer") else drawn.shape[1]
                        drawn *= math.sqrt(2 / max(1, fan_in + fan_out))  # Glorot's variance, gate by gate
                        drawn[-1:] = 0
                        if self.net.lstm and name.startswith("layer"):
                            drawn[-1, H : 2 * H] = forget_bias
                    elif name == "memory":
                        if memory == "constant":
                            drawn.fill_(1e-6)
                        elif memory == "random":
                            drawn = (0.5 * drawn).tanh()
                        else:
                            bound = math.sqrt(6 / (1 + N * M)) if memory == "learned" else 1 / math.sqrt(N + M)
                            drawn = (torch.special.ndtr(drawn) * 2 - 1) * bound
                    else:
                        drawn *= 0.05
                    part[i] = drawn

    def forward(self, x: Tensor, trace: dict[str, list[Tensor]] | None = None) -> Tensor:
        """Logits of the outputs at every step.

        Args:
            x: (s, b, t, i)
            trace: where given, weightings, reads, add and erase vectors and memory of every step are put there.

        Returns:
            (s, b, t, k)
        """
        net, part = self.net, self.parts()
        s, b, steps, _ = x.shape
        H, reads = net.hidden, net.heads * net.columns

        def every(name: str) -> Tensor:
            """An initial state for every sequence."""
            return part[name][:, None].expand(-1, b, *part[name].shape[1:])

        h, c, r = list(every("h").unbind(2)), list(every("c").unbind(2)), every("r").reshape(s, b, reads)
        memory, w = every("memory").mT, every("w").softmax(-1)
        layers = [part[f"layer{layer}"] for layer in range(net.layers)]
        from_x = [x @ W[:, None, : net.inputs] + W[:, -1, None, None] for W in layers]  # all steps at once
        y = []
        for t in range(steps):
            below = x.new_empty(s, b, 0)
            out = []
            for layer, W in enumerate(layers):
                seen = torch.cat([below, r, h[layer]] if net.lstm else [below, r], -1)
                z = from_x[layer][:, :, t] + seen @ W[:, net.inputs : -1]
                if net.lstm:
                    i, f, u, o = z.split(H, -1)
                    c[layer] = f.sigmoid() * c[layer] + i.sigmoid() * u.tanh()
                    below = h[layer] = o.sigmoid() * c[layer].tanh()
                else:
                    below = z.tanh()
                out.append(below)
            now = torch.cat(out, -1)  # (s, b, c)
            if net.heads:
                p = now @ part["heads"][:, :-1] + part["heads"][:, -1, None]
                memory_before, (memory, w, read, e, a) = memory, self.heads(p, memory, w)
                r = read.reshape(s, b, reads)
                if trace is not None:
                    for name, value in (("w", w), ("r", read), ("e", e), ("a", a), ("memory", memory_before)):
                        trace.setdefault(name, []).append(value)
            y.append(torch.cat([now, r], -1))
        z = torch.stack(y, 2) @ part["output"][:, None, :-1] + part["output"][:, -1, None, None]
        return z.clamp(-net.clip, net.clip) if net.clip else z

    def heads(self, p: Tensor, memory: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """One step of all heads: (memory after it, weightings, reads, erase vectors, add vectors).

        All heads address and read M_{t-1}; then all write.
        """
        net = self.net
        R, J, M = net.heads, 2 * net.heads, net.columns
        if net.clip:
            p = p.clamp(-net.clip, net.clip)
        k, beta, g, gamma, s, e, a = p.split(net.head_sizes, -1)
        k, e, a = k.unflatten(-1, (J, M)), e.unflatten(-1, (R, M)).sigmoid(), a.unflatten(-1, (R, M))
        if net.squash:
            k, a = k.tanh(), a.tanh()
        beta, gamma = nn.functional.softplus(beta), 1 + nn.functional.softplus(gamma)
        w = address(memory, w, k, beta, g.sigmoid(), s.unflatten(-1, (J, -1)).softmax(-1), gamma)
        read = w[..., :R, :] @ memory  # Eq. 2
        return write(memory, w[..., R:, :], e, a), w, read, e, a


def address(M: Tensor, w_before: Tensor, k: Tensor, beta: Tensor, g: Tensor, s: Tensor, gamma: Tensor) -> Tensor:
    """Weightings (..., J, N) of all heads: memory (..., N, M), keys (..., J, M), scalars (..., J), s (..., J, S)."""
    length = (M.square().sum(-1) + TINY).sqrt()[..., None, :] * (k.square().sum(-1) + TINY).sqrt()[..., None]
    K = k @ M.mT / length  # Eq. 6, cosine similarity
    w_c = (beta[..., None] * K).softmax(-1)  # Eq. 5
    w_g = g[..., None] * w_c + (1 - g[..., None]) * w_before  # Eq. 7
    reach = s.shape[-1] // 2
    w_s = torch.stack([s[..., i, None] * w_g.roll(i - reach, -1) for i in range(s.shape[-1])]).sum(0)  # Eq. 8
    return (gamma[..., None] * (w_s + TINY).log()).softmax(-1)  # Eq. 9; as a softmax it never is 0 / 0


def write(M: Tensor, w: Tensor, e: Tensor, a: Tensor) -> Tensor:
    """All erasures, then all additions (Eq. 3 and 4): M (..., N, M), w (..., R, N), e and a (..., R, M)."""
    return M * (1 - w[..., None] * e[..., None, :]).prod(-3) + w.mT @ a


class RMSProp(torch.optim.Optimizer):
    """As in Graves 2013 (arXiv 1308.0850, Eq. 38 to 45): centred, the constant inside the root, with momentum."""

    def __init__(
        self, params: Sequence[nn.Parameter], lr: float, decay: float = 0.95, momentum: float = 0.9, eps: float = 1e-4
    ) -> None:
        super().__init__(params, {"lr": lr, "decay": decay, "momentum": momentum, "eps": eps})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {name: torch.zeros_like(p) for name in ("n", "m", "d")}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            for p in group["params"]:
                n, m, d = (self.state[p][name] for name in ("n", "m", "d"))
                n.lerp_(p.grad.square(), 1 - group["decay"])
                m.lerp_(p.grad, 1 - group["decay"])
                d.mul_(group["momentum"]).sub_(group["lr"] * p.grad / (n - m.square() + group["eps"]).sqrt())
                p.add_(d)
