"""Counts at the paper's own scale (parameters, on the meta device) and the identities behind the layer, in float64."""

import math
from pathlib import Path

import torch

from common.cost import parameters
from papers.s4.config import CIFAR, LISTOPS, MNIST, PATHFINDER, PRESETS, Config
from papers.s4.kernel import DenseKernel, DiagonalKernel, S4Kernel, legs, legs_eigenvectors, nplr
from papers.s4.model import S4Net, Transformer

SHAPES = {MNIST: (1, 0, 784, 10), CIFAR: (3, 0, 1_024, 10), LISTOPS: (0, 18, 2_001, 10), PATHFINDER: (1, 0, 1_024, 2)}
COUNTED = (
    "table6-smnist", "table6-scifar", "sec4.3-scifar", "fig3-legs-trained", "fig4-legs", "table4-listops", "repo-image",
    "table4-transformer-listops", "example-s4d", "lra-image-small-s4", "lra-image-small-s4d",
    "lra-image-small-s4d-real", "lra-image-large-s4", "lra-image-large-s4d",
)  # fmt: skip


def build(cfg: Config, inputs: int, tokens: int, length: int, classes: int) -> S4Net | Transformer:
    """The network of a configuration for such data, on the current device, not initialised."""
    if cfg.model == "transformer":
        return Transformer(
            tokens, classes, cfg.depth, cfg.width, cfg.heads, cfg.mlp, cfg.length or length, cfg.dropout, fused=True
        )
    return S4Net(
        kind=cfg.model, inputs=inputs, tokens=tokens, classes=classes, depth=cfg.depth, h=cfg.width, state=cfg.state,
        length=cfg.length or length, init=cfg.init, copies=cfg.copies, softplus=cfg.softplus,
        both_ways=cfg.bidirectional, glu=cfg.glu, norm=cfg.norm, pre_norm=cfg.pre_norm, dropout=cfg.dropout,
        tied=cfg.tied_dropout, early_dropout=cfg.early_dropout, learn_b=cfg.learn_b, last=cfg.pool == "last",
    )  # fmt: skip


def unrolled(kernel: DiagonalKernel | DenseKernel, length: int) -> torch.Tensor:
    """K (c, h, length) by running the recurrence on an impulse."""
    recurrence = kernel.recurrence()
    u = torch.ones(1, kernel.h, dtype=kernel.dt().dtype)
    state, rows = torch.zeros(1, *recurrence[0].shape[:2], dtype=recurrence[0].dtype), []
    for _ in range(length):
        y, state = kernel.step(u, state, recurrence)
        rows.append(y[0].T)
        u = torch.zeros_like(u)
    return torch.stack(rows, -1)


@torch.no_grad()
def identities() -> dict[str, float]:
    """Theorem 1, Lemma 3.2 and Algorithm 1 as numbers."""
    found = {}
    a, b = legs(64)
    lam, p, v = nplr(64)
    both = torch.cat([v, v.conj()], 1)
    low = torch.cat([p, p.conj()])
    inner = torch.diag(torch.cat([lam, lam.conj()])) - low[:, None] * low.conj()
    found["nplr_residual"] = float((both @ inner @ both.conj().T - a).abs().max())
    skew = a + b[:, None] * b / 2 + torch.eye(64, dtype=a.dtype) / 2
    found["skew_residual"] = float((skew + skew.T).abs().max())
    m = 10_000  # entry (3 m, m) of V is binom(4 m, 2 m)
    found["blowup_bits_per_state"] = (math.lgamma(4 * m + 1) - 2 * math.lgamma(2 * m + 1)) / math.log(2) / (3 * m)
    found["blowup_log2_entry_64"] = math.log2(float(legs_eigenvectors(64).max()))
    kernel = S4Kernel(8, 64, 256)
    kernel.initialise(torch.Generator().manual_seed(0))
    single = (kernel(256) - unrolled(kernel, 256)).abs().max()
    kernel.double()
    found["kernel_minus_recurrence_float32"] = float(single)
    found["float32_within_1e-5"] = float(single < 1e-5)
    found["kernel_minus_recurrence_float64"] = float((kernel(256) - unrolled(kernel, 256)).abs().max())
    kernel.method, fast = "cauchy", kernel(256)
    found["cauchy_minus_fft"] = float((kernel(256) - fast).abs().max())
    return found


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data sets read: none)."""
    counts = identities()
    with torch.device("meta"):
        one = S4Kernel(1, 64, 1_024, untied=True)
        counts["numbers_per_state"] = (parameters(one) - one.dt_parameter.numel()) / one.n
        for name in COUNTED:
            cfg = PRESETS[name]
            inputs, tokens, length, classes = SHAPES[cfg.dataset]
            n = parameters(build(cfg, 1 if cfg.grey else inputs, tokens, length, classes))
            counts[f"parameters/{name}"] = n
            counts[f"thousands/{name}"], counts[f"millions/{name}"] = n / 1e3, n / 1e6
        for h in (4_096, 16_384):  # where H^2 outweighs the terms in H N (Table 1)
            net = build(Config(width=h, depth=1, glu=False, bidirectional=False, copies=1), 1, 0, 1_024, 10)
            counts[f"layer_parameters/{h}"] = parameters(net.blocks[0])
    small = ("fig3-legs-trained", "fig4-legs")
    counts["small_nets_within_100k"] = float(all(counts[f"parameters/{name}"] <= 100_000 for name in small))
    slope = math.log(counts["layer_parameters/16384"] / counts["layer_parameters/4096"]) / math.log(4)
    counts["layer_parameter_slope"] = slope
    return counts, {}
