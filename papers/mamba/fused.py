"""The selective scan on a GPU: discretise, recur and read out in one kernel, states in registers (Section 3.3.2).

A program is one warp; a lane holds one channel with its n states, so the sum over n never leaves the lane. Time is cut
into chunks that run side by side, in three steps: `_ends` runs each chunk from a zero state, `_carry` chains the
chunks (exp(A sum Delta) is a chunk's whole decay), `_read_out` runs each from its true state and writes y. Nothing of
length l times n reaches the main memory. The backward pass does the same from the right with the adjoint
g_t = C_t dy_t + a_{t+1} g_{t+1}; it makes the states anew, SUB steps at a time, in a scratch that stays in the cache.

Without a GPU the arithmetic runs in Triton's interpreter (TRITON_INTERPRET=1, set before triton is imported).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 32  # of a program: one to a lane
SUB = tl.constexpr(16)  # steps between two states that the forward pass keeps
WARPS = 16 * 132  # programs of the backward pass, each with a scratch of its own: enough for the H100's processors


@triton.jit
def _place(D, N, CH: tl.constexpr, NN: tl.constexpr):
    """Numbers and masks of this program's channels (1, CH) and of the states (NN, 1)."""
    channel = tl.program_id(1) * CH + tl.arange(0, CH)[None, :]
    state = tl.arange(0, NN)[:, None]
    return channel, state, channel < D, state < N


@triton.jit
def _ends(x, delta, A, B, ends, sums, L, D, N, T, chunks, REVERSE: tl.constexpr, CH: tl.constexpr, NN: tl.constexpr):
    """What each chunk hands on if it is handed nothing, and the sum of its Delta.

    Forwards: h of the last step. REVERSE: a g of the first one, with dy in the place of x and C in that of B.
    """
    channel, state, mc, mn = _place(D, N, CH, NN)
    i, c = tl.program_id(0).to(tl.int64), tl.program_id(2)
    a = tl.load(A + channel * N + state, mask=mc & mn, other=0.0)
    h = tl.zeros((NN, CH), tl.float32)
    total = tl.zeros((1, CH), tl.float32)
    steps = tl.minimum(T, L - c * T)
    for s in range(steps):
        t = i * L + c * T + (steps - 1 - s if REVERSE else s)
        dl = tl.load(delta + t * D + channel, mask=mc, other=0.0).to(tl.float32)
        v = tl.load(x + t * D + channel, mask=mc, other=0.0).to(tl.float32)
        w = tl.load(B + t * N + state, mask=mn, other=0.0).to(tl.float32)
        if REVERSE:
            h = tl.exp(dl * a) * (h + v * w)
        else:
            h = tl.exp(dl * a) * h + (dl * v) * w
        total += dl
    row = i * chunks + c
    tl.store(ends + (row * N + state) * D + channel, h, mask=mc & mn)
    tl.store(sums + row * D + channel, total, mask=mc)


@triton.jit
def _carry(A, ends, sums, h, D, N, chunks, REVERSE: tl.constexpr, CH: tl.constexpr, NN: tl.constexpr):
    """Chain the chunks: `ends` becomes what each is handed; h what the first is handed, then what the last hands on."""
    channel, state, mc, mn = _place(D, N, CH, NN)
    i = tl.program_id(0).to(tl.int64)
    a = tl.load(A + channel * N + state, mask=mc & mn, other=0.0)
    v = tl.load(h + (i * N + state) * D + channel, mask=mc & mn, other=0.0)
    for s in range(chunks):
        row = i * chunks + (chunks - 1 - s if REVERSE else s)
        place = ends + (row * N + state) * D + channel
        end = tl.load(place, mask=mc & mn, other=0.0)
        total = tl.load(sums + row * D + channel, mask=mc, other=0.0)
        tl.store(place, v, mask=mc & mn)
        v = tl.exp(total * a) * v + end
    tl.store(h + (i * N + state) * D + channel, v, mask=mc & mn)


