"""The time loop of a spiking layer on a CPU, forwards and backwards, as compiled code.

A row (one sample) goes through all its steps before the next one begins: current, membrane and adjoints of a layer stay
in a core's first cache, and what must be kept of a step is written once. Input spikes that are known as times are
scattered into the current, so that a silent input costs nothing; recurrent spikes likewise. Forwards the arithmetic is
that of `papers.snn.model.lif_steps`, operation by operation: both give the same bits.
"""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from common.elementary import exp
from papers.snn.model import RESETS, SURROGATES, Neuron, Times

WHOLE, BEFORE, SUBTRACT, NONE = (RESETS.index(name) for name in ("whole", "before", "subtract", "none"))
SUPERSPIKE, ASYMPTOTIC, SIGMOID, ESSER, RECTANGLE, ARCTAN, SPIKE = (
    SURROGATES.index(name) for name in ("superspike", "asymptotic", "sigmoid", "esser", "rectangle", "arctan", "spike")
)

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def _forward(x, times, W, V, numbers, kinds, S, P, count):
    """All rows of one net: S (b, T, u) spikes, P (b, T, u) membrane, count (b, u) spikes of a row."""
    b, gain, b_syn, theta, start, one, zero = numbers
    reset, lag, lag_recurrent, lag_reset, spiking = kinds[0], kinds[1], kinds[2], kinds[3], kinds[4]
    rows, steps, u = P.shape
    n, dense, recurrent = times.shape[1], x.shape[1], V.shape[0] > 0
    J, U = np.empty(u, P.dtype), np.empty(u, P.dtype)
    first, following = np.empty(steps, np.int32), np.empty(n, np.int32)  # inputs of a step, as a chain
    for r in range(rows):
        J[:], U[:], count[r, :] = zero, start, zero
        first[:] = -1
        for i in range(n - 1, -1, -1):
            t = times[r, i] + lag
            if t < steps:
                following[i], first[t] = first[t], i
        for t in range(steps):
            for j in range(u):
                J[j] = b_syn * J[j]
            if dense > 0 and t >= lag:
                current = x[r, t - lag if dense > 1 else 0]
                for j in range(u):
                    J[j] += current[j]
            if n > 0:
                i = first[t]
                while i >= 0:
                    for j in range(u):
                        J[j] += W[i, j]
                    i = following[i]
            if recurrent and t >= lag_recurrent:
                for i in range(u):
                    if S[r, t - lag_recurrent, i] != zero:
                        for j in range(u):
                            J[j] += V[i, j]
            p, s = P[r, t], S[r, t if spiking else 0]
            if t >= lag_reset and spiking:
                R = S[r, t - lag_reset]
                if reset == WHOLE:
                    for j in range(u):
                        p[j] = b * U[j] + gain * J[j]
                        U[j] = p[j] * (one - R[j])
                elif reset == BEFORE:
                    for j in range(u):
                        U[j] = b * U[j] * (one - R[j]) + gain * J[j]
                        p[j] = U[j]
                else:
                    for j in range(u):
                        U[j] = b * U[j] + gain * J[j] - theta * R[j]
                        p[j] = U[j]
            else:
                for j in range(u):
                    U[j] = b * U[j] + gain * J[j]
                    p[j] = U[j]
            if spiking:
                for j in range(u):
                    s[j] = one if U[j] > theta else zero
                for j in range(u):
                    count[r, j] += s[j]


