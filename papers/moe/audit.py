"""Counts at the paper's own scale, identities of Appendices A and F, and the sizes of Switch Transformers.

Language models are built on torch's meta device, up to 137 billion parameters; matrix products are counted by
`FlopCounterMode`, two operations a multiply-add, which is what the paper calls an op.
"""

from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config as meta_config
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from common.cost import learned
from common.errors import UserError
from common.random import generator
from papers.moe.config import PRESETS, TABLE_7, TABLE_8, Config
from papers.moe.makemoe import Transformer
from papers.moe.model import Experts, LanguageModel, MoE
from papers.moe.routing import Batchwise, Draws, Gate, Hierarchical, NoisyTopK, Switch, top_k

TRENDS = ("laptop-moe-4", "laptop-moe-16", "laptop-moe-64", "laptop-4xlstm", "laptop-switch-8", "laptop-switch-dense")
T5_VOCABULARY = 32_128
SWITCHES = {  # Switch Table 9: d_model, d_ff, heads, layers of each half, matrices of a FFN, experts, every
    "t5-base": (768, 2048, 12, 12, 3, 1, 2),
    "switch-base": (768, 2048, 12, 12, 3, 128, 2),
    "switch-large": (1024, 2816, 16, 24, 3, 128, 2),
    "switch-xxl": (4096, 10240, 64, 24, 3, 64, 2),
    "switch-xxl-128": (4096, 10240, 64, 24, 3, 128, 2),
    "switch-c": (2080, 6144, 32, 15, 2, 2048, 1),
}


