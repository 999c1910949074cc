"""The net, its gradient and its update as compiled code for one seed: one sequence after the other, of any length.

Same mathematics and same weight vector as `model`, which is its oracle. The backward pass through time is written by
hand, everything of a product over time that does not wait for a recurrence is one product over all steps, and the
memory is kept column by column (M, N), so that every inner loop runs along N contiguous numbers.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from common.elementary import exp, log, tanh, vectorised
from papers.ntm.model import TINY, Net, layout


class Rule(NamedTuple):
    """How weights change."""

    adam: int  # 0: RMSProp of Graves 2013; 1: Adam
    lr: float
    decay: float = 0.95  # of the moving averages (Adam: beta2)
    momentum: float = 0.9  # (Adam: beta1)
    eps: float = 1e-4  # inside the root (Adam: outside)
    clip_value: float = 10.0  # of each element of the gradient; 0: none
    clip_norm: float = 0.0  # of the whole gradient; 0: none


class Tape(NamedTuple):
    """What the forward pass leaves for the backward pass, errors (d_), and room to work in; T steps."""

    gates: Any  # (L, T, G) net inputs, then activations of the controller's layers
    c: Any  # (L, T + 1, H)
    h: Any  # (L, T + 1, H)
    p: Any  # (T, P) what the heads emit, clipped
    q: Any  # (T, P) the same after its squashing
    K: Any  # (T, J, N) cosine similarities
    w_c: Any  # (T, J, N)
    w_g: Any  # (T, J, N)
    w_s: Any  # (T, J, N)
    w: Any  # (T + 1, J, N)
    memory: Any  # (T + 1, M, N)
    inverse: Any  # (T, N) 1 / length of each row of the memory
    r: Any  # (T + 1, R, M)
    z: Any  # (T, K) logits of the outputs, then their errors
    d_gates: Any  # (L, T, G)
    d_p: Any  # (T, P)
    d_out: Any  # (L, T, H) of the layers' outputs, but for what comes back from the step after: that is ...
    d_h: Any  # (L, H)
    d_c: Any  # (L, H)
    d_r: Any  # (T + 1, reads); row t is of r_t, which the outputs of step t and the controller of step t + 1 see
    d_memory: Any  # (M, N)
    d_w: Any  # (J, N)
    kept: Any  # (R + 1, N)
    scratch: Any  # (N,)


def make_tape(net: Net, T: int, dtype: Any) -> Tape:
    """Room for sequences of up to T steps."""
    L, H, J, N, M = net.layers, net.hidden, 2 * net.heads, net.rows, net.columns
    G, P = 4 * H if net.lstm else H, sum(net.head_sizes)
    shapes = [
        (L, T, G), (L, T + 1, H), (L, T + 1, H), (T, P), (T, P), *[(T, J, N)] * 4, (T + 1, J, N), (T + 1, M, N), (T, N),
        (T + 1, net.heads, M), (T, net.outputs), (L, T, G), (T, P), (L, T, H), (L, H), (L, H), (T + 1, net.heads * M),
        (M, N), (J, N), (net.heads + 1, N), (N,),
    ]  # fmt: skip
    return Tape(*(np.zeros(shape, dtype) for shape in shapes))


def offsets(net: Net) -> np.ndarray:
    """Where each part of the weight vector begins, and the end."""
    return np.cumsum([0, *(math.prod(shape) for shape in layout(net).values())])


# ---- three products that everything is made of


@vectorised
def _product(x, W, out):
    """out (t, m) += x (t, n) @ W (n, m)"""
    n = x.shape[1]
    for i in range(0, n - n % 4, 4):
        for t in range(x.shape[0]):
            a, b, c, d = x[t, i], x[t, i + 1], x[t, i + 2], x[t, i + 3]
            for j in range(W.shape[1]):
                out[t, j] += a * W[i, j] + b * W[i + 1, j] + c * W[i + 2, j] + d * W[i + 3, j]
    for i in range(n - n % 4, n):
        for t in range(x.shape[0]):
            a = x[t, i]
            for j in range(W.shape[1]):
                out[t, j] += a * W[i, j]


@vectorised
def _product_T(x, W, out):
    """out (t, n) += x (t, m) @ W (n, m)^T"""
    n = W.shape[0]
    for i in range(0, n - n % 4, 4):
        for t in range(x.shape[0]):
            a, b, c, d = out[t, i], out[t, i + 1], out[t, i + 2], out[t, i + 3]
            for j in range(W.shape[1]):
                a += x[t, j] * W[i, j]
                b += x[t, j] * W[i + 1, j]
                c += x[t, j] * W[i + 2, j]
                d += x[t, j] * W[i + 3, j]
            out[t, i], out[t, i + 1], out[t, i + 2], out[t, i + 3] = a, b, c, d
    for i in range(n - n % 4, n):
        for t in range(x.shape[0]):
            a = out[t, i]
            for j in range(W.shape[1]):
                a += x[t, j] * W[i, j]
            out[t, i] = a


@vectorised
def _outer(x, d, out):
    """out (n, m) += x (t, n)^T @ d (t, m)"""
    T = x.shape[0]
    for i in range(x.shape[1]):
        for t in range(0, T - T % 4, 4):
            a, b, c, e = x[t, i], x[t + 1, i], x[t + 2, i], x[t + 3, i]
            for j in range(d.shape[1]):
                out[i, j] += a * d[t, j] + b * d[t + 1, j] + c * d[t + 2, j] + e * d[t + 3, j]
        for t in range(T - T % 4, T):
            a = x[t, i]
            for j in range(d.shape[1]):
                out[i, j] += a * d[t, j]


# ---- pieces


@vectorised
def _sigmoid(x, one):
    return one / (one + exp(-x))


@vectorised
def _softplus(x, zero):
    return max(x, zero) + math.log1p(exp(-abs(x)))


@vectorised
def _softmax(z, out):
    top = z[0]
    for i in range(1, len(z)):
        top = max(top, z[i])
    total = top - top
    for i in range(len(z)):
        out[i] = exp(z[i] - top)
        total += out[i]
    for i in range(len(z)):
        out[i] /= total


@vectorised
def _softmax_back(out, d):
    """d: of the softmax, becomes of its argument."""
    mean = out[0] * d[0]
    for i in range(1, len(out)):
        mean += out[i] * d[i]
    for i in range(len(out)):
        d[i] = out[i] * (d[i] - mean)


@vectorised
def _part(theta, o, i, columns):
    part = theta[o[i] : o[i + 1]]
    return part.reshape(part.size // columns if columns else 0, columns)


@vectorised
def _set(x, out):
    for i in range(len(out)):
        out[i] = x[i]


@vectorised
def _cell(net, W, gates, h, c, t):
    """A layer's step: its own recurrence, and activations. `gates` has the net input from all other sources."""
    H = net.hidden
    one = gates.dtype.type(1)
    if net.lstm:
        _product(h[t : t + 1], W[W.shape[0] - 1 - H : W.shape[0] - 1], gates[t : t + 1])
        a = gates[t]
        for u in range(H):
            i, f, o = _sigmoid(a[u], one), _sigmoid(a[H + u], one), _sigmoid(a[3 * H + u], one)
            v = tanh(a[2 * H + u])
            a[u], a[H + u], a[2 * H + u], a[3 * H + u] = i, f, v, o
            c[t + 1, u] = f * c[t, u] + i * v
            h[t + 1, u] = o * tanh(c[t + 1, u])
    else:
        for u in range(H):
            h[t + 1, u] = gates[t, u] = tanh(gates[t, u])