@_compiled
def _backward(times, Vt, numbers, kinds, beta, S, P, dS, dP, dcount, dx, dW, dV):
    """Adjoints of `_forward`: dx is written, dW and dV are added to; dS, dP and dcount may be empty."""
    b, gain, b_syn, theta, _, one, zero = numbers
    reset, lag, lag_recurrent, lag_reset, spiking = kinds[0], kinds[1], kinds[2], kinds[3], kinds[4]
    through_reset, through_recurrence, shape = kinds[5], kinds[6], kinds[7]
    rows, steps, u = P.shape
    n, dense, recurrent = times.shape[1], dx.shape[1], Vt.shape[0] > 0
    q = np.zeros((steps + 1, u), P.dtype)  # adjoint of the current J
    a = np.empty((steps, u), P.dtype)  # adjoint of the membrane U
    carry, g, whole, before = np.empty((4, u), P.dtype)
    for r in range(rows):
        carry[:] = zero
        for t in range(steps - 1, -1, -1):
            at, qt, after, p = a[t], q[t], q[t + 1], P[r, t]
            # what the reset multiplies, where it does
            whole[:], before[:] = one, one
            if spiking and t >= lag_reset and reset != SUBTRACT:
                kept, R = whole if reset == WHOLE else before, S[r, t - lag_reset]
                for j in range(u):
                    kept[j] = one - R[j]
            if spiking:
                # g: adjoint of the spikes
                if dS.shape[0] > 0 and dcount.shape[0] > 0:
                    above, count = dS[r, t], dcount[r]
                    for j in range(u):
                        g[j] = above[j] + count[j]
                elif dS.shape[0] > 0:
                    g[:] = dS[r, t]
                elif dcount.shape[0] > 0:
                    g[:] = dcount[r]
                else:
                    g[:] = zero
                if recurrent and through_recurrence and t + lag_recurrent < steps:
                    back, wide = q[t + lag_recurrent], u // 4 * 4
                    for i in range(0, wide, 4):  # four rows at once: g is read and written a quarter as often
                        v0, v1, v2, v3 = Vt[i], Vt[i + 1], Vt[i + 2], Vt[i + 3]
                        b0, b1, b2, b3 = back[i], back[i + 1], back[i + 2], back[i + 3]
                        for j in range(u):
                            g[j] += v0[j] * b0 + v1[j] * b1 + v2[j] * b2 + v3[j] * b3
                    for i in range(wide, u):
                        for j in range(u):
                            g[j] += Vt[i, j] * back[i]
                if through_reset and t + lag_reset < steps:
                    later = a[t + lag_reset]
                    if reset == WHOLE:
                        ahead = P[r, t + lag_reset]
                        for j in range(u):
                            g[j] -= later[j] * ahead[j]
                    elif reset == BEFORE:
                        ahead = P[r, t + lag_reset - 1]
                        for j in range(u):
                            g[j] -= later[j] * b * ahead[j]
                    else:
                        for j in range(u):
                            g[j] -= later[j] * theta
                # through the surrogate to the membrane
                if shape == SUPERSPIKE:
                    for j in range(u):
                        z = beta * abs(p[j] * whole[j] - theta) + one
                        at[j] = carry[j] + g[j] / (z * z)
                elif shape == ASYMPTOTIC:
                    for j in range(u):
                        z = beta * abs(p[j] * whole[j] - theta) + one
                        at[j] = carry[j] + g[j] * beta / (z * z)
                elif shape == SIGMOID:
                    for j in range(u):
                        z = exp(-beta * abs(p[j] * whole[j] - theta))
                        at[j] = carry[j] + g[j] * z / ((one + z) * (one + z))
                elif shape == ESSER:
                    for j in range(u):
                        at[j] = carry[j] + g[j] * max(zero, one - beta * abs(p[j] * whole[j] - theta))
                elif shape == RECTANGLE:
                    for j in range(u):
                        at[j] = carry[j] + (g[j] if beta * abs(p[j] * whole[j] - theta) < one else zero)
                elif shape == ARCTAN:
                    for j in range(u):
                        z = beta * (p[j] * whole[j] - theta)
                        at[j] = carry[j] + g[j] / (one + z * z)
                elif shape == SPIKE:
                    s = S[r, t]
                    for j in range(u):
                        at[j] = carry[j] + g[j] * s[j]
                else:
                    at[:] = carry
            else:
                at[:] = carry
            if dP.shape[0] > 0:
                above = dP[r, t]
                for j in range(u):
                    at[j] += above[j]
            for j in range(u):
                m = at[j] * whole[j]
                qt[j] = gain * m + b_syn * after[j]
                carry[j] = b * m * before[j]
        for i in range(n):
            t = times[r, i] + lag
            if t < steps:
                for j in range(u):
                    dW[i, j] += q[t, j]
        if recurrent:
            for t in range(lag_recurrent, steps):
                for i in range(u):
                    if S[r, t - lag_recurrent, i] != zero:
                        for j in range(u):
                            dV[i, j] += q[t, j]
        if dense == 1:
            dx[r, 0] = zero
            for t in range(lag, steps):
                for j in range(u):
                    dx[r, 0, j] += q[t, j]
        elif dense > 1:
            for t in range(lag, steps):
                dx[r, t - lag] = q[t]
            for t in range(max(0, steps - lag), steps):
                dx[r, t] = zero