@triton.jit
def _read_out(
    x, delta, A, B, C, skip, starts, marks, y, L, D, N, T, chunks, subs,
    KEEP: tl.constexpr, SUB: tl.constexpr, CH: tl.constexpr, NN: tl.constexpr,
):  # fmt: skip
    """y; with KEEP also the state before every SUB-th step, for the backward pass."""
    channel, state, mc, mn = _place(D, N, CH, NN)
    i, c = tl.program_id(0).to(tl.int64), tl.program_id(2)
    a = tl.load(A + channel * N + state, mask=mc & mn, other=0.0)
    h = tl.load(starts + ((i * chunks + c) * N + state) * D + channel, mask=mc & mn, other=0.0)
    gain = tl.load(skip + channel, mask=mc, other=0.0)
    for s in range(tl.minimum(T, L - c * T)):
        if KEEP:  # noqa: SIM102 (this is decided when the kernel is compiled, the next line when it runs)
            if s % SUB == 0:
                row = i * subs + (c * T + s) // SUB
                tl.store(marks + (row * N + state) * D + channel, h, mask=mc & mn)
        t = i * L + c * T + s
        dl = tl.load(delta + t * D + channel, mask=mc, other=0.0).to(tl.float32)
        xs = tl.load(x + t * D + channel, mask=mc, other=0.0).to(tl.float32)
        b = tl.load(B + t * N + state, mask=mn, other=0.0).to(tl.float32)
        w = tl.load(C + t * N + state, mask=mn, other=0.0).to(tl.float32)
        h = tl.exp(dl * a) * h + (dl * xs) * b
        out = tl.sum(h * w, 0)[None, :] + gain * xs
        tl.store(y + t * D + channel, out.to(y.dtype.element_ty), mask=mc)