@vectorised
def _cell_back(net, W, gates, c, d_gates, d_h, d_c, t):
    """Errors of the net inputs, from those of the layer's output (d_h) and state (d_c); both become those of t - 1."""
    H = net.hidden
    one = gates.dtype.type(1)
    if net.lstm:
        a, d = gates[t], d_gates[t]
        for u in range(H):
            i, f, v, o = a[u], a[H + u], a[2 * H + u], a[3 * H + u]
            squashed = tanh(c[t + 1, u])
            d[3 * H + u] = d_h[u] * squashed * o * (one - o)
            d_c[u] += d_h[u] * o * (one - squashed * squashed)
            d[u] = d_c[u] * v * i * (one - i)
            d[H + u] = d_c[u] * c[t, u] * f * (one - f)
            d[2 * H + u] = d_c[u] * i * (one - v * v)
            d_c[u] *= f
        d_h[:] = 0
        _product_T(d_gates[t : t + 1], W[W.shape[0] - 1 - H : W.shape[0] - 1], d_h.reshape(1, H))
    else:
        for u in range(H):
            d_gates[t, u] = d_h[u] * (one - gates[t, u] * gates[t, u])
        d_h[:] = 0


@vectorised
def _emit(net, p, q):
    """Squash what the heads emit: p -> q. Sizes as in Net.head_sizes."""
    J, M, S = 2 * net.heads, net.columns, 2 * net.reach + 1
    one = p.dtype.type(1)
    zero = one - one
    keys, shifts = J * M, J * M + 3 * J
    erase = shifts + J * S
    if net.clip:
        limit = p.dtype.type(net.clip)
        for i in range(len(p)):
            p[i] = min(max(p[i], -limit), limit)
    for i in range(len(p)):
        q[i] = p[i]
    if net.squash:
        for i in range(keys):
            q[i] = tanh(p[i])
        for i in range(erase + net.heads * M, len(p)):
            q[i] = tanh(p[i])
    for j in range(J):
        q[keys + j] = _softplus(p[keys + j], zero)
        q[keys + J + j] = _sigmoid(p[keys + J + j], one)
        q[keys + 2 * J + j] = one + _softplus(p[keys + 2 * J + j], zero)
        _softmax(p[shifts + j * S : shifts + (j + 1) * S], q[shifts + j * S : shifts + (j + 1) * S])
    for i in range(erase, erase + net.heads * M):
        q[i] = _sigmoid(p[i], one)


