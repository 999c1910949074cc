"""Time per token against the number of experts: our layer, a loop over experts, and transformers' layers.

All have the same multiply-adds a token in their experts: k experts of two (d, h) matrices. Mixtral's has three of
(d, 2h / 3); a Switch layer's one expert has k h hidden units.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.cost import now, slope
from papers.moe.model import Experts, MoE
from papers.moe.routing import NoisyTopK, Switch

KINDS = ("ours", "loop", "mixtral", "mixtral_grouped", "ours_top1", "switch")


class Loop(nn.Module):
    """The textbook layer: a dense matrix of gates, and one expert after the other."""

    def __init__(self, moe: MoE) -> None:
        super().__init__()
        assert moe.gate is not None
        self.gate = moe.gate
        self.experts = nn.ModuleList(Experts(1, ()) for _ in range(moe.experts.n))
        for e, expert in enumerate(self.experts):
            expert.weights = nn.ParameterList(weight.detach()[e].clone() for weight in moe.experts.weights)

    def forward(self, x: Tensor, draws: object = None) -> Tensor:
        routing = self.gate(x, draws)
        n = len(self.experts)
        expert = torch.arange(n, device=x.device).repeat_interleave(routing.taken)
        dense = x.new_zeros(len(x), n).index_put((routing.token, expert), routing.gate)
        y = torch.zeros_like(x)
        for e, module in enumerate(self.experts):
            rows = dense[:, e].nonzero()[:, 0]
            h = x[rows]
            *hidden, last = module.weights  # type: ignore[misc]
            for weight in hidden:
                h = (h @ weight).relu()
            y = y.index_add(0, rows, dense[rows, e, None] * (h @ last))
        return y


class Timed(nn.Module):
    """A layer by rows, (t, d) -> (t, d), whatever else it says and takes."""

    def __init__(self, layer: nn.Module, batched: bool = False) -> None:
        super().__init__()
        self.layer, self.batched = layer, batched

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x[None] if self.batched else x)
        y = y[0] if isinstance(y, tuple) else y
        return y[0] if self.batched else y


def layers(n: int, d: int, h: int, k: int, device: torch.device) -> dict[str, Timed | None]:
    """The layers to time, by name; None for one that the installed transformers lacks."""
    torch.manual_seed(0)  # one process, one use; nothing that is recorded but times depends on it
    draw = torch.Generator().manual_seed(0)
    ours, top1 = MoE(NoisyTopK(d, n, k), Experts(n, (d, h, d))), MoE(Switch(d, n), Experts(n, (d, k * h, d)))
    for moe in (ours, top1):
        moe.initialise(draw)
    nn.init.normal_(ours.gate.w_gate, std=d**-0.5, generator=draw)  # type: ignore[union-attr, arg-type]
    loop = Loop(ours)
    made: dict[str, Timed | None] = {"ours": Timed(ours), "loop": Timed(loop), "ours_top1": Timed(top1)}
    for layer in made.values():
        assert layer is not None
        layer.to(device)
    return {kind: made.get(kind) or _peer(kind, n, d, h, k, device) for kind in KINDS}


def _peer(kind: str, n: int, d: int, h: int, k: int, device: torch.device) -> Timed | None:
    try:
        if kind == "switch":
            from transformers import SwitchTransformersConfig
            from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

            config = SwitchTransformersConfig(
                d_model=d, d_ff=k * h, num_experts=n, expert_capacity=10**9, router_jitter_noise=0.0, dropout_rate=0.0
            )
            layer: nn.Module = SwitchTransformersSparseMLP(config)
        else:
            from transformers import MixtralConfig
            from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

            units = round(2 * h / 3 / 8) * 8
            mixtral = MixtralConfig(
                hidden_size=d, intermediate_size=units, num_local_experts=n, num_experts_per_tok=k, hidden_act="relu"
            )
            mixtral._experts_implementation = "grouped_mm" if kind == "mixtral_grouped" else "eager"
            layer = MixtralSparseMoeBlock(mixtral)
    except (ImportError, TypeError, ValueError, AttributeError):
        return None
    for weight in layer.parameters():
        nn.init.normal_(weight, std=d**-0.5)
    return Timed(layer.to(device), batched=True)


def microseconds_per_token(made: dict[str, Timed | None], x: Tensor, repeats: int) -> list[float]:
    """The fastest of so many forward and backward passes of each layer, taken in turns; NaN for one that is missing."""
    best = dict.fromkeys(made, float("nan"))
    pull = torch.ones_like(x)
    for repeat in range(repeats + 1):  # the first one warms up
        for name, layer in made.items():
            if layer is None:
                continue
            begun = now(x.device)
            layer(x.detach().requires_grad_()).backward(pull)
            spent = now(x.device) - begun
            if repeat:
                best[name] = min(best[name], spent) if best[name] == best[name] else spent
    return [1e6 * best[name] / len(x) for name in made]


def summary(experts: Sequence[int], found: Tensor) -> dict[str, float]:
    """Metrics of a run: each time, and the slope of log time on log experts of each layer."""
    metrics: dict[str, float] = {}
    for kind, column in zip(KINDS, found.T, strict=True):
        if column.isnan().any():
            continue
        metrics |= {f"us_per_token/{kind}/{n}": float(us) for n, us in zip(experts, column, strict=True)}
        metrics[f"slope/{kind}"] = slope(experts, column.numpy())
        metrics[f"ratio_of_ours/{kind}"] = float(column[-1] / found[-1, 0])
    return metrics
