"""Identity of the spiking networks: the libraries' neurons, the kernel against autograd, Randman's bits, counts."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.data.batches import Batches
from common.errors import UserError
from papers.snn import data
from papers.snn.audit import audit
from papers.snn.config import PRESETS, Config, decay
from papers.snn.model import (
    RESETS,
    SMORMS3,
    SURROGATES,
    Neuron,
    Penalties,
    Product,
    Times,
    Trace,
    convolved,
    lif,
    lif_steps,
    losses,
    membrane,
    normalised,
    parse_net,
    pooled,
    squared_psp,
)  # fmt: skip
from papers.snn.train import Inputs, build, cells, multiplier

DOUBLE = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- the neuron against the libraries' equations, written out


def spike(x: Tensor, twin: Callable[[Tensor], Tensor]) -> Tensor:
    """A step whose derivative autograd takes from its smooth twin."""
    smooth = twin(x)
    return (x > 0).to(x) + smooth - smooth.detach()


TWINS: dict[str, Callable[[float], Callable[[Tensor], Tensor]]] = {
    "superspike": lambda beta: lambda x: x / (1 + beta * x.abs()),
    "asymptotic": lambda beta: lambda x: beta * x / (1 + beta * x.abs()),
    "sigmoid": lambda beta: lambda x: torch.sigmoid(beta * x) / beta,
    "arctan": lambda beta: lambda x: torch.atan(beta * x) / beta,
    "esser": lambda beta: (
        lambda x: torch.where(x.abs() < 1 / beta, x - x.sign() * beta * x * x / 2, x.sign().detach() / (2 * beta))
    ),
    "rectangle": lambda beta: lambda x: x.clamp(-1 / beta, 1 / beta),
}


def snntorch_leaky(
    x: Tensor, twin: Callable[[Tensor], Tensor], decay: float, threshold: float
) -> tuple[Tensor, Tensor]:
    """`snntorch.Leaky(beta=decay)`, reset by subtraction, in the order of its documentation; x (b, t, u)."""
    mem, spikes, membranes = torch.zeros_like(x[:, 0]), [], []
    for t in range(x.shape[1]):
        reset = (mem > threshold).to(x)
        mem = decay * mem + x[:, t] - reset * threshold
        spikes.append(spike(mem - threshold, twin))
        membranes.append(mem)
    return torch.stack(spikes, 1), torch.stack(membranes, 1)


def snntorch_synaptic(x: Tensor, twin: Callable[[Tensor], Tensor], alpha: float, decay: float) -> tuple[Tensor, Tensor]:
    """`snntorch.Synaptic(alpha, beta=decay)`."""
    syn = mem = torch.zeros_like(x[:, 0])
    spikes, membranes = [], []
    for t in range(x.shape[1]):
        reset = (mem > 1).to(x)
        syn = alpha * syn + x[:, t]
        mem = decay * mem + syn - reset
        spikes.append(spike(mem - 1, twin))
        membranes.append(mem)
    return torch.stack(spikes, 1), torch.stack(membranes, 1)


def spikingjelly_lif(x: Tensor, twin: Callable[[Tensor], Tensor], tau: float, detach: bool) -> tuple[Tensor, Tensor]:
    """`spikingjelly.activation_based.neuron.LIFNode(tau)`: charge, fire, hard reset; the potential before the reset."""
    v, spikes, membranes = torch.zeros_like(x[:, 0]), [], []
    for t in range(x.shape[1]):
        v = v + (x[:, t] - v) / tau
        membranes.append(v)
        s = spike(v - 1, twin)
        spikes.append(s)
        v = v * (1 - (s.detach() if detach else s))
    return torch.stack(spikes, 1), torch.stack(membranes, 1)


def norse_lif(x: Tensor, twin: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """`norse.torch.functional.lif_feed_forward_step` with dt 1 ms and its default time constants."""
    v = i = torch.zeros_like(x[:, 0])
    spikes, membranes = [], []
    for t in range(x.shape[1]):
        i = i + x[:, t]
        v = v + 0.001 * 100 * (i - v)
        i = i - 0.001 * 200 * i
        membranes.append(v)
        z = spike(v - 1, twin)
        spikes.append(z)
        v = (1 - z) * v
    return torch.stack(spikes, 1), torch.stack(membranes, 1)


LIBRARIES = {
    "snntorch.Leaky": (
        lambda x, twin: snntorch_leaky(x, twin, 0.9, 0.7),
        Neuron(0.9, threshold=0.7, reset="subtract"),
    ),
    "snntorch.Synaptic": (lambda x, twin: snntorch_synaptic(x, twin, 0.8, 0.9), Neuron(0.9, 0.8, reset="subtract")),
    "spikingjelly.LIFNode": (
        lambda x, twin: spikingjelly_lif(x, twin, 2.0, False),
        Neuron(0.5, gain=0.5, reset="before", reset_gradient=True),
    ),
    "spikingjelly.LIFNode, detached": (
        lambda x, twin: spikingjelly_lif(x, twin, 2.0, True),
        Neuron(0.5, gain=0.5, reset="before"),
    ),
    "norse.lif": (lambda x, twin: norse_lif(x, twin), Neuron(0.9, 0.8, 0.1, reset="before", reset_gradient=True)),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("surrogate", TWINS)
def test_one_neuron_is_every_librarys(library: str, surrogate: Any) -> None:
    reference, neuron = LIBRARIES[library]
    beta = 3.0
    x = (2 * normal(4, 40, 5) + 0.5).requires_grad_()
    weight = normal(4, 40, 5, seed=1), normal(4, 40, 5, seed=2)
    S, U = reference(x, TWINS[surrogate](beta))
    (expected,) = torch.autograd.grad((weight[0] * S + weight[1] * U).sum(), x)
    ours = lif_steps(x[None], None, None, None, neuron._replace(surrogate=surrogate), [beta], 40)
    assert 20 < S.sum() < 700
    assert torch.equal(ours[0][0], S.round())
    torch.testing.assert_close(ours[1][0], U, rtol=1e-12, atol=1e-12)
    (found,) = torch.autograd.grad((weight[0] * ours[0][0] + weight[1] * ours[1][0]).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def stork_net(
    s_in: Tensor, W1: Tensor, W2: Tensor, twin: Callable[[Tensor], Tensor], recurrent: Tensor | None
) -> Tensor:
    """stork's clock: all groups evolve with the input of the step before, then connections deliver (models.py, run)."""
    d_mem, d_syn, d_out = decay(20, 2), decay(10, 2), decay(200, 2)
    b = s_in.shape[0]
    mem, syn, inp = (s_in.new_zeros(b, W1.shape[1]) for _ in range(3))
    out, flt, out_inp = (s_in.new_zeros(b, W2.shape[1]) for _ in range(3))
    out = out - 1e-2
    recorded = []
    for t in range(s_in.shape[1]):
        s = spike(mem - 1, twin)
        mem, syn = (d_mem * mem + (1 - d_mem) * syn) * (1 - s.detach()), d_syn * syn + inp
        out, flt = d_out * out + (1 - d_out) * flt, d_syn * flt + out_inp
        recorded.append(out)
        inp = s_in[:, t] @ W1 + (s @ recurrent if recurrent is not None else 0)
        out_inp = s @ W2
    return torch.stack(recorded, 1)


