"""The selective scan (Algorithm 2, Section 3.3): a loop as oracle, chunks in plain torch, and the choice by device.

    h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t x_t        y_t = C_t h_t + D x_t

Shapes: x, delta (b, l, d); A (d, n); B, C (b, l, n); D (d,); state h (b, d, n). The official code discretises A by
zero-order hold and B by Euler's rule (selective_scan_ref), and so does everything here; the loop also knows Eq. 4.

Only `scan_by_loop` is differentiable in the state. The others hand the last state on without a gradient, as is wanted
when a sequence is read in pieces.
"""

import importlib.util
import math

import torch
from torch import Tensor

from common.errors import UserError

# Elements of one chunk's states: what stays in a core's cache, and what keeps a GPU busy.
CHUNK_ON_CPU, CHUNK_ON_GPU = 2**19, 2**26


def scan_by_loop(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    h: Tensor | None = None,
    zero_order_hold: bool = False,
) -> tuple[Tensor, Tensor]:
    """The recurrence word for word: (y (b, l, d), last state).

    Args:
        zero_order_hold: B by Eq. 4, (exp(Delta A) - 1) / A * B, in place of Delta B. Theorem 1 needs it.
    """
    h = x.new_zeros(x.shape[0], *A.shape) if h is None else h
    y = []
    for t in range(x.shape[1]):
        step = delta[:, t, :, None] * A  # (b, d, n)
        gain = torch.expm1(step) / A if zero_order_hold else delta[:, t, :, None]
        h = torch.exp(step) * h + gain * B[:, t, None] * x[:, t, :, None]
        y.append((h * C[:, t, None]).sum(-1) + D * x[:, t])
    return torch.stack(y, 1), h