@triton.jit
def _gradients(
    x, delta, A, B, C, skip, marks, carries, dy, scratch, dx, ddelta, dA, dB, dC, dD, L, D, N, T, chunks, subs, items,
    SUB: tl.constexpr, CH: tl.constexpr, NN: tl.constexpr,
):  # fmt: skip
    """All gradients; items = sequences times chunks, shared out among the programs of axis 0.

    dA (items, n, d) and dD (items, d) are a chunk's, dB and dC (blocks of channels, b, l, n) a block's: the sums that
    are left are taken afterwards, in a fixed order.
    """
    channel, state, mc, mn = _place(D, N, CH, NN)
    block, blocks, p = tl.program_id(1), tl.num_programs(1), tl.program_id(0)
    a = tl.load(A + channel * N + state, mask=mc & mn, other=0.0)
    gain = tl.load(skip + channel, mask=mc, other=0.0)
    lane, n = tl.arange(0, CH)[None, :], tl.arange(0, NN)
    own = scratch + ((p * blocks + block).to(tl.int64) * SUB * NN + state) * CH + lane
    for item in range(p, items, tl.num_programs(0)):
        i, c = (item // chunks).to(tl.int64), item % chunks
        steps = tl.minimum(T, L - c * T)
        g = tl.load(carries + ((i * chunks + c) * N + state) * D + channel, mask=mc & mn, other=0.0)
        da = tl.zeros((NN, CH), tl.float32)
        dd = tl.zeros((1, CH), tl.float32)
        pieces = tl.cdiv(steps, SUB)
        for q in range(pieces):
            first = (pieces - 1 - q) * SUB
            count = tl.minimum(SUB, steps - first)
            row = i * subs + (c * T + first) // SUB
            h = tl.load(marks + (row * N + state) * D + channel, mask=mc & mn, other=0.0)
            for s in range(count):
                tl.store(own + s * NN * CH, h)  # the state before step s
                t = i * L + c * T + first + s
                dl = tl.load(delta + t * D + channel, mask=mc, other=0.0).to(tl.float32)
                xs = tl.load(x + t * D + channel, mask=mc, other=0.0).to(tl.float32)
                b = tl.load(B + t * N + state, mask=mn, other=0.0).to(tl.float32)
                h = tl.exp(dl * a) * h + (dl * xs) * b
            tl.debug_barrier()
            for r in range(count):
                s = count - 1 - r
                t = i * L + c * T + first + s
                before = tl.load(own + s * NN * CH)
                dl = tl.load(delta + t * D + channel, mask=mc, other=0.0).to(tl.float32)
                xs = tl.load(x + t * D + channel, mask=mc, other=0.0).to(tl.float32)
                dys = tl.load(dy + t * D + channel, mask=mc, other=0.0).to(tl.float32)
                b = tl.load(B + t * N + state, mask=mn, other=0.0).to(tl.float32)
                w = tl.load(C + t * N + state, mask=mn, other=0.0).to(tl.float32)
                g += dys * w
                to = (block.to(tl.int64) * (items // chunks) * L + t) * N + n
                tl.store(dC + to, tl.sum(dys * h, 1), mask=n < N)
                tl.store(dB + to, tl.sum(g * (dl * xs), 1), mask=n < N)
                du = tl.sum(g * b, 0)[None, :]
                g *= tl.exp(dl * a)
                step = g * before  # gradient of Delta_t A
                da += step * dl
                dd += dys * xs
                out = tl.sum(step * a, 0)[None, :] + du * xs
                tl.store(ddelta + t * D + channel, out.to(ddelta.dtype.element_ty), mask=mc)
                out = du * dl + dys * gain
                tl.store(dx + t * D + channel, out.to(dx.dtype.element_ty), mask=mc)
                h = before
            tl.debug_barrier()
        row = i * chunks + c
        tl.store(dA + (row * N + state) * D + channel, da, mask=mc & mn)
        tl.store(dD + row * D + channel, dd, mask=mc)


def chunk_length(length: int) -> int:
    """Steps of a chunk, a multiple of SUB near the square root of the length: as many chunks as steps in each."""
    return min(1024, max(64, triton.next_power_of_2(int(length**0.5))))


class Fused(torch.autograd.Function):
    """The scan of `papers.mamba.scan`, shapes as there, h (b, d, n); A, D and h are float32, the rest what it is."""

    @staticmethod
    def forward(ctx, x, delta, A, B, C, D, h, T):
        x, delta, A, B, C, D = (v.contiguous() for v in (x, delta, A, B, C, D))
        (b, l, d), n = x.shape, A.shape[1]  # noqa: E741
        chunks, subs, sub = triton.cdiv(l, T), triton.cdiv(l, SUB.value), SUB.value
        size = {"CH": CHANNELS, "NN": triton.next_power_of_2(n), "num_warps": 1}
        blocks = triton.cdiv(d, CHANNELS)
        keep = any(ctx.needs_input_grad)
        ends, sums = A.new_empty(b, chunks, n, d), A.new_empty(b, chunks, d)
        marks = A.new_empty((b, subs, n, d) if keep else (0,))
        last, y = h.mT.to(torch.float32).clone(memory_format=torch.contiguous_format), torch.empty_like(x)
        grid = (b, blocks, chunks)
        _ends[grid](x, delta, A, B, ends, sums, l, d, n, T, chunks, REVERSE=False, **size)
        _carry[(b, blocks)](A, ends, sums, last, d, n, chunks, REVERSE=False, **size)
        _read_out[grid](
            x, delta, A, B, C, D, ends, marks, y, l, d, n, T, chunks, subs, KEEP=keep, SUB=sub, **size
        )  # fmt: skip
        ctx.save_for_backward(x, delta, A, B, C, D, marks)
        ctx.T = T
        last = last.mT
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    def backward(ctx, dy, _):
        x, delta, A, B, C, D, marks = ctx.saved_tensors
        dy, T = dy.contiguous(), ctx.T
        (b, l, d), n = x.shape, A.shape[1]  # noqa: E741
        chunks, subs, sub = triton.cdiv(l, T), triton.cdiv(l, SUB.value), SUB.value
        size = {"CH": CHANNELS, "NN": triton.next_power_of_2(n), "num_warps": 1}
        blocks, items = triton.cdiv(d, CHANNELS), b * chunks
        ends, sums, g = A.new_empty(b, chunks, n, d), A.new_empty(b, chunks, d), A.new_zeros(b, n, d)
        _ends[(b, blocks, chunks)](dy, delta, A, C, ends, sums, l, d, n, T, chunks, REVERSE=True, **size)
        _carry[(b, blocks)](A, ends, sums, g, d, n, chunks, REVERSE=True, **size)
        programs = min(items, triton.cdiv(WARPS, blocks))
        scratch = A.new_empty(programs, blocks, sub, size["NN"], CHANNELS)
        dx, ddelta, dA, dD = (
            torch.empty_like(x),
            torch.empty_like(delta),
            torch.empty_like(ends),
            torch.empty_like(sums),
        )
        dB, dC = A.new_empty(2, blocks, b, l, n)
        _gradients[(programs, blocks)](
            x, delta, A, B, C, D, marks, ends, dy, scratch, dx, ddelta, dA, dB, dC, dD,
            l, d, n, T, chunks, subs, items, SUB=sub, **size,
        )  # fmt: skip
        dB, dC = dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype)
        return dx, ddelta, dA.sum((0, 1)).mT, dB, dC, dD.sum((0, 1)), None, None


def fused_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h: Tensor, chunk: int = 0
) -> tuple[Tensor, Tensor]:
    """(y in the precision of x, last state in float32).

    Args:
        chunk: steps of a chunk, a multiple of SUB; 0: by the length.
    """
    chunk = chunk or chunk_length(x.shape[1])
    return Fused.apply(x, delta, A.float(), B, C, D.float(), h, chunk)
