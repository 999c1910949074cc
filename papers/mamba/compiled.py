"""The selective scan on a CPU as compiled code: discretise, recur and read out in one pass, states in registers.

The plan is the paper's (Section 3.3.2) with the caches of a core in the place of a GPU's SRAM: no state of length l is
ever written; one state in STEPS is kept, and the backward pass makes the others anew. The inner loop runs over LANES
channels, which the compiler turns into vectors; for that exp must be arithmetic, not a call.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.elementary import exp, vectorised
from common.threads import each

LANES, STEPS = 16, 32  # channels that advance together; steps of a chunk
GROUP = 64  # channels of one thread's task: fixed, so that sums do not depend on the number of threads


@vectorised
def _forward(x, delta, A, B, C, D, h, y, starts, first, last):
    """One sequence, channels first..last; A and h are (n, d); starts is (chunks, n, d)."""
    length, n = B.shape
    u = np.empty(LANES, np.float32)
    out = np.empty(LANES, np.float32)
    dl = np.empty(LANES, np.float32)
    s = np.empty((n, LANES), np.float32)
    a = np.empty((n, LANES), np.float32)
    for c in range(first, last, LANES):
        for k in range(n):
            for j in range(LANES):
                s[k, j] = h[k, c + j]
                a[k, j] = A[k, c + j]
        for t in range(length):
            if t % STEPS == 0:
                for k in range(n):
                    for j in range(LANES):
                        starts[t // STEPS, k, c + j] = s[k, j]
            for j in range(LANES):
                dl[j] = delta[t, c + j]
                u[j] = dl[j] * x[t, c + j]
                out[j] = D[c + j] * x[t, c + j]
            for k in range(n):
                Bk, Ck = B[t, k], C[t, k]
                for j in range(LANES):
                    v = exp(dl[j] * a[k, j]) * s[k, j] + u[j] * Bk
                    s[k, j] = v
                    out[j] += v * Ck
            for j in range(LANES):
                y[t, c + j] = out[j]
        for k in range(n):
            for j in range(LANES):
                h[k, c + j] = s[k, j]


@vectorised
def _backward(x, delta, A, B, C, D, starts, dy, dx, ddelta, dA, dB, dC, dD, first, last):
    """One sequence, channels first..last: dx, ddelta, dA, dD are written, dB and dC (of these channels) added to."""
    length, n = B.shape
    states = np.empty((STEPS + 1, n, LANES), np.float32)
    decays = np.empty((STEPS, n, LANES), np.float32)
    a = np.empty((n, LANES), np.float32)
    da = np.zeros((n, LANES), np.float32)
    g = np.zeros((n, LANES), np.float32)  # a_{t+1} g_{t+1}
    dl, u, xs, dys, du, ddl, dd, gain = np.zeros((8, LANES), np.float32)
    for c in range(first, last, LANES):
        for k in range(n):
            for j in range(LANES):
                a[k, j] = A[k, c + j]
                da[k, j] = 0.0
                g[k, j] = 0.0
        for j in range(LANES):
            gain[j] = D[c + j]
            dd[j] = 0.0
        for chunk in range((length - 1) // STEPS, -1, -1):
            begin = chunk * STEPS
            steps = min(STEPS, length - begin)
            for k in range(n):
                for j in range(LANES):
                    states[0, k, j] = starts[chunk, k, c + j]
            for i in range(steps):
                for j in range(LANES):
                    dl[j] = delta[begin + i, c + j]
                    u[j] = dl[j] * x[begin + i, c + j]
                for k in range(n):
                    Bk = B[begin + i, k]
                    for j in range(LANES):
                        e = exp(dl[j] * a[k, j])
                        decays[i, k, j] = e
                        states[i + 1, k, j] = e * states[i, k, j] + u[j] * Bk
            for i in range(steps - 1, -1, -1):
                t = begin + i
                for j in range(LANES):
                    dl[j] = delta[t, c + j]
                    xs[j] = x[t, c + j]
                    u[j] = dl[j] * xs[j]
                    dys[j] = dy[t, c + j]
                    du[j] = 0.0
                    ddl[j] = 0.0
                for k in range(n):
                    Bk, Ck = B[t, k], C[t, k]
                    dBk, dCk = np.float32(0), np.float32(0)
                    for j in range(LANES):
                        adjoint = g[k, j] + dys[j] * Ck
                        dCk += dys[j] * states[i + 1, k, j]
                        dBk += adjoint * u[j]
                        du[j] += adjoint * Bk
                        adjoint *= decays[i, k, j]
                        g[k, j] = adjoint
                        step = adjoint * states[i, k, j]  # gradient of Delta_t A
                        ddl[j] += step * a[k, j]
                        da[k, j] += step * dl[j]
                    dB[t, k] += dBk
                    dC[t, k] += dCk
                for j in range(LANES):
                    ddelta[t, c + j] = ddl[j] + du[j] * xs[j]
                    dx[t, c + j] = du[j] * dl[j] + dys[j] * gain[j]
                    dd[j] += dys[j] * xs[j]
        for k in range(n):
            for j in range(LANES):
                dA[k, c + j] = da[k, j]
        for j in range(LANES):
            dD[c + j] = dd[j]


def _shares(sequences: int, channels: int) -> list[tuple[int, int, int]]:
    """(sequence, first channel, last channel) of all threads' tasks."""
    return [(i, c, min(c + GROUP, channels)) for i in range(sequences) for c in range(0, channels, GROUP)]


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [t.detach().contiguous().numpy() for t in tensors]


