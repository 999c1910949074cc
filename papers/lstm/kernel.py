"""The learning algorithm of appendix A.1, one sequence after the other, as compiled code for one net.

Everything is laid out source-major: `W[source, unit]`, sources being the inputs, the units fed back and last the bias
(a constant 1). Hidden units are numbered cells first, then input gates, output gates, forget gates. Inputs are sparse
(see `data.Sequences`), so a symbol of an alphabet of 1,000 costs as much as one of an alphabet of 4.

The autograd version of the same algorithm is `model.LSTM`; the tests compare them to 1e-10.
"""

import math
from typing import Any, NamedTuple

import numba
import numpy as np

from papers.lstm.data import Sequences


class Net(NamedTuple):
    """The shape of a net."""

    inputs: int
    outputs: int
    blocks: int
    size: int  # cells of a block, which share its gates
    fed_back: int  # hidden units seen at the next step: 0, the cells, or all (cells and gates)
    output_gates: int  # 0 or 1
    forget_gates: int  # 0 or 1 (Gers et al. 2000)
    skip: int  # 1: output units see the inputs too
    g_wide: int  # 1: g in [-2, 2]; 0: g logistic in [0, 1]
    h_wide: int  # 1: h in [-1, 1]; 0: h identity
    keep: float  # fixed self-recurrence of a cell: 1 is the constant error carousel


class Rule(NamedTuple):
    """How to learn, what counts as an error, and when to stop."""

    full: int  # 1: the whole gradient instead of the truncated one
    per_step: int  # 1: weights change at every error signal; 0: by the sum over the sequence, at its end
    reset: int  # 1: activations and cell states start at 0 in every sequence
    legal_targets: int  # 1: the target of every legal successor is 1; 0: of the next symbol alone
    judge: int  # END, ALL or ORDER
    tolerance: float  # an absolute error below this is right
    stream: int  # 1: stop in the middle of a sequence at the first error
    max_wrong: int  # window rule: stop when at most so many of the last sequences are wrong (-1: no such rule) ...
    max_error: float  # ... and their average absolute error is below this


END, ALL, ORDER = 0, 1, 2  # judged at the last error signal; at all; at all by order: legal symbols above illegal ones
N, WRONG = 0, 1  # counters: sequences learned; wrong ones among those in the window


def hidden_units(net: Net) -> int:
    return net.blocks * (net.size + 1 + net.output_gates + net.forget_gates)


