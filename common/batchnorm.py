"""Batch normalisation over a stated number of samples, however many processes share the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce

from common.errors import UserError


class BatchNorm(nn.Module):
    """Normalises each channel by the statistics of `group` samples of the global batch ("ghost batch"), then scales.

    A paper's batch normalisation is defined by how many samples share statistics: 64 where it trained batches of 128
    on two GPUs. Groups are consecutive samples; a process holds several groups or, by exchanging sums, a part of one.
    The running statistics are the mean over a batch's groups (over processes: `common.fit`), used in evaluation.

    Args:
        channels: c of the input (b, c, ...).
        group: samples that share statistics; None: the whole global batch.
        affine: scale and shift.
        running: evaluate by the running statistics; else by those of the batch that this process holds.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        channels: int,
        group: int | None = None,
        momentum: float = 0.1,
        eps: float = 1e-5,
        affine: bool = True,
        running: bool = True,
    ) -> None:
        super().__init__()
        self.group, self.momentum, self.eps, self.running = group, momentum, eps, running
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def extra_repr(self) -> str:
        return f"{len(self.running_mean)}, group={self.group}"

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, ...) -> the same shape.

        Raises:
            UserError: the groups do not divide the batch.
        """
        if not self.training:
            mean, var = (self.running_mean, self.running_var) if self.running else (None, None)
            return F.batch_norm(x, mean, var, self.weight, self.bias, not self.running, 0.0, self.eps)
        world = distributed.get_world_size() if distributed.is_initialized() else 1
        b = len(x)
        group = self.group or b * world
        if group > b and world > 1 and group % b == 0 and b * world % group == 0:
            return self._spread(x, group // b)
        if b % group:
            raise UserError(
                f"batch normalisation over {group} samples does not fit a batch of {world} x {b}; take a multiple"
            )
        if group == b:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
            )
        means, variances, parts = [], [], []
        for part in x.split(group):
            means.append(self.running_mean.clone())
            variances.append(self.running_var.clone())
            parts.append(
                F.batch_norm(part, means[-1], variances[-1], self.weight, self.bias, True, self.momentum, self.eps)
            )
        self.running_mean.copy_(torch.stack(means).mean(0))
        self.running_var.copy_(torch.stack(variances).mean(0))
        return torch.cat(parts)

    def _spread(self, x: Tensor, processes: int) -> Tensor:
        """Statistics over several processes: exchanges the means, then the mean squared deviations."""
        rank, world = distributed.get_rank(), distributed.get_world_size()
        others = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)

        def mean(value: Tensor) -> Tensor:
            mine = torch.arange(world // processes, device=x.device)[:, None] == rank // processes
            return all_reduce(mine * value.mean(others) / processes)[rank // processes]

        values = x.float()
        mu = mean(values)
        centred = values - mu.view(shape)
        variance = mean(centred.square())
        n = processes * x.numel() // x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mu, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is None or self.bias is None:
            return (centred * scale.view(shape)).to(x.dtype)
        return (centred * (self.weight * scale).view(shape) + self.bias.view(shape)).to(x.dtype)
