"""exp, log and tanh of compiled kernels against numpy's in double precision."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from common.elementary import exp, log, tanh, vectorised


def over(function: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    """The function of every element, in a loop compiled as kernels are."""

    @vectorised
    def loop(x: Any, out: Any) -> None:
        for i in range(len(x)):
            out[i] = function(x[i])

    out = np.empty_like(x)
    loop(x, out)
    return out


@pytest.mark.parametrize(
    ("function", "exact", "x"),
    [
        (exp, np.exp, np.r_[np.linspace(-87, 88, 1_000_001), np.linspace(-1, 1, 1_000_001)]),
        (log, np.log, np.r_[np.geomspace(1.2e-38, 3e38, 1_000_001), np.linspace(0.5, 2, 1_000_001)]),
        (tanh, np.tanh, np.r_[np.linspace(-10, 10, 1_000_001), np.geomspace(1e-30, 1, 100_001)]),
    ],
)
def test_single_precision_is_within_two_units_in_the_last_place(
    function: Callable[[Any], Any], exact: Callable[[Any], Any], x: np.ndarray
) -> None:
    x = x.astype(np.float32)
    right = exact(x.astype(np.float64))
    assert (np.abs(over(function, x) - right) <= 2 * np.spacing(np.abs(right).astype(np.float32))).all()


def test_ends_of_the_range() -> None:
    x = np.float32([0, -88, -np.inf, np.nan, 1e-16])
    assert np.array_equal(over(exp, x), np.float32([1, 0, 0, np.nan, 1]), equal_nan=True)
    assert np.array_equal(over(tanh, x), np.float32([0, -1, -1, np.nan, 1e-16]), equal_nan=True)
    assert np.isnan(over(log, x[3:4])).all()
    assert np.isfinite(over(exp, np.float32([88.4, 1e30]))).all()


@pytest.mark.parametrize(("function", "exact"), [(exp, np.exp), (log, np.log), (tanh, np.tanh)])
def test_double_precision_is_the_c_librarys(function: Callable[[Any], Any], exact: Callable[[Any], Any]) -> None:
    x = np.linspace(0.01, 20, 1001)
    np.testing.assert_allclose(over(function, x), exact(x), rtol=1e-15)
