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
        moving = [name for name, value in shadow.items() if value.is_floating_point()]
        # one kernel for all of them: on a GPU hundreds of small ones would take as long as a step's update
        torch._foreach_lerp_([shadow[name] for name in moving], [live[name] for name in moving], 1 - self.decay)
        for name in shadow.keys() - set(moving):
            shadow[name].copy_(live[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.model.load_state_dict(state)