def build_moe(cfg: Config) -> MoE:
    """The layer of a configuration, not initialised.

    Raises:
        UserError: sizes that do not fit together.
    """
    d, n, k = cfg.width, cfg.experts, cfg.active
    if any(size % 8 for size in (d, *cfg.expert_units)):
        raise UserError(f"width {d} and expert_units {cfg.expert_units} must be multiples of 8 (grouped products)")
    if k > (cfg.groups or n) or (cfg.groups and (n % cfg.groups or n // cfg.groups < k or n // cfg.groups % 4)):
        raise UserError(
            f"{n} experts, {cfg.groups} groups, {k} active: groups must divide the experts into multiples of 4, "
            "and no more can be active than there are"
        )
    if cfg.groups and cfg.gating != "noisy-top-k":
        raise UserError(f"groups need gating noisy-top-k, not {cfg.gating}")
    gate: Gate | None = None
    if n > 1 and cfg.gating == "switch":
        gate = Switch(d, n, cfg.capacity_factor, cfg.aux_weight, cfg.exploration, cfg.init_scale or 1.0)
    elif n > 1 and cfg.gating == "batchwise":
        gate = Batchwise(d, n, k)
    elif n > 1:
        gate = Hierarchical(d, n, cfg.groups, k) if cfg.groups else NoisyTopK(d, n, k)
    return MoE(gate, Experts(n, (d, *cfg.expert_units, d)))


def build(cfg: Config, vocabulary: int) -> LanguageModel:
    """The language model of a configuration, on the current device, not initialised."""
    middle: Any = build_moe(cfg) if cfg.middle == "moe" else cfg.middle
    return LanguageModel(vocabulary, cfg.width, cfg.lstm_units, middle, cfg.dropout, cfg.squashed)


def build_makemoe(cfg: Config, vocabulary: int) -> Transformer:
    """makeMoE's Transformer, on the current device, not initialised.

    Raises:
        UserError: sizes that do not fit together.
    """
    build_moe(cfg)
    if cfg.width % cfg.heads or len(cfg.expert_units) != 1:
        raise UserError(f"{cfg.heads} heads must divide the width {cfg.width}, and an expert has one hidden layer")
    return Transformer(
        vocabulary, cfg.length, cfg.width, cfg.heads, cfg.layers, cfg.expert_units[0], cfg.experts, cfg.active,
        cfg.dropout,
    )  # fmt: skip


def grouped_flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Of `grouped_mm`, which torch's counter does not know: every row meets one matrix."""
    return 2 * x[0] * x[1] * weight[2]


def counts_of(cfg: Config) -> tuple[float, float]:
    """Millions of parameters, and of multiply-adds a time step forward, both without embedding and softmax."""
    whole = meta_config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]  # nothing overflows
    with torch.device("meta"), torch.no_grad(), whole:
        model = build(cfg, 8).to(torch.bfloat16)  # grouped products on meta are for it alone
        mapping = {torch.ops.aten._grouped_mm: grouped_flops}
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            model.hidden(torch.zeros(1, 1, dtype=torch.int64))
    inner = learned(model) - learned(model.embedding) - learned(model.softmax)
    return inner / 1e6, counter.get_total_flops() / 2 / 1e6


def t5_parameters(d: int, d_ff: int, heads: int, layers: int, matrices: int, experts: int, every: int) -> int:
    """Of an encoder-decoder like T5 v1.1, keys of 64, whose every so-many-th feed-forward layer has experts."""
    attention = 4 * d * heads * 64 * 3 * layers  # of encoder, decoder, and between them
    dense = matrices * d * d_ff
    sparse = experts * dense + d * experts
    with_experts = 2 * layers // every if experts > 1 else 0
    norms, relative = d * (5 * layers + 2), 2 * 32 * heads
    feed_forward = with_experts * sparse + (2 * layers - with_experts) * dense
    return attention + feed_forward + norms + relative + 2 * T5_VOCABULARY * d


def monte_carlo() -> tuple[float, float]:
    """P(x, i) of Eq. 8 against 20,000 redraws of i's noise alone: entries beyond five standard errors, largest gap."""
    draw, t, n, k, redraws = generator("audit", "load"), 16, 12, 3, 20_000
    clean, sd = torch.randn(t, n, generator=draw).double(), torch.rand(t, n, generator=draw).double() + 0.1
    normal = torch.randn(t, n, generator=draw).double()
    p = top_k(clean, sd, normal, k)[2]
    noisy = clean + normal * sd
    beyond, gap = 0, 0.0
    for i in range(n):
        others = torch.cat([noisy[:, :i], noisy[:, i + 1 :]], 1).topk(k).values[:, -1:]  # kth_excluding
        again = clean[:, i : i + 1] + sd[:, i : i + 1] * torch.randn(t, redraws, generator=draw)
        error = ((again > others).double().mean(1) - p[:, i]).abs()
        beyond += int((error > 5 * (p[:, i] * (1 - p[:, i]) / redraws).sqrt() + 5 / redraws).sum())
        gap = max(gap, float(error.max()))
    return beyond, gap


def identities() -> dict[str, float]:
    """What Appendices A and F, and Switch's Eq. 4, promise."""
    beyond, gap = monte_carlo()
    counts = {"load_estimator_beyond_5se": beyond, "load_estimator_largest_gap": gap}
    x, d, n, k = torch.randn(4096, 32, generator=generator("audit", "x")), 32, 64, 4
    gate = NoisyTopK(d, n, k)
    gate.initialise(generator("audit"))
    with torch.no_grad():
        routing = gate(x, Draws("audit", "noise"))
        counts["noise_sd_at_start"] = float(F.softplus(x @ gate.w_noise).mean())
        expected = torch.zeros(n)
        for step in range(64):  # the expected load: over draws of the noise
            expected += gate(x, Draws("audit", "noise", step)).load / 64
        counts["expected_load_cv_at_start"] = cv(expected)
        counts["load_cv_at_start"] = cv(routing.load)
        strict = Batchwise(d, n, k)
        strict.initialise(generator("audit"))
        taken = strict(x, Draws("audit", "noise")).taken
        counts["strict_largest_surplus"] = float((taken - k * len(x) // n).abs().max())
        switch = Switch(n, n, alpha=0.01, exploration="argmax")
        switch.w_gate.copy_(torch.eye(n))
        counts["switch_loss_when_even"] = float(switch(torch.eye(n).repeat(8, 1), Draws("audit")).penalty)
    return counts


def cv(x: Tensor) -> float:
    """Coefficient of variation."""
    return float(x.std(correction=0) / x.mean())


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data sets read: none)."""
    counts: dict[str, float] = {}
    for table, models in (("table7", TABLE_7), ("table8", TABLE_8)):
        for name, cfg in models.items():
            counts[f"millions/{table}/{name}"], counts[f"million_ops/{table}/{name}"] = counts_of(cfg)
    for name in TRENDS:
        counts[f"millions/{name}"], counts[f"million_ops/{name}"] = counts_of(PRESETS[name])
    with torch.device("meta"):
        counts["expert_millions/language"] = learned(Experts(1, (512, 1024, 512))) / 1e6
        counts["expert_millions/translation"] = learned(Experts(1, (512, 2048, 512))) / 1e6
        counts["millions/makemoe"] = learned(build_makemoe(PRESETS["makemoe"], 65)) / 1e6
    for name, sizes in SWITCHES.items():
        counts[f"billions/{name}"] = t5_parameters(*sizes) / 1e9
    return counts | identities(), {}