@vectorised
def _emit_back(net, p, q, d):
    """d: of q, becomes of p."""
    J, M, S = 2 * net.heads, net.columns, 2 * net.reach + 1
    one = p.dtype.type(1)
    keys, shifts = J * M, J * M + 3 * J
    erase = shifts + J * S
    if net.squash:
        for i in range(keys):
            d[i] *= one - q[i] * q[i]
        for i in range(erase + net.heads * M, len(p)):
            d[i] *= one - q[i] * q[i]
    for j in range(J):
        d[keys + j] *= _sigmoid(p[keys + j], one)
        d[keys + J + j] *= q[keys + J + j] * (one - q[keys + J + j])
        d[keys + 2 * J + j] *= _sigmoid(p[keys + 2 * J + j], one)
        _softmax_back(q[shifts + j * S : shifts + (j + 1) * S], d[shifts + j * S : shifts + (j + 1) * S])
    for i in range(erase, erase + net.heads * M):
        d[i] *= q[i] * (one - q[i])
    if net.clip:
        for i in range(len(p)):
            if abs(p[i]) >= net.clip:
                d[i] = 0


@vectorised
def _heads(net, tape, t):
    """Address, read M_{t-1}, write (Eq. 2 to 9)."""
    scratch = tape.scratch
    R, J, N, M, S = net.heads, 2 * net.heads, net.rows, net.columns, 2 * net.reach + 1
    q, memory, K, inverse = tape.q[t], tape.memory[t], tape.K[t], tape.inverse[t]
    one, tiny = q.dtype.type(1), q.dtype.type(TINY)
    inverse[:] = tiny
    for m in range(M):
        for i in range(N):
            inverse[i] += memory[m, i] * memory[m, i]
    for i in range(N):
        inverse[i] = one / math.sqrt(inverse[i])
    keys, shifts = J * M, J * M + 3 * J
    erase = shifts + J * S
    k = q[:keys].reshape(J, M)
    K[:] = 0
    _product(k, memory, K)
    for j in range(J):
        beta, g, gamma = q[keys + j], q[keys + J + j], q[keys + 2 * J + j]
        length = tiny
        for m in range(M):
            length += k[j, m] * k[j, m]
        scale = one / math.sqrt(length)
        K_j, w_c, w_g, w_s, before = K[j], tape.w_c[t, j], tape.w_g[t, j], tape.w_s[t, j], tape.w[t, j]
        for i in range(N):
            K_j[i] *= inverse[i] * scale
            scratch[i] = beta * K_j[i]
        _softmax(scratch, w_c)
        for i in range(N):
            w_g[i] = g * w_c[i] + (one - g) * before[i]
        w_s[:] = tiny
        for o in range(S):
            _shifted(w_g, q[shifts + j * S + o], o - net.reach, w_s)
        for i in range(N):
            scratch[i] = gamma * log(w_s[i])
        _softmax(scratch, tape.w[t + 1, j])
    tape.r[t + 1][:] = 0
    _product_T(tape.w[t + 1, :R], memory, tape.r[t + 1])
    after = tape.memory[t + 1]
    for m in range(M):
        for i in range(N):
            after[m, i] = memory[m, i]
        for j in range(R):
            e = q[erase + j * M + m]
            for i in range(N):
                after[m, i] *= one - e * tape.w[t + 1, R + j, i]
    _outer(q[erase + R * M :].reshape(R, M), tape.w[t + 1, R:], after)