def _array(tensor: Tensor | None, like: Tensor, *shape: int) -> np.ndarray:
    """A tensor as an array; where there is none, an array of a shape without elements."""
    if tensor is None:
        return np.empty(shape, like.numpy().dtype)
    return tensor.detach().contiguous().numpy()


class Compiled(torch.autograd.Function):
    """`papers.snn.model.lif` on a CPU; shapes as there."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor | None, weight: Tensor | None, V: Tensor | None, times: Times | None, neuron: Neuron,
        beta: list[float], steps: int,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:  # fmt: skip
        like = x if x is not None else weight
        assert like is not None
        s, rows = (x if x is not None else times.when).shape[:2]  # type: ignore[union-attr]
        u = like.shape[-1]
        spikes = like.new_empty(s, rows, steps, u) if neuron.reset != "none" else None
        potential = like.new_empty(s, rows, steps, u)
        count = like.new_empty(s, rows, u) if spikes is not None else None
        when = times.when.contiguous().numpy() if times is not None else np.empty((s, rows, 0), np.int32)
        ctx.numbers = np.array(
            [neuron.decay, neuron.gain, neuron.decay_syn, neuron.threshold, neuron.start, 1, 0], potential.numpy().dtype
        )
        ctx.kinds = (
            RESETS.index(neuron.reset), neuron.lag, neuron.lag_recurrent, neuron.lag_reset, int(spikes is not None),
            int(neuron.reset_gradient), int(neuron.recurrent_gradient), SURROGATES.index(neuron.surrogate),
        )  # fmt: skip
        ctx.when, ctx.beta = when, beta
        ctx.inputs = None if x is None else x.shape[2]
        ctx.save_for_backward(weight, V, spikes, potential)
        ctx.set_materialize_grads(False)
        if neuron.reset == "whole":
            ctx.mark_non_differentiable(potential)
        xs, Ws, Vs = _array(x, like, s, rows, 0, u), _array(weight, like, s, 0, u), _array(V, like, s, 0, u)
        Ss, Ps, counts = _array(spikes, like, s, rows, 1, u), potential.numpy(), _array(count, like, s, rows, u)
        for i in range(s):
            _forward(xs[i], when[i], Ws[i], Vs[i], tuple(ctx.numbers), ctx.kinds, Ss[i], Ps[i], counts[i])
        return spikes, potential, count

    @staticmethod
    def backward(ctx: Any, dS: Tensor | None, dP: Tensor | None, dcount: Tensor | None) -> Any:
        weight, V, spikes, potential = ctx.saved_tensors
        s, rows, _, u = potential.shape
        dx = potential.new_empty(s, rows, ctx.inputs, u) if ctx.inputs is not None else None
        dW = torch.zeros_like(weight) if weight is not None else None
        dV = torch.zeros_like(V) if V is not None else None
        empty = (s, 0, 0, u)
        Vs, Ss, Ps = (
            _array(None if V is None else V.mT, potential, s, 0, u),
            _array(spikes, potential, s, rows, 1, u),
            potential.numpy(),
        )
        dSs, dPs = _array(dS, potential, *empty), _array(dP, potential, *empty)
        dcounts = _array(dcount, potential, s, 0, u)
        dxs, dWs, dVs = (
            _array(dx, potential, s, rows, 0, u),
            _array(dW, potential, s, 0, u),
            _array(dV, potential, s, 0, u),
        )
        for i in range(s):
            _backward(
                ctx.when[i], Vs[i], tuple(ctx.numbers), ctx.kinds, potential.numpy().dtype.type(ctx.beta[i]), Ss[i],
                Ps[i], dSs[i], dPs[i], dcounts[i], dxs[i], dWs[i], dVs[i],
            )  # fmt: skip
        return dx, dW, dV, None, None, None, None
