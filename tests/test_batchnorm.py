"""Batch normalisation: torch's own over the whole batch, separate ones over ghost batches, one over processes."""

import pytest
import torch
from torch import nn

from common.batchnorm import BatchNorm
from common.errors import UserError


def trained(norm: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients of a loss that weighs every element differently."""
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in norm.parameters())]


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5, 4)])
def test_over_the_whole_batch_it_is_torchs(shape: tuple[int, ...]) -> None:
    theirs = nn.BatchNorm1d(3) if len(shape) == 2 else nn.BatchNorm2d(3)
    ours = BatchNorm(3)
    for step in range(3):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(step)) * 2 + 1
        for a, b in zip(trained(ours, x), trained(theirs, x), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(ours.running_var, theirs.running_var)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_ghost_batches_do_not_see_each_other() -> None:
    x = torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ours, parts = BatchNorm(3, group=4), [nn.BatchNorm2d(3) for _ in range(3)]
    y = ours(x)
    for i, part in enumerate(parts):
        assert torch.equal(y[4 * i : 4 * i + 4], part(x[4 * i : 4 * i + 4]))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), torch.stack([getattr(p, name) for p in parts]).mean(0))
    with pytest.raises(UserError, match="over 4 samples does not fit a batch of 1 x 10; take"):
        ours(x[:10])


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5, 4)])
def test_without_scale_or_running_statistics_a_batch_knows_only_itself(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 1
    norm = BatchNorm(3, eps=1e-8, affine=False, running=False)
    assert not list(norm.parameters())
    others = [d for d in range(x.ndim) if d != 1]
    expected = (x - x.mean(others, keepdim=True)) / (x.var(others, keepdim=True, correction=0) + 1e-8).sqrt()
    norm.double()
    for mode in (norm.train(), norm.eval()):
        torch.testing.assert_close(mode(x), expected)
