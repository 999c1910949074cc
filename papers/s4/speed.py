"""A layer's training step beside the official block; how it grows with the length, beside attention."""

import torch
from torch import Tensor, nn

from common.speed import Case, Growth, Peer, Step, checkout, module_at, training
from papers.s4.model import Layer

H, N = 128, 64  # channels, state size


def step_of(layer: nn.Module, batch: int, length: int, fused: bool) -> Step:
    u, pull = torch.randn(batch, H, length), torch.randn(batch, H, length)

    def loss() -> Tensor:
        y = layer(u)
        return ((y[0] if isinstance(y, tuple) else y) * pull).mean()

    return training(layer, torch.optim.AdamW(layer.parameters(), lr=1e-3, fused=fused), loss)


def ours(batch: int, length: int, kind: str = "s4") -> Step:
    layer = Layer(kind, H, N, length, "legs" if kind == "s4" else "lin", 0, True, True, True, 0.0, True, True)  # type: ignore[arg-type]
    layer.initialise(torch.Generator().manual_seed(0))
    return step_of(layer, batch, length, True)


def official(batch: int, length: int, kind: str = "s4") -> Step:
    """models/s4/s4.py, by its plain torch kernels: those for CUDA are not of use here."""
    path = checkout("s4", "https://github.com/state-spaces/s4")
    module = module_at(path / "models" / "s4" / "s4.py", "official_s4")
    block = module.S4Block(
        H, d_state=N, l_max=length, bidirectional=True, mode="dplr" if kind == "s4" else "diag",
        init="legs" if kind == "s4" else "diag-lin", n_ssm=H, lr=None, dropout=0.0,
    )  # fmt: skip
    return step_of(block, batch, length, False)


def floor(batch: int, length: int, rank: int) -> float:
    """The output's product thrice, FFTs of twice the length, and the kernel: L N for each channel, rank and way."""
    product = 2.0 * batch * length * H * 2 * H
    transform = 2.5 * 2 * length * (2 * length - 1).bit_length()  # of 2 L real numbers
    kernel = 2 * H * rank * 8 * (N // 2) * length
    return 3 * (product + transform * H * (2 * batch + 2 * rank) + kernel)


def case(kind: str, batch: int, length: int, rank: int) -> Case:
    return Case(
        f"one {kind.upper()} layer both ways, {H} channels, N = {N}, length {length}, batch {batch}, AdamW",
        lambda: ours(batch, length, kind),
        {"official S4Block": Peer("s4", lambda: official(batch, length, kind))},
        "adam",
        (floor(batch, length, rank), 0.0),
    )


CASES = {"s4-784": case("s4", 8, 784, 4), "s4-4096": case("s4", 2, 4_096, 4), "s4d-1024": case("s4d", 8, 1_024, 1)}
GROWTH = Growth("length", (1_024, 4_096, 16_384), lambda length: ours(2, length))
