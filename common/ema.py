"""Exponential moving average of weights."""

import copy

import torch


class EMA:
    """A shadow of a model: shadow = decay * shadow + (1 - decay) * weights after every update."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        shadow, live = self.model.state_dict(), model.state_dict()
        for name, value in shadow.items():
            if value.is_floating_point():
                value.lerp_(live[name], 1 - self.decay)
            else:
                value.copy_(live[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.model.load_state_dict(state)
