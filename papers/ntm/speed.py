"""An update on a copy sequence beside pytorch-ntm's; how it grows with the memory's rows."""

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from common.speed import Case, Growth, Peer, Step, checkout, training
from papers.ntm import data
from papers.ntm.config import Config
from papers.ntm.train import Compiled

LENGTH = 10  # of the copied sequence: the mean of the task's 1 to 20
CFG = Config(batch_size=1)


def ours(cfg: Config = CFG) -> Step:
    nets = Compiled(cfg, [0])
    batch = data.sequences(data.task(cfg.dataset), (0, "train"), range(cfg.batch_size), (LENGTH,))
    updates = [0]

    def run() -> np.ndarray:
        updates[0] += 1
        return nets.train([batch], updates[0])

    return Step(run, nets.state["theta"].size)


def theirs(batch_size: int) -> Step:
    """Its copy task's own sizes, which are these, its RMSProp and its clipping, without its count of wrong bits."""
    path = checkout("pytorch-ntm", "https://github.com/loudinthecloud/pytorch-ntm")
    sys.path.insert(0, str(path))
    try:
        from ntm.aio import EncapsulatedNTM
    finally:
        sys.path.remove(str(path))
    net = EncapsulatedNTM(9, 8, CFG.hidden, CFG.layers, CFG.heads, CFG.rows, CFG.columns)
    bits = torch.from_numpy(np.random.default_rng(0).integers(2, size=(LENGTH, batch_size, 8))).float()
    x = torch.zeros(LENGTH + 1, batch_size, 9)
    x[:-1, :, :8], x[-1, :, 8] = bits, 1.0
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-4, momentum=0.9, alpha=0.95)
    optimizer.register_step_pre_hook(clipped)

    def loss() -> Tensor:
        net.init_sequence(batch_size)
        for row in x:
            net(row)
        y = torch.stack([net()[0] for _ in range(LENGTH)])
        return nn.functional.binary_cross_entropy(y, bits)

    return training(net, optimizer, loss)


def clipped(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Gradients to [-10, 10] as its train.py does it."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.grad.clamp_(-10, 10)


def floor(cfg: Config) -> float:
    """Products of a step: LSTM, heads' numbers, addressing, reading, writing; thrice for both passes."""
    heads, h, cells = 2 * cfg.heads, cfg.hidden, cfg.rows * cfg.columns
    lstm = 4 * h * (9 + cfg.columns * cfg.heads + h)
    emitted = h * cfg.heads * (2 * (cfg.columns + 6) + 2 * cfg.columns)
    return 3.0 * cfg.batch_size * (2 * LENGTH + 1) * 2 * (lstm + emitted + cells * (heads + 3 * cfg.heads) + 8 * h)


def case(batch_size: int) -> Case:
    cfg = replace(CFG, batch_size=batch_size)
    build: Callable[[], Step] = lambda: theirs(batch_size)  # noqa: E731
    return Case(
        f"NTM with an LSTM of {cfg.hidden} units and a memory of {cfg.rows} x {cfg.columns}, one head of each kind, "
        f"copies of length {LENGTH}, batch {batch_size}, RMSProp",
        lambda: ours(cfg),
        {"pytorch-ntm": Peer("pytorch-ntm", build)},
        "rmsprop",
        (floor(cfg), 0.0),
    )


CASES = {"copy": case(1), "copy-batch-16": case(16)}
GROWTH = Growth("rows", (128, 512, 2_048), lambda rows: ours(replace(CFG, rows=rows)))
