"""Online learning, an update a sequence, beside torch.nn.LSTM and a loop in plain torch; growth with the length."""

import itertools
from dataclasses import replace

import torch
from torch import Tensor, nn

from common.speed import Case, Growth, Peer, Step
from papers.lstm import kernel
from papers.lstm.config import PRESETS, Config
from papers.lstm.train import Trial, build

SEQUENCES = 20  # learned in a step, one after the other
ADDING = PRESETS["table7-T100"]
# the net that torch.nn.LSTM holds: forget gates, blocks of one cell, gates that are not fed back, all biases
MODERN = replace(
    ADDING, blocks=8, block_size=1, forget_gates=True, recurrence="cells", gradient="full", input_gate_bias=(),
    update="sequence",
)  # fmt: skip


def ours(cfg: Config) -> Step:
    trial = Trial(cfg, 0)
    sequences, made = trial.train_data.read(0, SEQUENCES)

    def run() -> None:
        trial.run_kernel(sequences, 0, made, 1e-3, 0, kernel.empty_carry(trial.shape))

    return Step(run, build(cfg, 1).weights())


def dense(cfg: Config) -> list[tuple[Tensor, Tensor]]:
    """The sequences as (1, t, inputs) and their targets (1, outputs) at the end, in float32."""
    trial = Trial(cfg, 0)
    s, made = trial.train_data.read(0, SEQUENCES)
    starts = s.start[: made + 1]
    return [(torch.rand(1, int(b - a), trial.shape.inputs), torch.rand(1, trial.shape.outputs))
            for a, b in itertools.pairwise(starts)]  # fmt: skip


def online(model: nn.Module, cfg: Config) -> Step:
    """Plain gradient descent after every sequence."""
    pairs, optimizer = dense(cfg), torch.optim.SGD(model.parameters(), lr=1e-3)

    def run() -> None:
        for x, y in pairs:
            optimizer.zero_grad(set_to_none=True)
            (model(x) - y).square().sum().backward()
            optimizer.step()

    return Step(run, sum(p.numel() for p in model.parameters()))


class Torch(nn.Module):
    def __init__(self, inputs: int, cells: int, outputs: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(inputs, cells, batch_first=True), nn.Linear(cells, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.head(self.lstm(x)[0][:, -1]))


class Loop(nn.Module):
    """Our own oracle: the truncated gradient by autograd, a step of time after the other."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.net = build(cfg, 1).float()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[None])[0, :, -1]


def torch_lstm() -> Step:
    return online(Torch(2, MODERN.blocks, 1), MODERN)


def weights_flops(cfg: Config, length: float) -> tuple[float, float]:
    """Two operations a weight and time step forward; truncated learning some six (App. A.1), the full gradient four."""
    factor = 6 if cfg.gradient == "full" else 8
    return factor * build(cfg, 1).weights() * length * SEQUENCES, 0.0


CASES = {
    "forget-gates": Case(
        f"{SEQUENCES} adding problems of 100 to 110 steps, 8 cells with forget gates, whole gradient, an update each; "
        "ours in float64",
        lambda: ours(MODERN),
        {"nn.LSTM": Peer("torch", torch_lstm)},
        flops=weights_flops(MODERN, 105),
    ),
    "1997": Case(
        f"{SEQUENCES} adding problems of 100 to 110 steps, the net and truncated gradient of 1997, an update each; "
        "ours in float64",
        lambda: ours(ADDING),
        {"loop over time in torch": Peer("torch", lambda: online(Loop(ADDING), ADDING))},
        flops=weights_flops(ADDING, 105),
    ),
}
GROWTH = Growth("length", (100, 400, 1_600), lambda length: ours(replace(ADDING, min_length=length)))