@vectorised
def _shifted(x, factor, by, out):
    """out(n) += factor * x(n - by), on a circle."""
    n = len(x)
    by %= n
    for i in range(by):
        out[i] += factor * x[i - by + n]
    for i in range(by, n):
        out[i] += factor * x[i - by]


@vectorised
def _heads_back(net, tape, t):
    """The same backwards. On entry tape.d_memory and tape.d_w hold errors of M_t and w_t that come from the step after,
    on leaving those of M_{t-1} and w_{t-1}. Fills tape.d_p[t]."""
    d_memory, d_w, kept, scratch = tape.d_memory, tape.d_w, tape.kept, tape.scratch
    d_r = tape.d_r[t + 1].reshape(net.heads, net.columns)
    R, J, N, M, S = net.heads, 2 * net.heads, net.rows, net.columns, 2 * net.reach + 1
    q, d_q, memory, K, inverse = tape.q[t], tape.d_p[t], tape.memory[t], tape.K[t], tape.inverse[t]
    one, tiny = q.dtype.type(1), q.dtype.type(TINY)
    zero = one - one
    keys, shifts = J * M, J * M + 3 * J
    erase = shifts + J * S
    k, w = q[:keys].reshape(J, M), tape.w[t + 1]
    d_q[:] = 0
    # ---- additions
    _product_T(w[R:], d_memory, d_q[erase + R * M :].reshape(R, M))
    _product(q[erase + R * M :].reshape(R, M), d_memory, d_w[R:])
    # ---- erasures: kept[j] is the product of the factors of heads before j, `scratch` that of the heads after
    for m in range(M):
        for i in range(N):
            kept[0, i] = one
        for j in range(R):
            e = q[erase + j * M + m]
            for i in range(N):
                kept[j + 1, i] = kept[j, i] * (one - e * w[R + j, i])
        for i in range(N):
            scratch[i] = d_memory[m, i] * memory[m, i]
            d_memory[m, i] *= kept[R, i]
        for j in range(R - 1, -1, -1):
            e, d_e = q[erase + j * M + m], zero
            for i in range(N):
                d_factor = scratch[i] * kept[j, i]
                d_e -= d_factor * w[R + j, i]
                d_w[R + j, i] -= d_factor * e
                scratch[i] *= one - e * w[R + j, i]
            d_q[erase + j * M + m] = d_e
    # ---- reads
    _product(d_r, memory, d_w[:R])
    _outer(d_r, w[:R], d_memory)
    # ---- addressing
    pull = kept[0]  # what normalisation takes from each row
    pull[:] = 0
    for j in range(J):
        beta, g, gamma = q[keys + j], q[keys + J + j], q[keys + 2 * J + j]
        w_c, w_g, w_s, before, d = tape.w_c[t, j], tape.w_g[t, j], tape.w_s[t, j], tape.w[t, j], d_w[j]
        _softmax_back(w[j], d)
        d_gamma = zero
        for i in range(N):
            d_gamma += d[i] * log(w_s[i])
            d[i] *= gamma / w_s[i]
        d_q[keys + 2 * J + j] = d_gamma
        scratch[:] = 0
        for o in range(S):
            by, s, d_s = o - net.reach, q[shifts + j * S + o], zero
            _shifted(d, s, -by, scratch)
            shift = by % N
            for i in range(shift):
                d_s += d[i] * w_g[i - shift + N]
            for i in range(shift, N):
                d_s += d[i] * w_g[i - shift]
            d_q[shifts + j * S + o] = d_s
        d_g = zero
        for i in range(N):
            d_g += scratch[i] * (w_c[i] - before[i])
            d[i] = (one - g) * scratch[i]
            scratch[i] *= g
        d_q[keys + J + j] = d_g
        _softmax_back(w_c, scratch)
        length = tiny
        for m in range(M):
            length += k[j, m] * k[j, m]
        scale = one / math.sqrt(length)
        d_beta = zero
        for i in range(N):
            d_beta += scratch[i] * K[j, i]
            d_K = beta * scratch[i]
            pull[i] += d_K * K[j, i]
            w_c[i] = d_K * inverse[i] * scale  # no longer needed: its place is
        d_q[keys + j] = d_beta
        pulled = beta * d_beta * scale * scale
        for m in range(M):
            d_q[j * M + m] = -pulled * k[j, m]
    for i in range(N):
        pull[i] *= inverse[i] * inverse[i]
    for m in range(M):
        for i in range(N):
            d_memory[m, i] -= pull[i] * memory[m, i]
    _outer(k, tape.w_c[t], d_memory)
    _product_T(tape.w_c[t], memory, d_q[:keys].reshape(J, M))
    _emit_back(net, tape.p[t], q, d_q)


