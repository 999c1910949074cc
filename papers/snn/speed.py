"""An update of Zenke and Vogels' net beside snnTorch's and a plain loop; how it grows with the time steps."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.speed import Case, Growth, Peer, Step, training
from papers.snn.config import PRESETS
from papers.snn.model import Times, losses
from papers.snn.train import build, make_optimizer

BATCH, INPUTS, UNITS, CLASSES = 250, 20, 128, 10
CFG = replace(PRESETS["zv-one"], net=f"{UNITS}-{CLASSES}", lower=(0.0, 0.0))
TUTORIAL = replace(PRESETS["snntorch-t5"], batch_size=128)


def spikes(steps: int) -> Tensor:
    """One spike of every input and sample, (b, inputs): its time."""
    return torch.randint(steps, (BATCH, INPUTS), dtype=torch.int32)


def ours(steps: int = CFG.steps) -> Step:
    cfg = replace(CFG, steps=steps)
    net = build(cfg, 1, (INPUTS,))
    net.initialise([0], cfg.init, *cfg.init_scale, 1 / steps)
    x, y = Times(spikes(steps)[None]), torch.randint(CLASSES, (1, BATCH))
    optimizer = make_optimizer(cfg, net, 1e-3)
    return training(net, optimizer, lambda: losses(net(net.tensors(), x, [10.0]), y, cfg.loss).mean())


def snntorch(synaptic: bool) -> Step:
    """snnTorch's neurons in its usual loop; the largest membrane potential of the readout over time decides."""
    import snntorch as snn
    from snntorch import surrogate

    train = Times(spikes(CFG.steps)[None]).spikes(CFG.steps, torch.float32)[0]  # (b, t, inputs)
    y, slope = torch.randint(CLASSES, (BATCH,)), surrogate.fast_sigmoid(slope=10)
    one, two = nn.Linear(INPUTS, UNITS, bias=False), nn.Linear(UNITS, CLASSES, bias=False)

    def neuron(decay: float, reset: str) -> Any:
        if synaptic:
            return snn.Synaptic(CFG.decay_syn, decay, spike_grad=slope, reset_mechanism=reset)
        return snn.Leaky(decay, spike_grad=slope, reset_mechanism=reset)

    hidden, readout = neuron(CFG.decay_mem, "zero"), neuron(CFG.decay_readout, "none")
    modules = nn.ModuleList([one, two, hidden, readout])

    def loss() -> Tensor:
        a, b = (m.reset_mem() for m in (hidden, readout))
        a, b = (v if isinstance(v, tuple) else (v,) for v in (a, b))
        potentials = []
        for x in train.unbind(1):
            s, *a = hidden(one(x), *a)
            _, *b = readout(two(s), *b)
            potentials.append(b[-1])
        return F.cross_entropy(torch.stack(potentials).amax(0), y)

    return training(modules, torch.optim.Adam(modules.parameters(), lr=1e-3), loss)


def tutorial() -> Step:
    """Tutorial 5's net, 784-1000-10 over 25 steps of a constant picture."""
    net = build(TUTORIAL, 1, (784,))
    net.initialise([0], TUTORIAL.init, *TUTORIAL.init_scale, 1 / TUTORIAL.steps)
    x, y = torch.rand(1, TUTORIAL.batch_size, 1, 784), torch.randint(CLASSES, (1, TUTORIAL.batch_size))
    optimizer = make_optimizer(TUTORIAL, net, 5e-4)
    return training(net, optimizer, lambda: losses(net(net.tensors(), x, [10.0]), y, TUTORIAL.loss).mean())


def snntorch_tutorial() -> Step:
    import snntorch as snn

    one, two = nn.Linear(784, 1000), nn.Linear(1000, CLASSES)
    hidden, readout = snn.Leaky(0.95), snn.Leaky(0.95)
    modules = nn.ModuleList([one, two, hidden, readout])
    x, y = torch.rand(TUTORIAL.batch_size, 784), torch.randint(CLASSES, (TUTORIAL.batch_size,))

    def loss() -> Tensor:
        a, b, total = hidden.init_leaky(), readout.init_leaky(), torch.zeros(())
        for _ in range(TUTORIAL.steps):
            s, a = hidden(one(x), a)
            _, b = readout(two(s), b)
            total = total + F.cross_entropy(b, y)
        return total

    return training(modules, torch.optim.Adam(modules.parameters(), lr=5e-4), loss)


def floor(weights: int, batch: int, steps: int, neurons: int) -> tuple[float, float]:
    """Products thrice, and some ten operations a neuron, step and pass."""
    return batch * steps * (3.0 * 2 * weights + 20 * neurons), 0.0


SPIKING = UNITS * CLASSES  # of inputs only one spike each is summed, which is next to nothing
CASES = {
    "randman": Case(
        f"{INPUTS}-{UNITS}-{CLASSES} with synapses, {CFG.steps} steps, batch {BATCH}, Adam",
        ours,
        {
            "snnTorch Synaptic": Peer("snntorch", lambda: snntorch(True)),
            "snnTorch Leaky": Peer("snntorch", lambda: snntorch(False), "no synaptic current", same=False),
        },
        "adam",
        floor(SPIKING, BATCH, CFG.steps, UNITS + CLASSES),
    ),
    "tutorial": Case(
        f"snnTorch's Tutorial 5: 784-1000-10, {TUTORIAL.steps} steps, batch {TUTORIAL.batch_size}, Adam",
        tutorial,
        {"snnTorch Leaky": Peer("snntorch", snntorch_tutorial)},
        "adam",
        (3.0 * 2 * TUTORIAL.batch_size * (784 * 1000 + TUTORIAL.steps * 10_000), 0.0),
    ),
}
GROWTH = Growth("steps", (100, 400, 1_600), ours)