def empty_carry(net: Net) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a net carries from step to step: y(t-1), s(t-1), ∂s/∂w of cell input, input gate and forget gate."""
    cells = net.blocks * net.size
    return (
        np.zeros(hidden_units(net)),
        np.zeros(cells),
        np.zeros((2 + net.forget_gates, cells, net.inputs + net.fed_back + 1)),
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _full_gradient(net: Net, W: Any, V: Any, data: Any, first: int, steps: int, tape: Any, dW: Any) -> None:
    """Add ∂/∂W by back-propagation through time along every path (section 6), from the steps kept on the tape."""
    y_tape, s_tape, g_tape, e_tape = tape
    C, B, H, R, n_in = net.blocks * net.size, net.blocks, W.shape[1], net.fed_back, net.inputs
    out0, forget0 = C + B, C + B * (1 + net.output_gates)
    ds, dy, delta = np.zeros(C), np.zeros(H), np.zeros(H)
    for t in range(steps - 1, -1, -1):
        y, s = y_tape[t + 1], s_tape[t + 1]
        delta[:] = dy
        for c in range(C):
            b = c // net.size
            back = dy[c]
            for k in range(V.shape[1]):
                back += V[c, k] * e_tape[t, k]
            sig = _logistic(s[c])
            h, dh = (2.0 * sig - 1.0, 2.0 * sig * (1.0 - sig)) if net.h_wide else (s[c], 1.0)
            if net.output_gates:
                delta[out0 + b] += h * back
                ds[c] += y[out0 + b] * dh * back
            else:
                ds[c] += dh * back
            delta[C + b] += ds[c] * g_tape[t, c]
            g = (g_tape[t, c] + 2.0) / 4.0 if net.g_wide else g_tape[t, c]
            delta[c] = ds[c] * y[C + b] * g * (1.0 - g) * (4.0 if net.g_wide else 1.0)
            if net.forget_gates:
                delta[forget0 + b] += ds[c] * s_tape[t, c] * net.keep
                ds[c] *= y[forget0 + b]
            ds[c] *= net.keep
        for u in range(C, H):
            delta[u] *= y[u] * (1.0 - y[u])
        for j in range(data.unit.shape[1]):
            i, x = data.unit[first + t, j], data.value[first + t, j]
            for u in range(H):
                dW[i, u] += x * delta[u]
        dy[:] = 0.0
        for r in range(R):
            for u in range(H):
                dW[n_in + r, u] += y_tape[t, r] * delta[u]
                dy[r] += W[n_in + r, u] * delta[u]
        for u in range(H):
            dW[n_in + R, u] += delta[u]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def run(
    net: Net,
    rule: Rule,
    W: Any,  # (inputs + fed_back + 1, hidden), changed in place
    V: Any,  # (cells + inputs if skip + 1, outputs), changed in place
    learns: Any,  # (hidden + 1,): 1 where a unit has a bias; last: whether the output units have
    carry: Any,  # (y, s, ∂s/∂w), changed in place
    lr: float,
    active: int,  # 0: the hidden layer is not there yet (task 2a)
    data: Sequences,
    first: int,
    last: int,  # sequences first ... last - 1
    enough: int,  # without learning: stop when more than so many sequences are wrong
    window: Any,  # (wrong (n,), error (n,), counters (2,)) of the last n sequences learned, changed in place
    said: Any,  # (3, >= last - first): for each sequence wrong or not, mean absolute and mean squared error
) -> tuple[int, int, bool]:
    """Read sequences and, where lr > 0, learn. Returns (sequences read, rows read, stopped by a rule or an error)."""
    y, s, P = carry
    flags, errors, counters = window
    C, B, H, R, K = net.blocks * net.size, net.blocks, W.shape[1], net.fed_back, V.shape[1]
    n_in, out0, forget0 = net.inputs, C + net.blocks, C + net.blocks * (1 + net.output_gates)
    bias, out_bias = n_in + R, V.shape[0] - 1
    learn = lr > 0.0
    now, g, e, e_s, d_out = np.zeros(H), np.zeros(C), np.zeros(K), np.zeros(C), np.zeros(B)
    output = np.zeros(K)
    dW, dV = np.zeros(W.shape), np.zeros(V.shape)
    longest = 0
    if rule.full:
        for i in range(first, last):
            longest = max(longest, data.start[i + 1] - data.start[i])
    tape = (np.zeros((longest + 1, H)), np.zeros((longest + 1, C)), np.zeros((longest, C)), np.zeros((longest, K)))
    total_wrong = 0

    for i in range(first, last):
        if rule.reset:
            y[:] = 0.0
            s[:] = 0.0
            P[:] = 0.0
        worst, mean_error, mean_square, judged = 0.0, 0.0, 0.0, 0
        if rule.full:
            tape[0][0] = y
            tape[1][0] = s
        for row in range(data.start[i], data.start[i + 1]):
            if active:
                # ---- forward: net inputs from x(t) and y(t-1), then gates, then cells
                for u in range(H):
                    now[u] = W[bias, u]
                for j in range(data.unit.shape[1]):
                    x, source = data.value[row, j], data.unit[row, j]
                    for u in range(H):
                        now[u] += x * W[source, u]
                for r in range(R):
                    x = y[r]
                    for u in range(H):
                        now[u] += x * W[n_in + r, u]
                for u in range(C, H):
                    now[u] = _logistic(now[u])
                for c in range(C):
                    b = c // net.size
                    sig = _logistic(now[c])
                    g[c] = 4.0 * sig - 2.0 if net.g_wide else sig
                    # ---- ∂s/∂w: what each source of this step adds, times y(t-1) or x(t) below
                    y_in = now[C + b]
                    f = net.keep * now[forget0 + b] if net.forget_gates else net.keep
                    if learn and not rule.full:
                        by_cell = y_in * sig * (1.0 - sig) * (4.0 if net.g_wide else 1.0)
                        by_in = g[c] * y_in * (1.0 - y_in)
                        by_forget = s[c] * f * (1.0 - now[forget0 + b]) if net.forget_gates else 0.0
                        if f != 1.0:
                            for k in range(P.shape[0]):
                                for source in range(bias + 1):
                                    P[k, c, source] *= f
                        for j in range(data.unit.shape[1]):
                            x, source = data.value[row, j], data.unit[row, j]
                            P[0, c, source] += x * by_cell
                            P[1, c, source] += x * by_in
                            if net.forget_gates:
                                P[2, c, source] += x * by_forget
                        for r in range(R):
                            P[0, c, n_in + r] += y[r] * by_cell
                            P[1, c, n_in + r] += y[r] * by_in
                            if net.forget_gates:
                                P[2, c, n_in + r] += y[r] * by_forget
                        P[0, c, bias] += by_cell
                        P[1, c, bias] += by_in
                        if net.forget_gates:
                            P[2, c, bias] += by_forget
                    s[c] = f * s[c] + y_in * g[c]
                    h = 2.0 * _logistic(s[c]) - 1.0 if net.h_wide else s[c]
                    now[c] = h * now[out0 + b] if net.output_gates else h
                if rule.full:
                    t = row - data.start[i]
                    tape[0][t + 1] = now
                    tape[1][t + 1] = s
                    tape[2][t] = g
                    tape[3][t] = 0.0

            if data.target[row] >= 0:
                # ---- output units of the same step, their errors, and the verdict on them
                for k in range(K):
                    output[k] = V[out_bias, k]
                if active:
                    for c in range(C):
                        for k in range(K):
                            output[k] += now[c] * V[c, k]
                if net.skip:
                    for j in range(data.unit.shape[1]):
                        for k in range(K):
                            output[k] += data.value[row, j] * V[C + data.unit[row, j], k]
                step_worst, step_error, step_square = 0.0, 0.0, 0.0
                lowest_legal, highest_illegal = 2.0, -1.0
                for k in range(K):
                    output[k] = _logistic(output[k])
                    legal = (data.legal[row] >> k) & 1 if rule.legal_targets or rule.judge == ORDER else 0
                    if rule.legal_targets:
                        target = wanted = float(legal)
                    else:
                        target = data.amount[row] if k == data.target[row] else 0.0
                        wanted = data.clean[row] if k == data.target[row] else 0.0
                    e[k] = output[k] * (1.0 - output[k]) * (target - output[k])
                    off = abs(wanted - output[k])
                    step_worst = max(step_worst, off)
                    step_error += off / K
                    step_square += off * off / K
                    if legal:
                        lowest_legal = min(lowest_legal, output[k])
                    else:
                        highest_illegal = max(highest_illegal, output[k])
                if rule.judge == ORDER:
                    step_worst = 0.0 if lowest_legal > highest_illegal else 1.0
                if rule.judge == END:
                    worst, mean_error, mean_square, judged = 0.0, 0.0, 0.0, 0
                worst = max(worst, step_worst)
                mean_error += step_error
                mean_square += step_square
                judged += 1

                if learn:
                    # ---- truncated gradient: errors go back through the cells' states, never through y(t-1)
                    if active:
                        d_out[:] = 0.0
                        for c in range(C):
                            b = c // net.size
                            back = 0.0
                            for k in range(K):
                                dV[c, k] += now[c] * e[k]
                                back += V[c, k] * e[k]
                            sig = _logistic(s[c])
                            h, dh = (2.0 * sig - 1.0, 2.0 * sig * (1.0 - sig)) if net.h_wide else (s[c], 1.0)
                            e_s[c] = dh * back
                            if net.output_gates:
                                e_s[c] *= now[out0 + b]
                                d_out[b] += h * back
                        if rule.full:
                            tape[3][row - data.start[i]] = e
                        else:
                            if net.output_gates:
                                for b in range(B):
                                    d = d_out[b] * now[out0 + b] * (1.0 - now[out0 + b])
                                    for j in range(data.unit.shape[1]):
                                        dW[data.unit[row, j], out0 + b] += d * data.value[row, j]
                                    for r in range(R):
                                        dW[n_in + r, out0 + b] += d * y[r]
                                    dW[bias, out0 + b] += d
                            for source in range(bias + 1):
                                for c in range(C):
                                    b = c // net.size
                                    dW[source, c] += e_s[c] * P[0, c, source]
                                    dW[source, C + b] += e_s[c] * P[1, c, source]
                                    if net.forget_gates:
                                        dW[source, forget0 + b] += e_s[c] * P[2, c, source]
                    if net.skip:
                        for j in range(data.unit.shape[1]):
                            for k in range(K):
                                dV[C + data.unit[row, j], k] += data.value[row, j] * e[k]
                    for k in range(K):
                        dV[out_bias, k] += e[k]

            if active:
                y[:] = now
            finished = row == data.start[i + 1] - 1
            if learn and (finished or (rule.per_step and data.target[row] >= 0)):
                # ---- change the weights
                if finished and rule.full:
                    _full_gradient(net, W, V, data, data.start[i], row + 1 - data.start[i], tape, dW)
                for u in range(H):
                    dW[bias, u] *= learns[u]
                for k in range(K):
                    dV[out_bias, k] *= learns[H]
                for source in range(bias + 1):
                    for u in range(H):
                        W[source, u] += lr * dW[source, u]
                        dW[source, u] = 0.0
                for source in range(V.shape[0]):
                    for k in range(K):
                        V[source, k] += lr * dV[source, k]
                        dV[source, k] = 0.0
            if rule.stream and (worst >= rule.tolerance or math.isnan(mean_error)):
                return i + 1 - first, row + 1 - data.start[first], True

        wrong = 1 if worst >= rule.tolerance or math.isnan(mean_error) else 0
        said[0, i - first] = wrong
        said[1, i - first] = mean_error / judged
        said[2, i - first] = mean_square / judged
        if learn and not rule.stream:
            slot = counters[N] % len(flags)
            counters[WRONG] += wrong - flags[slot]
            flags[slot] = wrong
            errors[slot] = mean_error / judged
            counters[N] += 1
            full = counters[N] >= len(flags)
            if full and counters[WRONG] <= rule.max_wrong and errors.mean() < rule.max_error:
                return i + 1 - first, data.start[i + 1] - data.start[first], True
        elif not learn:
            total_wrong += wrong
            if total_wrong > enough:
                return i + 1 - first, data.start[i + 1] - data.start[first], True
    return last - first, data.start[last] - data.start[first], False
