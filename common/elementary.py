"""How kernels are compiled, and exp, log and tanh for them: of a float32 by arithmetic alone, so that loops become
vector instructions.

The C library's take 5 ns and more a call, one number at a time: two fifths of an update of NTM's. Polynomials
interpolate at Chebyshev points what is left after reduction to a short interval; with rounding, errors stay below two
units in the last place. Of a float64 the C library's.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

# "reassoc" lets sums become vectors. No flag lets the compiler forget about NaN: a diverged run must be seen.
vectorised = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})


def _numbers(*values: float) -> tuple[np.float32, ...]:
    return tuple(np.float32(v) for v in values)


_ZERO, _HALF, _ONE, _TWO = _numbers(0, 0.5, 1, 2)
_LOWEST, _HIGHEST = _numbers(-87.3, 88.3)  # e^x is a normal float32 between
_LOG2_E, _LN2_HIGH, _LN2_LOW = _numbers(1 / math.log(2), 0.693359375, math.log(2) - 0.693359375)  # high: few digits
_E0, _E1, _E2, _E3, _E4 = _numbers(0.5, 0.16666576, 0.041666556, 0.008363179, 0.0013926184)  # (e^r - 1 - r) / r^2
_L0, _L1, _L2 = _numbers(0.66666687, 0.39988777, 0.29580054)  # (2 artanh(s) - 2 s) / s^3, in s^2
_T0, _T1, _T2, _T3, _T4 = _numbers(-0.33333328, 0.13332769, -0.053850908, 0.02099718, -0.0060967142)  # (tanh - x) / x^3
_LINEAR = np.float32(0.625)  # tanh by its polynomial up to here
_BIAS, _DIGITS, _ROOT_HALF = np.int32(127), np.int32(23), np.int32(0x3F3504F3)  # of a float32; the bits of sqrt(0.5)


def _exp32(x: Any) -> Any:
    y = min(max(x, _LOWEST), _HIGHEST)
    n = np.floor(y * _LOG2_E + _HALF)
    r = y - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    y = ((((_E4 * r + _E3) * r + _E2) * r + _E1) * r + _E0) * (r * r) + r + _ONE
    y = y * np.int32((np.int32(n) + _BIAS) << _DIGITS).view(np.float32)
    y = _ZERO if x < _LOWEST else y
    return x if x != x else y


def _log32(x: Any) -> Any:
    bits = np.float32(x).view(np.int32)
    n = np.int32((bits - _ROOT_HALF) >> _DIGITS)
    m = np.int32(bits - (n << _DIGITS)).view(np.float32)  # in [sqrt(0.5), sqrt(2))
    s = (m - _ONE) / (m + _ONE)
    z = s * s
    k = np.float32(n)
    y = s * z * ((_L2 * z + _L1) * z + _L0) + k * _LN2_LOW + _TWO * s + k * _LN2_HIGH
    return x if x != x else y


def _tanh32(x: Any) -> Any:
    z = x * x
    small = x + x * z * ((((_T4 * z + _T3) * z + _T2) * z + _T1) * z + _T0)
    size = _ONE - _TWO / (exp(_TWO * abs(x)) + _ONE)
    return small if abs(x) < _LINEAR else (-size if x < _ZERO else size)


def exp(x: Any) -> Any:
    """e^x. A float32 below -87.3 gives 0, one above 88.3 what 88.3 gives."""
    return math.exp(x)


def log(x: Any) -> Any:
    """The natural logarithm of x, a positive number (float32: no subnormal)."""
    return math.log(x)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent of x."""
    return math.tanh(x)


def _compiled(function: Callable[[Any], Any], fast: Callable[[Any], Any], exact: Callable[[Any], Any]) -> None:
    def double(x: Any) -> Any:
        return exact(x)

    def by_type(x: Any) -> Any:
        return fast if x == types.float32 else double

    # without "reassoc", which could undo the order that keeps reductions exact
    overload(function, jit_options={"nogil": True, "error_model": "numpy", "fastmath": {"contract"}})(by_type)


_compiled(exp, _exp32, math.exp)
_compiled(log, _log32, math.log)
_compiled(tanh, _tanh32, math.tanh)