# ---- a sequence


@vectorised
def _forward(net, theta, o, x, tape):
    """Logits into tape.z, for x (T, i)."""
    T, n_in = x.shape
    L, H, J, N = net.layers, net.hidden, 2 * net.heads, net.rows
    G, reads, rest = tape.gates.shape[2], net.heads * net.columns, o[L:]
    for layer in range(L):
        W = _part(theta, o, layer, G)
        for t in range(T):
            _set(W[len(W) - 1], tape.gates[layer, t])
        _product(x, W[:n_in], tape.gates[layer, :T])
        if net.lstm:
            _set(theta[rest[2] + layer * H :], tape.h[layer, 0])
            _set(theta[rest[3] + layer * H :], tape.c[layer, 0])
        if J == 0:  # nothing comes back from above: layer by layer
            if layer:
                _product(tape.h[layer - 1, 1 : T + 1], W[n_in : n_in + H], tape.gates[layer, :T])
            for t in range(T):
                _cell(net, W, tape.gates[layer], tape.h[layer], tape.c[layer], t)
    W_heads, W_out = _part(theta, rest, 0, tape.p.shape[1]), _part(theta, rest, 1, net.outputs)
    if J:
        _set(theta[rest[4] :], tape.r[0].reshape(reads))
        _set(theta[rest[5] :], tape.memory[0].reshape(net.columns * N))
        for j in range(J):
            _softmax(_part(theta, rest, 6, N)[j], tape.w[0, j])
        for t in range(T):
            _set(W_heads[L * H], tape.p[t])
            for layer in range(L):
                W, gates = _part(theta, o, layer, G), tape.gates[layer, t : t + 1]
                if layer:
                    _product(tape.h[layer - 1, t + 1 : t + 2], W[n_in : n_in + H], gates)
                low = n_in + (H if layer else 0)
                _product(tape.r[t].reshape(1, reads), W[low : low + reads], gates)
                _cell(net, W, tape.gates[layer], tape.h[layer], tape.c[layer], t)
                _product(tape.h[layer, t + 1 : t + 2], W_heads[layer * H : (layer + 1) * H], tape.p[t : t + 1])
            _emit(net, tape.p[t], tape.q[t])
            _heads(net, tape, t)
    for t in range(T):
        _set(W_out[len(W_out) - 1], tape.z[t])
    for layer in range(L):
        _product(tape.h[layer, 1 : T + 1], W_out[layer * H : (layer + 1) * H], tape.z[:T])
    if J:
        _product(tape.r[1 : T + 1].reshape(T, reads), W_out[L * H : L * H + reads], tape.z[:T])
    if net.clip:
        limit = theta.dtype.type(net.clip)
        for t in range(T):
            for i in range(net.outputs):
                tape.z[t, i] = min(max(tape.z[t, i], -limit), limit)