def recur(a: Tensor, b: Tensor, lanes: int) -> None:
    """b_t += a_t b_{t-1} in place, time first; a is used up.

    Args:
        lanes: pieces of time that advance together. 1 is the recurrence itself, the least work; more lanes are fewer,
            larger steps, with a second pass that carries each lane's end into the next.
    """
    whole = len(b) // lanes * lanes
    if lanes > 1 and whole:
        wide_a, wide_b = (v[:whole].unflatten(0, (lanes, -1)) for v in (a, b))
        for i in range(1, whole // lanes):
            wide_b[:, i].addcmul_(wide_a[:, i], wide_b[:, i - 1])
            wide_a[:, i].mul_(wide_a[:, i - 1])
        for i in range(1, lanes):
            wide_b[i].addcmul_(wide_a[i], wide_b[i - 1, -1])
    rows_a, rows_b = a.unbind(0), b.unbind(0)
    for i in range(max(1, whole if lanes > 1 else 1), len(b)):
        rows_b[i].addcmul_(rows_a[i], rows_b[i - 1])


class Chunked(torch.autograd.Function):
    """The scan chunk by chunk, states in time-major order; the backward pass makes each chunk's states anew.

    What is kept between the passes is the inputs and one state a chunk.
    """

    @staticmethod
    def forward(ctx, x, delta, A, B, C, D, h):
        l, n = x.shape[1], A.shape[1]  # noqa: E741
        length, lanes = _chunk(x, n)
        x_t, delta_t, B_t, C_t = (v.to(A.dtype).transpose(0, 1).contiguous() for v in (x, delta, B, C))
        y, starts = torch.empty_like(x_t), [h]
        for first in range(0, l, length):
            part = slice(first, first + length)
            _, states = _states(x_t[part], delta_t[part], A, B_t[part], h, lanes)
            y[part] = (states @ C_t[part].unsqueeze(-1)).squeeze(-1)
            h = states[-1].clone()
            starts.append(h)
        y.addcmul_(x_t, D)
        ctx.save_for_backward(x, delta, A, B, C, D, *starts[:-1])
        ctx.mark_non_differentiable(h)
        return y.transpose(0, 1).to(x.dtype), h

    @staticmethod
    def backward(ctx, dy, _):
        x, delta, A, B, C, D, *starts = ctx.saved_tensors
        n = A.shape[1]
        length, lanes = _chunk(x, n)
        x_t, delta_t, B_t, C_t, dy_t = (v.to(A.dtype).transpose(0, 1).contiguous() for v in (x, delta, B, C, dy))
        dx, ddelta, dB, dC = (torch.empty_like(v) for v in (x_t, delta_t, B_t, C_t))
        dA = torch.zeros_like(A)
        carried = torch.zeros_like(starts[0])  # a_{t+1} g_{t+1} of the chunk to the right
        for i in reversed(range(len(starts))):
            part = slice(i * length, (i + 1) * length)
            xs, deltas, Bs, Cs, dys = (v[part] for v in (x_t, delta_t, B_t, C_t, dy_t))
            decay, states = _states(xs, deltas, A, Bs, starts[i], lanes)
            dC[part] = (dys.unsqueeze(-2) @ states).squeeze(-2)
            # The adjoint g_t = C_t dy_t + a_{t+1} g_{t+1} is the same recurrence backwards in time.
            g = (dys.unsqueeze(-1) * Cs.unsqueeze(-2)).flip(0)
            g[0] += carried
            shifted = decay.roll(-1, 0).flip(0)
            recur(shifted, g, lanes)
            g = g.flip(0)
            carried = decay[0] * g[0]
            u = deltas * xs
            dB[part] = (u.unsqueeze(-2) @ g).squeeze(-2)
            du = (g @ Bs.unsqueeze(-1)).squeeze(-1)
            decay *= g  # now a_t g_t, and times h_{t-1} the gradient of Delta_t A
            decay[1:] *= states[:-1]
            decay[0] *= starts[i]
            ddelta[part] = (decay * A).sum(-1).addcmul_(du, xs)
            dA += (decay * deltas.unsqueeze(-1)).sum((0, 1))
            dx[part] = du * deltas
        dD = (dy_t * x_t).sum((0, 1))
        dx.addcmul_(dy_t, D)
        found = ((dx, x), (ddelta, delta), (dB, B), (dC, C))
        dx, ddelta, dB, dC = (v.transpose(0, 1).to(like.dtype) for v, like in found)
        return dx, ddelta, dA, dB, dC, dD, None


def _chunk(x: Tensor, n: int) -> tuple[int, int]:
    """(steps of a chunk, lanes)."""
    b, l, d = x.shape  # noqa: E741
    on_cpu = x.device.type == "cpu"
    most = max(1, min(l, (CHUNK_ON_CPU if on_cpu else CHUNK_ON_GPU) // (b * d * n)))
    if on_cpu:
        return most, 1
    length = 1 << (most.bit_length() - 1)
    return length, 1 << (int(math.log2(length)) // 2)


def _states(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, h: Tensor, lanes: int) -> tuple[Tensor, Tensor]:
    """(decays exp(Delta A), states h), both (l, b, d, n), from time-major inputs and the state before them."""
    decay = (delta.unsqueeze(-1) * A).exp_()
    states = (delta * x).unsqueeze(-1) * B.unsqueeze(-2)
    states[0].addcmul_(decay[0], h)
    recur(decay.clone() if lanes > 1 else decay, states, lanes)
    return decay, states


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(y (b, l, d), last state (b, d, n)); the device of x decides how.

    On a GPU the fused kernel, on a CPU compiled code, both in float32 whatever x is; the chunked scan where there is
    no Triton, and in float64.

    Args:
        h: the state before the first step (zero if None); no gradient goes into it, nor into the last state.

    Raises:
        UserError: the sequence is empty.
    """
    if x.shape[1] == 0:
        raise UserError("the selective scan was given a sequence of length 0")
    if h is None:
        h = x.new_zeros(x.shape[0], *A.shape, dtype=A.dtype)
    double = A.dtype == torch.float64
    if x.device.type == "cpu" and not double:
        from papers.mamba.compiled import compiled_scan

        return compiled_scan(x, delta, A, B, C, D, h)
    if x.device.type == "cuda" and not double and importlib.util.find_spec("triton"):
        from papers.mamba.fused import fused_scan

        return fused_scan(x, delta, A, B, C, D, h)
    return Chunked.apply(x, delta, A, B, C, D, h)
