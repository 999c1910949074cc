"""Attention with weights that are kept: equal to torch's, gradients too, as near as bfloat16 is."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from common.attention import Kept, attention


def both(q: Tensor, k: Tensor, v: Tensor, dy: Tensor, scale: float) -> list[Tensor]:
    q, k, v = (each.detach().requires_grad_() for each in (q, k, v))
    y = attention(q, k, v, scale)
    return [y.detach(), *torch.autograd.grad(y, (q, k, v), dy)]


@pytest.mark.parametrize("asking", [17, 5])
def test_bfloat16_is_as_near_the_truth_as_torchs(asking: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    k, v = torch.randn(2, 3, 4, 17, 8, dtype=torch.float64)
    q, dy = torch.randn(2, 3, 4, asking, 8, dtype=torch.float64)
    truth = both(q, k, v, dy, 0.5)
    rounded = [each.bfloat16() for each in (q, k, v, dy)]
    assert type(attention(*(each.requires_grad_() for each in rounded[:3]), 0.5).grad_fn).__name__ == "KeptBackward"
    ours = both(*rounded, 0.5)
    monkeypatch.setattr(Kept, "apply", lambda q, k, v, scale: scaled_dot_product_attention(q, k, v, scale=scale))
    theirs = both(*rounded, 0.5)
    for true, mine, fused in zip(truth, ours, theirs, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - true).norm() < 1.5 * (fused - true).norm() < 0.02 * true.norm()


def test_autocast_and_its_weights_stay_in_bfloat16() -> None:
    q, k, v = torch.randn(3, 2, 4, 17, 8).bfloat16().requires_grad_().unbind()
    with torch.autocast("cpu", torch.bfloat16):
        y = attention(q, k, v, 0.5)
    assert y.dtype == torch.bfloat16
    assert {each.dtype for each in y.grad_fn.saved_tensors} == {torch.bfloat16}  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_gradients_it_is_torchs(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 2, 4, 17, 8).to(dtype)
    with torch.no_grad():
        found = attention(q, k, v, 0.5)
    assert torch.equal(found, scaled_dot_product_attention(q, k, v, scale=0.5))