@vectorised
def _ones(d, out):
    """A bias is the weight of a source that is always 1."""
    for t in range(len(d)):
        for j in range(d.shape[1]):
            out[j] += d[t, j]


@vectorised
def _backward(net, theta, o, x, tape, grad):
    """Add the gradient to `grad`; the errors of the logits stand in tape.z."""
    T, n_in = x.shape
    L, H, J = net.layers, net.hidden, 2 * net.heads
    G, reads, rest = tape.gates.shape[2], net.heads * net.columns, o[L:]
    W_heads, W_out = _part(theta, rest, 0, tape.p.shape[1]), _part(theta, rest, 1, net.outputs)
    g_heads, g_out = _part(grad, rest, 0, tape.p.shape[1]), _part(grad, rest, 1, net.outputs)
    errors, d_out, d_h, d_c, d_r = tape.z[:T], tape.d_out, tape.d_h, tape.d_c, tape.d_r
    d_out[:, :T] = 0
    d_h[:] = 0
    d_c[:] = 0
    for layer in range(L):
        _product_T(errors, W_out[layer * H : (layer + 1) * H], d_out[layer, :T])
        _outer(tape.h[layer, 1 : T + 1], errors, g_out[layer * H : (layer + 1) * H])
    _ones(errors, g_out[len(g_out) - 1])
    if J:
        d_r[: T + 1] = 0
        tape.d_memory[:] = 0
        tape.d_w[:] = 0
        _product_T(errors, W_out[L * H : L * H + reads], d_r[1 : T + 1])
        _outer(tape.r[1 : T + 1].reshape(T, reads), errors, g_out[L * H : L * H + reads])
        for t in range(T - 1, -1, -1):
            _heads_back(net, tape, t)
            for layer in range(L - 1, -1, -1):
                W, d = _part(theta, o, layer, G), d_h[layer]
                _product_T(tape.d_p[t : t + 1], W_heads[layer * H : (layer + 1) * H], d.reshape(1, H))
                for u in range(H):
                    d[u] += d_out[layer, t, u]
                _cell_back(net, W, tape.gates[layer], tape.c[layer], tape.d_gates[layer], d, d_c[layer], t)
                below = tape.d_gates[layer, t : t + 1]
                if layer:
                    _product_T(below, W[n_in : n_in + H], d_out[layer - 1, t : t + 1])
                low = n_in + (H if layer else 0)
                _product_T(below, W[low : low + reads], d_r[t : t + 1])
        for layer in range(L):
            _outer(tape.h[layer, 1 : T + 1], tape.d_p[:T], g_heads[layer * H : (layer + 1) * H])
        _ones(tape.d_p[:T], g_heads[L * H])
        _add(d_r[0], grad[rest[4] : rest[5]])
        _add(tape.d_memory.reshape(net.columns * net.rows), grad[rest[5] : rest[6]])
        for j in range(J):
            _softmax_back(tape.w[0, j], tape.d_w[j])
        _add(tape.d_w.reshape(J * net.rows), grad[rest[6] : rest[7]])
    else:
        for layer in range(L - 1, -1, -1):
            W, d = _part(theta, o, layer, G), d_h[layer]
            for t in range(T - 1, -1, -1):
                for u in range(H):
                    d[u] += d_out[layer, t, u]
                _cell_back(net, W, tape.gates[layer], tape.c[layer], tape.d_gates[layer], d, d_c[layer], t)
            if layer:
                _product_T(tape.d_gates[layer, :T], W[n_in : n_in + H], d_out[layer - 1])
    for layer in range(L):
        g_W, d_gates = _part(grad, o, layer, G), tape.d_gates[layer, :T]
        _outer(x, d_gates, g_W[:n_in])
        low = n_in
        if layer:
            _outer(tape.h[layer - 1, 1 : T + 1], d_gates, g_W[n_in : n_in + H])
            low += H
        if J:
            _outer(tape.r[:T].reshape(T, reads), d_gates, g_W[low : low + reads])
        if net.lstm:
            _outer(tape.h[layer, :T], d_gates, g_W[low + reads : low + reads + H])
        _ones(d_gates, g_W[len(g_W) - 1])
    if net.lstm:
        _add(d_h.reshape(L * H), grad[rest[2] : rest[3]])
        _add(d_c.reshape(L * H), grad[rest[3] : rest[4]])