def spytorch_net(s_in: Tensor, W1: Tensor, W2: Tensor, twin: Callable[[Tensor], Tensor], V: Tensor | None) -> Tensor:
    """spytorch's loop (Tutorials 2 and 5, with tau_mem 10 and no gain): spike from the old membrane, current last."""
    alpha, beta = decay(5, 1), decay(10, 1)
    b = s_in.shape[0]
    mem, syn, s = (s_in.new_zeros(b, W1.shape[1]) for _ in range(3))
    spikes, recorded = [], []
    for t in range(s_in.shape[1]):
        h = s_in[:, t] @ W1 + (s @ V if V is not None else 0)
        s = spike(mem - 1, twin)
        spikes.append(s)
        mem, syn = (beta * mem + syn) * (1 - s.detach()), alpha * syn + h
    flt = out = s_in.new_zeros(b, W2.shape[1])
    for s in spikes:
        out, flt = beta * out + flt, alpha * flt + s @ W2
        recorded.append(out)
    return torch.stack(recorded, 1)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("code", ["stork", "spytorch"])
def test_a_net_is_the_official_codes(code: str, recurrent: bool) -> None:
    """The presets' lags are the codes' orders of update: readout and gradients are the same."""
    preset = PRESETS["stork-nb01"] if code == "stork" else PRESETS["spytorch-t2"]
    cfg = Config(**vars(preset) | {"encoding": "times", "steps": 60, "net": "9-3", "recurrent": recurrent})
    if code == "spytorch":
        cfg = Config(**vars(cfg) | {"lags": PRESETS["spytorch-t5"].lags})
    net = build(cfg, 1, (6,)).to(DOUBLE)
    scale = 3.0 if code == "stork" else 0.7
    net.w0.data, net.w1.data = scale * normal(1, 6, 9), normal(1, 9, 3, seed=1)
    if recurrent:
        net.v0.data = 0.3 * scale * normal(1, 9, 9, seed=2)
    when = torch.randint(0, 50, (1, 7, 6), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    beta = cfg.beta[0]
    trace = net(net.tensors(), Times(when), [beta])
    reference = stork_net if code == "stork" else spytorch_net
    tensors = net.tensors()
    V = tensors["v0"][0] if recurrent else None
    out = reference(Times(when).spikes(60, DOUBLE)[0], tensors["w0"][0], tensors["w1"][0], TWINS["superspike"](beta), V)
    assert trace.counts[0].sum() > 20
    torch.testing.assert_close(trace.potential[0], out, rtol=1e-9, atol=1e-12)
    y = torch.arange(7)[None] % 3
    ours = torch.autograd.grad(losses(trace, y, "max").sum(), list(net.parameters()))
    theirs = torch.autograd.grad(F.cross_entropy(out.amax(1), y[0], reduction="sum"), list(net.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_encoders_reset_one_step_late() -> None:
    """spytorch Tutorial 5 multiplies by the spike of the step before the one just taken."""
    net = build(PRESETS["spytorch-t5"], 1, (4,))
    beta, x = decay(20, 1), 0.4 * normal(1, 3, 152, 128) + 1.2
    enc = s = x.new_zeros(3, 128)
    spikes = []
    for t in range(152):
        enc, s = (beta * enc + (1 - beta) * x[0, :, t]) * (1 - s), (enc > 1).to(x)
        spikes.append(s)
    S, _, _ = lif_steps(x, None, None, None, net.encoder, [20.0], 152)
    assert 0.01 < S.mean() < 0.5
    assert torch.equal(S[0], torch.stack(spikes, 1))


def test_below_threshold_it_is_a_double_exponential() -> None:
    """U after one input spike of weight w at step 0: the difference of two exponentials, in closed form."""
    a, b, w, steps = decay(10, 1), decay(5, 1), 0.8, 50
    x = torch.zeros(1, 1, steps, 1, dtype=DOUBLE)
    x[:, :, 0] = w
    S, U, _ = lif_steps(x, None, None, None, Neuron(a, b, 1 - a, lag=2), [10.0], steps)
    t = torch.arange(steps, dtype=DOUBLE) - 1
    expected = torch.where(t > 0, (1 - a) * w * (a**t - b**t) / (a - b), 0.0)
    assert S.sum() == 0
    torch.testing.assert_close(U[0, 0, :, 0], expected)


# ---- the compiled kernel


CASES = [(reset, shape) for reset in RESETS for shape in (SURROGATES if reset == "whole" else SURROGATES[:1])]


@pytest.mark.parametrize("given", ["every step", "constant", "times"])
@pytest.mark.parametrize(("reset", "shape"), CASES)
def test_kernel_is_the_plain_loop(reset: Any, shape: Any, given: str) -> None:
    s, b, steps, n, u = 2, 7, 30, 6, 9
    for switches in range(4):
        neuron = Neuron(0.9, 0.8, 0.7, 1.0, -0.01, reset, 2, 3, 2, bool(switches & 1), bool(switches & 2), shape)
        x = W = times = V = None
        if given == "times":
            when = torch.randint(0, steps + 5, (s, b, n), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
            times, W = Times(when), 1.5 * normal(s, n, u, dtype=torch.float32)
        else:
            x = normal(s, b, steps if given == "every step" else 1, u, dtype=torch.float32) + 0.3
        if reset != "none":
            V = 0.3 * normal(s, u, u, seed=2, dtype=torch.float32)
        outcomes = []
        for run in (lif_steps, lif):
            leaves: list[Any] = [v.clone().requires_grad_() if v is not None else None for v in (x, W, V)]
            S, P, count = run(leaves[0], leaves[1], leaves[2], times, neuron, [2.0, 10.0], steps)
            value = (P * normal(*P.shape, seed=3, dtype=torch.float32)).sum() if reset != "whole" else P.new_zeros(())
            if S is not None:
                value = value + (S * normal(*S.shape, seed=4, dtype=torch.float32)).sum()
                value = value + (count * normal(*count.shape, seed=5, dtype=torch.float32)).sum()
            outcomes.append((S, P, torch.autograd.grad(value, [v for v in leaves if v is not None])))
        (S, P, expected), (ours, potential, found) = outcomes
        assert (S is None) == (reset == "none") == (ours is None)
        assert S is None or (torch.equal(S, ours) and S.sum() > 10)
        torch.testing.assert_close(potential, P, rtol=1e-4, atol=1e-4)
        for a, g in zip(found, expected, strict=True):
            torch.testing.assert_close(a, g, rtol=1e-3, atol=1e-4 * float(g.abs().max()) + 1e-6)


def test_without_sums_the_kernel_has_the_same_bits() -> None:
    neuron = Neuron(decay(10, 1), decay(5, 1), 1 - decay(10, 1), lag=2)
    x = 4 * normal(1, 20, 100, 30, dtype=torch.float32)
    plain, compiled = (f(x, None, None, None, neuron, [10.0], 100) for f in (lif_steps, lif))
    assert plain[0].sum() > 1000
    assert all(torch.equal(a, b) for a, b in zip(plain, compiled, strict=True))
    U = membrane(compiled[1], compiled[0], neuron)
    assert torch.equal((U > 1).float(), compiled[0])


def test_the_reset_switch_moves_the_gradient_alone() -> None:
    x = (4 * normal(1, 20, 100, 30, dtype=torch.float32)).requires_grad_()
    spikes, gradients = [], []
    for through in (False, True):
        neuron = Neuron(0.9, 0.8, 0.1, lag=2, reset_gradient=through, surrogate="asymptotic")
        S = lif(x, None, None, None, neuron, [50.0], 100)[0]
        spikes.append(S)
        gradients.append(torch.autograd.grad(S.sum(), x)[0])
    assert torch.equal(spikes[0], spikes[1])
    assert not torch.allclose(gradients[0], gradients[1], rtol=0.1)


# ---- networks


def test_counts() -> None:
    counts = audit(None)[0]
    assert counts["parameters/spytorch-t2"] == 784 * 100 + 100 * 10 == 79_400
    assert counts["parameters/stork"] == 3_840
    assert counts["parameters/snntorch"] == 795_010
    assert counts["parameters/spikingjelly-conv"] == 13_014_656
    assert counts["parameters/spytorch-t5"] == 2 * 128 + 128 * 200 + 200 * 200 + 200 * 28


def test_a_net_of_a_stack_is_the_net_alone() -> None:
    cfg = Config(**vars(PRESETS["smoke"]) | {"net": "16-16-3"})
    when = torch.randint(0, 30, (3, 24, 8), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    y = torch.arange(24).expand(3, -1) % 3
    found = []
    for chosen in ([0, 1, 2], [1]):
        net = build(cfg, len(chosen), (8,))
        net.initialise(chosen, "fluctuation", 1.0, 0.3, 0.05)
        trace = net(net.tensors(), Times(when[chosen]), [5.0, 10.0, 20.0][slice(chosen[0], chosen[-1] + 1)])
        losses(trace, y[chosen], "max").sum().backward()
        assert trace.counts[1].sum() > 0
        at = chosen.index(1)
        found.append([trace.potential[at]] + [p.grad[at] for p in net.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("width", [10, 100])
def test_products_and_their_gradients(width: int) -> None:
    rows, W = normal(2, 50, 20).requires_grad_(), normal(2, 20, width, seed=1).requires_grad_()
    weight = normal(2, 50, width, seed=2)
    ours, plain = Product.apply(rows, W), rows @ W
    torch.testing.assert_close(ours, plain)
    for a, b in zip(*(torch.autograd.grad((v * weight).sum(), (rows, W)) for v in (ours, plain)), strict=True):
        torch.testing.assert_close(a, b)


def test_maps_of_a_stack_are_those_of_each_net() -> None:
    x, W, bias = normal(2, 3, 4, 5, 8, 8), normal(2, 6, 5, 3, 3, seed=1), normal(2, 6, seed=2)
    mean, var, scale, offset = torch.zeros(2, 6).double(), torch.ones(2, 6).double(), normal(2, 6, seed=3), normal(2, 6)
    out = convolved(x, W, bias, 3)
    normed = normalised(out, mean, var, scale, offset, training=True)
    small = pooled(normed, parse_net("P2-1", (6, 8, 8))[0])
    for i in range(2):
        flat = F.conv2d(x[i].flatten(0, 1), W[i], bias[i], padding=1)
        torch.testing.assert_close(out[i].flatten(0, 1), flat)
        flat = F.batch_norm(flat, None, None, scale[i], offset[i], training=True)
        torch.testing.assert_close(normed[i].flatten(0, 1), flat)
        torch.testing.assert_close(small[i].flatten(0, 1), F.avg_pool2d(flat, 2))
    assert mean.abs().min() > 0  # the running statistics moved


def test_a_convolutional_net_runs_both_ways() -> None:
    cfg = Config(**vars(PRESETS["spikingjelly-fmnist"]) | {"net": "4C3-M2-6C3-P2-12-10"})
    net = build(cfg, 2, (1, 8, 8))
    net.initialise([0, 1], "uniform", 2.0, 1.0, 0.05)
    x = torch.rand(2, 5, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    trace = net(net.tensors(), x, list(cfg.beta) * 2)
    losses(trace, torch.arange(10).view(2, 5), "rate").sum().backward()
    assert trace.spikes is not None
    assert trace.spikes.shape == (2, 5, 4, 10)
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())


def test_fluctuation_driven_start_has_storks_scale() -> None:
    """Standard deviations 2.2164 and 2.3214 for nu = 5 Hz: what stork draws in notebook 01."""
    net = build(PRESETS["stork-nb01"], 1, (20,))
    for neuron, n, expected in ((net.hidden, 20, 2.2164), (net.readout, 128, 2.3214)):
        assert 1 / math.sqrt(n * 0.01 * squared_psp(neuron)) == pytest.approx(expected, abs=5e-5)
    net.initialise([0], "fluctuation", 1.0, 1.0, 0.01)
    assert float(net.tensors()["w0"].detach().std()) == pytest.approx(2.2164, rel=0.05)


def test_the_true_gradient_leaves_hidden_weights_alone() -> None:
    net = build(PRESETS["zv-true-gradient"], 1, (20,))
    net.initialise([0], "uniform", 6.0, 1.0, 0.01)
    when = torch.randint(0, 50, (1, 30, 20), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    trace = net(net.tensors(), Times(when), [10.0])
    losses(trace, torch.arange(30)[None] % 10, "max").sum().backward()
    assert trace.counts[0].sum() > 0
    hidden, readout = (net.tensors()[name].grad for name in ("w0", "w1"))
    assert hidden is not None
    assert readout is not None
    assert hidden.count_nonzero() == 0
    assert readout.abs().sum() > 0


# ---- objectives and optimiser


def test_losses_by_hand() -> None:
    potential, spikes = normal(1, 4, 6, 3), (normal(1, 4, 6, 3, seed=1) > 0).double()
    y = torch.tensor([[0, 2, 1, 0]])
    trace = Trace([], [], spikes, potential)
    for i in range(4):
        steps = [F.cross_entropy(potential[0, i, t], y[0, i]) for t in range(6)]
        torch.testing.assert_close(losses(trace, y, "sum")[0, i], torch.stack(steps).sum())
        largest = potential[0, i].max(0).values
        torch.testing.assert_close(losses(trace, y, "max")[0, i], F.cross_entropy(largest, y[0, i]))
        rates = F.mse_loss(spikes[0, i].mean(0), F.one_hot(y[0, i], 3).double())
        torch.testing.assert_close(losses(trace, y, "rate")[0, i], rates)


def test_penalties_by_hand_and_shared_by_two_processes() -> None:
    count = (3 * normal(1, 6, 5).abs()).round().requires_grad_()
    penalties = Penalties((100.0, 1e-3), (0.1, 2.0), 1e-2, 1e-3)
    whole = penalties([count], lambda v: v, 1)
    lower = 100 * ((1e-3 - count).relu() ** 2).mean()
    upper = 0.1 * ((count.mean(2) - 2).relu() ** 2).mean()
    batch = 1e-2 * count.sum() + 1e-3 * (count.sum(1) ** 2).mean()
    torch.testing.assert_close(whole[0], lower + upper + batch)
    (expected,) = torch.autograd.grad(lower + upper + batch, count)
    total = count.detach().sum(1)
    halves = [torch.autograd.grad(penalties([h], lambda v: total, 2).sum(), count)[0] for h in count.chunk(2, 1)]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, expected)


def test_smorms3_weight_by_weight() -> None:
    start, gradients = normal(3), [normal(3, seed=i) for i in range(1, 6)]
    p = torch.nn.Parameter(start.clone())
    optimizer = SMORMS3([p], 0.05)
    for gradient in gradients:
        p.grad = gradient.clone()
        optimizer.step()
    for i in range(3):
        value, mem, mean, square = float(start[i]), 1.0, 0.0, 0.0
        for g in (float(gradient[i]) for gradient in gradients):
            r = 1 / (mem + 1)
            mean, square = (1 - r) * mean + r * g, (1 - r) * square + r * g * g
            q = mean**2 / (square + 1e-16)
            mem = mem * (1 - q) + 1
            value -= min(q, 0.05) * g / (math.sqrt(square) + 1e-16)
        assert float(p.detach()[i]) == pytest.approx(value, rel=1e-12)


def test_schedules() -> None:
    tenth = [multiplier(PRESETS["stbp-repo-mnist-cnn"], epoch) for epoch in (0, 40, 41, 80, 81)]
    assert tenth == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert multiplier(PRESETS["spikingjelly-fmnist"], 32) == pytest.approx(0.5)


def test_best_cells_are_chosen_by_validation() -> None:
    cfg = Config(
        lr=(0.1, 0.2), beta=(1.0, 10.0), best_cells=2
    )  # cells: (lr, beta) = (.1, 1), (.1, 10), (.2, 1), (.2, 10)
    measured = {"validation": torch.zeros(4, 4), "test": torch.zeros(4, 4)}
    measured["validation"][0] = torch.tensor([50.0, 80.0, 70.0, 60.0])
    measured["test"][0] = torch.tensor([99.0, 81.0, 71.0, 98.0])
    found = cells(cfg, measured)
    assert found["test_accuracy"] == 76
    assert (found["test_accuracy/beta-1"], found["test_accuracy/beta-10"]) == (71, 81)


# ---- data


def test_randman_has_the_bits_of_storks_notebook() -> None:
    read = data.load("generated/randman-stork", None)
    assert read.validation is not None
    parts = (read.train, read.validation, read.test)
    assert [int(part.x.sum()) for part in parts] == [3_937_003, 492_345, 495_523]
    every = torch.cat([part.x for part in parts])
    assert (tuple(every.shape), int(every.min()), int(every.max())) == ((10_000, 20), 0, 49)
    assert every[0].tolist() == [41, 15, 2, 39, 27, 12, 23, 46, 44, 28, 13, 18, 24, 13, 21, 36, 22, 40, 11, 12]
    assert read.train.y[:10].tolist() == [6, 6, 1, 8, 4, 2, 0, 1, 1, 3]
    assert read.test.y.bincount().tolist() == [112, 108, 105, 92, 106, 95, 100, 93, 108, 81]


def test_randman_of_the_paper() -> None:
    """A class fills the unit cube's side of every neuron, and is smooth: neighbours on the manifold spike alike."""
    times, labels = data.paper_randman(3, 8, 80, 30, 20)
    assert (times.min(), times.max()) == (0, 19)
    for label in range(3):
        of_class = times[labels == label]
        assert len(of_class) == 80
        assert (of_class.min(0) == 0).all()
        assert (of_class.max(0) == 19).all()
    rng = np.random.default_rng(data.integer("randman", 3, 8, 2))
    A, B, C = rng.random((3, 8, 30))
    x = rng.random(80)
    y = np.zeros((80, 8))
    for i in range(8):
        for k in range(1, 31):
            y[:, i] += A[i, k - 1] / k * np.sin(2 * np.pi * (k * x * B[i, k - 1] + C[i, k - 1]))
    y = 20 * (y - y.min(0)) / (y.max(0) - y.min(0) + 1e-7)
    assert np.array_equal(times[labels == 2], y.astype(int))


def test_latency_and_rate_codes() -> None:
    pixels = torch.tensor([[0, 50, 51, 52, 128, 255]], dtype=torch.uint8)
    when = data.latencies(pixels, 100)
    assert when[0, :2].tolist() == [100, 100]  # at 51 / 255 = 0.2 the logarithm is that of 1e7, still below the end
    assert when[0, 3:].tolist() == [int(20 * math.log(g / 255 / (g / 255 - 0.2))) for g in (52, 128, 255)]
    grey = torch.arange(256, dtype=torch.uint8)[None]
    drawn = data.bernoulli(grey, 4000, 0, "train", 3)
    assert torch.equal(drawn, data.bernoulli(grey, 4000, 0, "train", 3))
    assert not torch.equal(drawn, data.bernoulli(grey, 4000, 0, "train", 4))
    assert (drawn[0, :, 0].sum(), drawn[0, :, 255].sum()) == (0, 4000)
    torch.testing.assert_close(drawn[0].mean(0), torch.arange(256) / 255, rtol=0, atol=0.04)


def test_an_epoch_of_braille_takes_every_recording() -> None:
    batches = Batches(1080, 100, [0, 1], drop_last=PRESETS["spytorch-t5"].drop_last)
    index = [batches.index(step) for step in range(batches.per_epoch)]
    assert [part.shape[1] for part in index] == [100] * 10 + [80]
    assert torch.equal(torch.cat(index, 1).sort(1).values, torch.arange(1080).expand(2, -1))


def test_braille_is_cut_as_in_the_tutorial(papers_data: Path) -> None:
    read = data.load("local/braille-taxels", papers_data)
    assert (tuple(read.train.x.shape), tuple(read.test.x.shape)) == ((1080, 152, 4), (270, 152, 4))
    assert torch.equal(read.train.x[:, 0::2], read.train.x[:, 1::2])
    every = torch.cat([read.train.x, read.test.x]).flatten(0, 1)
    torch.testing.assert_close(every.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    order = np.arange(1350)
    np.random.RandomState(42).shuffle(order)
    assert read.test.y.tolist() == [int(i) // 50 for i in order[1080:]]


# ---- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net": "100-x"}, "no layer here"),
        ({"net": "32C3-10"}, "needs dense layers"),
        ({"bias": True}, "without biases"),
        ({"encoding": "encoders", "bias": True}, "needs recordings"),
        ({"encoding": "constant", "recurrent": True, "net": "8C3-10"}, "for dense layers"),
    ],
)
def test_nets_that_cannot_be_built(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(Config(**vars(Config()) | changes), 1, (20,), "meta")


def test_encodings_that_do_not_fit() -> None:
    read = data.load("synthetic/randman", None)
    with pytest.raises(UserError, match="does not fit"):
        Inputs(Config(dataset="synthetic/randman", encoding="latency"), SimpleNamespace(device="cpu"), read)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown data set"):
        data.load("generated/randmann", None)