class Compiled(torch.autograd.Function):
    """The scan of `papers.mamba.scan` in float32 on a CPU; shapes as there, d a multiple of LANES, h (b, d, n)."""

    @staticmethod
    def forward(ctx, x, delta, A, B, C, D, h):
        dtype, (b, l, d), n = x.dtype, x.shape, A.shape[1]  # noqa: E741
        D = D.clone()  # a weight: numpy would pin its memory, which FSDP must be able to free
        x, delta, A, B, C, D = (v.float().contiguous() for v in (x, delta, A.mT, B, C, D))
        last, y = h.mT.clone(memory_format=torch.contiguous_format), torch.empty_like(x)
        starts = torch.empty(b, -(-l // STEPS), n, d)
        xs, deltas, As, Bs, Cs, Ds, hs, ys, kept = _arrays(x, delta, A, B, C, D, last, y, starts)

        def task(i: int, first: int, end: int) -> None:
            _forward(xs[i], deltas[i], As, Bs[i], Cs[i], Ds, hs[i], ys[i], kept[i], first, end)

        each(task, _shares(b, d))
        ctx.save_for_backward(x, delta, A, B, C, D, starts)
        last = last.mT
        ctx.mark_non_differentiable(last)
        return y.to(dtype), last

    @staticmethod
    def backward(ctx, dy, _):
        x, delta, A, B, C, D, starts = ctx.saved_tensors
        b, l, d = x.shape  # noqa: E741
        n, groups = len(A), -(-d // GROUP)
        dx, ddelta = torch.empty_like(x), torch.empty_like(x)
        dA, dD = x.new_empty(b, n, d), x.new_empty(b, d)
        dB, dC = x.new_zeros(2, groups, b, l, n)  # of each group of channels
        held = _arrays(x, delta, A, B, C, D, starts, dy.float(), dx, ddelta, dA, dB, dC, dD)
        xs, deltas, As, Bs, Cs, Ds, kept, dys, dxs, ddeltas, dAs, dBs, dCs, dDs = held

        def task(i: int, first: int, end: int) -> None:
            g = first // GROUP
            _backward(
                xs[i], deltas[i], As, Bs[i], Cs[i], Ds, kept[i], dys[i],
                dxs[i], ddeltas[i], dAs[i], dBs[g, i], dCs[g, i], dDs[i], first, end,
            )  # fmt: skip

        each(task, _shares(b, d))
        return dx, ddelta, dA.sum(0).mT, dB.sum(0), dC.sum(0), dD.sum(0), None


def compiled_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """(y, last state); channels are filled up to a multiple of LANES."""
    d = x.shape[2]
    spare = -d % LANES
    if spare:
        x, delta, D = (F.pad(v, (0, spare)) for v in (x, delta, D))
        A, h = F.pad(A, (0, 0, 0, spare)), F.pad(h, (0, 0, 0, spare))
    y, last = Compiled.apply(x, delta, A, B, C, D, h)
    return (y[..., :d], last[:, :d]) if spare else (y, last)
