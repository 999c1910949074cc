"""LARS as in lars_optimizer.py of google-research/simclr: momentum whose every layer has a step of its own length."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """v <- m v + lr r (g + decay w), w <- w - v, with r = trust |w| / |g + decay w| for each tensor of weights.

    The learning rate is inside v, so a change of it acts on new gradients alone. r is 1 where either norm is 0.

    Args:
        params: groups; one with `adapt` False has neither r nor decay (gains and biases).
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, momentum: float, weight_decay: float, trust: float = 0.001
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update; every operation is over all tensors of a group at once."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            steps: list[Tensor] = [p.grad for p in weights]
            if not weights:
                continue
            for p in weights:
                if not self.state[p]:
                    self.state[p]["v"] = torch.zeros_like(p)
            v = [self.state[p]["v"] for p in weights]
            if group["adapt"]:
                steps = list(torch._foreach_add(steps, weights, alpha=group["weight_decay"]))
                w, g = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, steps))
                ratio = torch.where((w > 0) & (g > 0), group["trust"] * w / g, 1.0)
                torch._foreach_mul_(steps, list((group["lr"] * ratio).unbind()))
            else:
                steps = list(torch._foreach_mul(steps, group["lr"]))
            torch._foreach_mul_(v, group["momentum"])
            torch._foreach_add_(v, steps)
            torch._foreach_sub_(weights, v)