@vectorised
def _add(x, out):
    for i in range(len(x)):
        out[i] += x[i]


@vectorised
def _errors(net, y, first, tape, said):
    """Cost of a sequence (bits, wrong bits, wrong bits of the last channel); errors take the place of the logits."""
    one = tape.z.dtype.type(1)
    said[:] = 0
    for t in range(len(y)):
        for i in range(net.outputs):
            z = tape.z[t, i]
            if t < first:
                tape.z[t, i] = 0
                continue
            said[0] += (max(z, one - one) - z * y[t, i] + math.log1p(exp(-abs(z)))) / math.log(2.0)
            wrong = (z > 0) != (y[t, i] > 0.5)
            said[1] += wrong
            if i == net.outputs - 1:
                said[2] += wrong
            tape.z[t, i] = 0 if net.clip and abs(z) >= net.clip else _sigmoid(z, one) - y[t, i]


@vectorised
def _update(rule, theta, grad, n, m, d, step):
    """One step by the gradient, which is emptied. Adam keeps its averages in n and m.

    Returns:
        1 where the gradient is not a number, and the step is left out: through hundreds of steps it can outgrow a
        float, so that nothing is left to clip. Else 0.
    """
    one = theta.dtype.type(1)
    lr, eps = theta.dtype.type(rule.lr), theta.dtype.type(rule.eps)
    decay, momentum = theta.dtype.type(rule.decay), theta.dtype.type(rule.momentum)
    limit, factor = theta.dtype.type(rule.clip_value if rule.clip_value else np.inf), one
    if rule.clip_norm:
        total = 0.0
        for i in range(len(grad)):
            total += grad[i] * grad[i]
        factor = theta.dtype.type(min(1.0, rule.clip_norm / (math.sqrt(total) + 1e-6)))
    root = theta.dtype.type(math.sqrt(1.0 - rule.decay**step))
    rate = theta.dtype.type(rule.lr / (1.0 - rule.momentum**step))
    unknown = False
    for i in range(len(grad)):
        g = grad[i] * factor
        unknown |= g != g
    if unknown:
        grad[:] = 0
        return 1
    for i in range(len(theta)):
        g = min(max(grad[i] * factor, -limit), limit)
        grad[i] = 0
        n[i] = decay * n[i] + (one - decay) * g * g
        if rule.adam:
            m[i] = momentum * m[i] + (one - momentum) * g
            theta[i] -= rate * m[i] / (math.sqrt(n[i]) / root + eps)
        else:
            m[i] = decay * m[i] + (one - decay) * g
            d[i] = momentum * d[i] - lr * g / math.sqrt(n[i] - m[i] * m[i] + eps)
            theta[i] += d[i]
    return 0


@vectorised
def run(net, rule, theta, o, tape, grad, moments, left_out, updates, batch, x, y, first, steps, said):
    """Read sequences and, where batch > 0, learn: an update whenever so many have been read.

    Args:
        grad: (p,) zeros; the gradient of a batch that is not complete stays there.
        moments: (3, p) n, m and d of the optimiser, changed in place.
        left_out: (1,) counts the updates whose gradient was not a number.
        updates: done before.
        said: (n, 3) is filled: bits, wrong bits, wrong bits of the last channel.
    """
    for i in range(len(steps)):
        T = steps[i]
        _forward(net, theta, o, x[i, :T], tape)
        _errors(net, y[i, :T], first[i], tape, said[i])
        if batch:
            share = theta.dtype.type(1.0 / batch)
            for t in range(T):
                for j in range(net.outputs):
                    tape.z[t, j] *= share
            _backward(net, theta, o, x[i, :T], tape, grad)
            if (i + 1) % batch == 0:
                step = updates + (i + 1) // batch
                left_out[0] += _update(rule, theta, grad, moments[0], moments[1], moments[2], step)
