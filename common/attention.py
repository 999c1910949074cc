"""Scaled dot-product attention, with a backward pass of its own where torch's is the slow part."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T) v (Vaswani et al. 2017, Eq. 1): (b, heads, n, c), (b, heads, m, c) twice -> q's shape."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
        return Kept.apply(q, k, v, scale)
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


class Kept(torch.autograd.Function):
    """Keeps the weights for the backward pass, which then is four products.

    torch's fused kernel makes them anew in small tiles, which in bfloat16 on a CPU takes three times as long (37 ms to
    13 for 16 pictures of 197 tokens on one core) and saves little memory as long as there are few tokens.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # else autocast keeps the weights in float32
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k, v = q.contiguous() * scale, k.contiguous(), v.contiguous()  # once: every product would copy them
        a = (q @ k.mT).softmax(-1)
        ctx.save_for_backward(q, k, v, a)
        ctx.scale = scale
        return a @ v

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, a = ctx.saved_tensors
        dy = dy.contiguous()
        ds = torch.ops.aten._softmax_backward_data(dy @ v.mT, a, -1, a.dtype)
        return (ds @ k).mul_(ctx.scale), ds.mT @ q, a.mT @ dy, None
