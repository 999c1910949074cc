"""Convolution of long sequences with kernels of their length, by FFT with zero padding, and its gradient.

Torch's own gradient of a real FFT runs a complex one of full length; here every transform is real, the transform of the
input is made anew rather than kept, and on a CPU the batch passes through the cache in parts.
"""

from typing import Any

import torch
from torch import Tensor

CACHE = 1 << 17  # complex numbers that a part of the batch may have in the frequency domain on a CPU


def fft_length(n: int) -> int:
    """The smallest even 2^a 3^b 5^c that is at least n."""
    best = 1 << max(1, (n - 1).bit_length())
    three = 1
    while three < best:
        five = three
        while five < best:
            twos = 2
            while twos * five < n:
                twos *= 2
            best = min(best, twos * five)
            five *= 5
        three *= 3
    return best


def convolve(u: Tensor, k: Tensor) -> Tensor:
    """Causal convolution: y_t = sum over i <= t of k_i u_(t - i); the past never sees the end.

    Args:
        u: (b, h, l) float. k: (h, l).

    Returns:
        (b, h, l)
    """
    return _Circular.apply(u, k, fft_length(u.shape[-1] + k.shape[-1] - 1))


def convolve_both_ways(u: Tensor, ahead: Tensor, back: Tensor) -> Tensor:
    """y_t = sum over i <= t of ahead_i u_(t - i) + sum over i > t of back_(i - t - 1) u_i.

    Args:
        u: (b, h, l). ahead, back: (h, l).
    """
    n = fft_length(2 * u.shape[-1])
    gap = n - ahead.shape[-1] - back.shape[-1]
    k = torch.cat([ahead, ahead.new_zeros(len(ahead), gap), back.flip(-1)], -1)
    return _Circular.apply(u, k, n)


class _Circular(torch.autograd.Function):
    """Circular convolution of period n, cut to the length of u."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, k: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(u, k)
        ctx.n = n
        k_f = torch.fft.rfft(k, n)
        y, size = torch.empty_like(u, memory_format=torch.contiguous_format), _part(u, n)
        for part, out in zip(u.split(size), y.split(size), strict=True):
            out.copy_(torch.fft.irfft(torch.fft.rfft(part, n).mul_(k_f), n)[..., : u.shape[-1]])
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (u, k), n, dy = ctx.saved_tensors, ctx.n, gradients[0]
        k_f = torch.fft.rfft(k, n).conj().resolve_conj()
        dk_f, du = torch.zeros_like(k_f), torch.empty_like(u, memory_format=torch.contiguous_format)
        size = _part(u, n)
        for part, given, out in zip(u.split(size), dy.split(size), du.split(size), strict=True):
            dy_f = torch.fft.rfft(given, n)
            dk_f += (torch.fft.rfft(part, n).conj() * dy_f).sum(0)
            out.copy_(torch.fft.irfft(dy_f.mul_(k_f), n)[..., : u.shape[-1]])
        return du, torch.fft.irfft(dk_f, n)[..., : k.shape[-1]], None


def _part(u: Tensor, n: int) -> int:
    """How many of the batch go through the transforms together."""
    if u.device.type != "cpu":
        return len(u)
    return max(1, CACHE // (u.shape[1] * (n // 2 + 1)))
