"""Propagation rules of Table 3 as one sparse matrix each, and the product of a sparse matrix with many nets at once.

A rule is a sum over supports, Z = sum_k S_k X Theta_k. Put side by side, with the columns of one node next to each
other, the supports are a single matrix P (n, n * k), and a layer is P @ reshape(X @ [Theta_0 ... Theta_K]).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional as F

STACKED_ENTRIES = 2**23  # entries of one product: enough to keep a device busy, few enough to fit in its memory
NETS_ON_CPU = 8  # side by side in one product, so that the table stays in the cache (measured best: 4 to 8)


def normalize(adjacency: sp.csr_matrix) -> sp.csr_matrix:
    """D^-1/2 A D^-1/2; isolated nodes keep empty rows."""
    degree = np.asarray(adjacency.sum(1), dtype=np.float64).ravel()
    with np.errstate(divide="ignore"):
        scale = sp.diags_array(np.where(degree > 0, degree**-0.5, 0.0))
    return sp.csr_matrix(scale @ adjacency @ scale)


def chebyshev(adjacency: sp.csr_matrix, degree: int) -> list[sp.csr_matrix]:
    """T_0 ... T_degree of the scaled Laplacian 2 L / lambda_max - I (Eq. 4 and 5)."""
    from scipy.sparse.linalg import eigsh

    identity = sp.eye_array(adjacency.shape[0], format="csr")
    laplacian = identity - normalize(adjacency)
    start = np.random.default_rng(0).random(adjacency.shape[0])  # eigsh would draw one of its own
    lambda_max = eigsh(laplacian, 1, which="LM", v0=start, return_eigenvectors=False)[0]
    scaled = (2.0 / lambda_max) * laplacian - identity
    supports = [identity, scaled]
    while len(supports) <= degree:
        supports.append(2 * scaled @ supports[-1] - supports[-2])
    return supports[: degree + 1]


def supports(rule: str, adjacency: sp.csr_matrix, degree: int = 1) -> list[sp.csr_matrix]:
    """The S_k of one row of Table 3, in double precision."""
    identity = sp.eye_array(adjacency.shape[0], format="csr")
    if rule == "renormalization":
        return [normalize(adjacency + identity)]  # Eq. 8
    if rule == "chebyshev":
        return chebyshev(adjacency, degree)  # Eq. 5
    if rule == "first-order":
        return [identity, normalize(adjacency)]  # Eq. 6
    if rule == "single-parameter":
        return [identity + normalize(adjacency)]  # Eq. 7: not (A + I) normalised
    if rule == "first-order-only":
        return [normalize(adjacency)]
    if rule == "none":
        return [identity]
    raise ValueError(f"unknown propagation rule {rule!r}")


def side_by_side(matrices: Sequence[sp.csr_matrix]) -> sp.csr_matrix:
    """[S_0 ... S_K] as (n, n * k): node j of support k is column j * k_total + k."""
    parts = [sp.coo_array(matrix) for matrix in matrices]
    rows = np.concatenate([part.row for part in parts])
    columns = np.concatenate([part.col.astype(np.int64) * len(parts) + k for k, part in enumerate(parts)])
    values = np.concatenate([part.data for part in parts])
    return sp.csr_matrix((values, (rows, columns)), shape=(parts[0].shape[0], parts[0].shape[1] * len(parts)))


class _Rows:
    """Compressed rows: the entries of row i are offsets[i]:offsets[i + 1]."""

    def __init__(self, offsets: Tensor, columns: Tensor, width: int) -> None:
        self.offsets, self.columns, self.width = offsets, columns, width  # (n + 1,), (entries,)
        self._stacked: tuple[Tensor, Tensor] = (offsets[:-1], columns)

    def stacked(self, nets: int) -> tuple[Tensor, Tensor]:
        """Offsets of the bags and their columns, for `nets` matrices (or more) one below the other on the diagonal."""
        entries = len(self.columns)
        if len(self._stacked[1]) < nets * entries:
            net = torch.arange(nets, dtype=torch.int32, device=self.columns.device)[:, None]
            offsets, columns = self.offsets[:-1] + net * entries, self.columns + net * self.width
            self._stacked = (offsets.flatten(), columns.flatten())
        return self._stacked


class SparseMatrix:
    """A constant matrix (n, m), multiplied with a dense (s, m, d) of s nets; each net may drop entries of its own.

    The product is torch's embedding_bag: row i of the result is the weighted sum of the rows its entries name. On a
    CPU this is a vectorised kernel, on a GPU one launch; the backward pass is the same product with the transpose.
    """

    def __init__(self, matrix: sp.spmatrix, device: torch.device | str = "cpu") -> None:
        rows = sp.csr_array(matrix)
        rows.sum_duplicates()
        self.shape: tuple[int, int] = rows.shape
        self.entries = rows.nnz
        turned = sp.csr_array((np.arange(self.entries), rows.indices, rows.indptr), shape=rows.shape).tocsc()

        def put(array: np.ndarray, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(array).to(device, dtype)

        self.values = put(rows.data, torch.float32)
        self._rows = _Rows(put(rows.indptr, torch.int32), put(rows.indices, torch.int32), self.shape[1])
        self._columns = _Rows(put(turned.indptr, torch.int32), put(turned.indices, torch.int32), self.shape[0])
        self._order = put(turned.data, torch.int32)  # entries by column, then row

    @cached_property
    def _values_by_column(self) -> Tensor:
        return self.values[self._order]

    def matmul(self, dense: Tensor, kept: Tensor | None = None, rate: float = 0.0) -> Tensor:
        """(n, m) @ (s, m, d) → (s, n, d), optionally after dropout of stored entries.

        Args:
            kept: (s, entries) bool, the entries each net keeps.
            rate: share of entries dropped; kept ones are scaled by 1 / (1 - rate).
        """
        weights = None if kept is None else kept * (self.values / (1 - rate))  # (s, entries)
        return _Product.apply(self, dense, weights)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: SparseMatrix, dense: Tensor, weights: Tensor | None) -> Tensor:
        ctx.matrix, ctx.weights = matrix, weights
        return _gather(matrix._rows, dense, matrix.values if weights is None else weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        matrix, weights = ctx.matrix, ctx.weights
        turned = matrix._values_by_column if weights is None else weights.index_select(1, matrix._order)
        return None, _gather(matrix._columns, gradient, turned), None


def _gather(rows: _Rows, dense: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of `dense` (s, m, d) → (s, n, d); weights (entries,) or each net's own (s, entries)."""
    nets, m, d = dense.shape
    n, entries = len(rows.offsets) - 1, len(rows.columns)
    if not entries:
        return dense.new_zeros(nets, n, d)
    shared = weights.dim() == 1
    if shared:
        group = NETS_ON_CPU if dense.device.type == "cpu" else nets
    else:
        group = min(nets, max(1, STACKED_ENTRIES // entries))
        offsets, columns = rows.stacked(group)
    parts = []
    for first in range(0, nets, group):
        part = dense.detach()[first : first + group]
        g = len(part)
        if shared:  # nets beside each other: an entry is read once for all
            wide = part.transpose(0, 1).reshape(m, g * d)
            sums = _bags(wide, rows.columns, rows.offsets[:-1], weights)
            parts.append(sums.view(n, g, d).transpose(0, 1))
        else:  # nets below each other: a block-diagonal matrix
            own = weights[first : first + g].flatten()
            sums = _bags(part.reshape(g * m, d), columns[: g * entries], offsets[: g * n], own)
            parts.append(sums.view(g, n, d))
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)


def _bags(table: Tensor, columns: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(columns, table, offsets, mode="sum", per_sample_weights=weights)


@dataclass
class Field:
    """What a set of nodes depends on: the rows of X and, layer by layer, the part of P that reaches them.

    Attributes:
        features: rows of X that matter, (n_0, f).
        propagations: P of each layer cut to (n_l, n_{l-1} * k).
        inner: where the nodes of layer l are among those of layer l - 1 (for residual connections).
    """

    features: SparseMatrix
    propagations: list[SparseMatrix]
    inner: list[Tensor]


def receptive_field(
    features: sp.csr_matrix, rules: Sequence[sp.csr_matrix], nodes: np.ndarray, device: torch.device | str = "cpu"
) -> Field:
    """Cut X and each layer's P to what `nodes` (sorted) can see: exact, and fewer rows to compute.

    Args:
        rules: P of each layer, (n, n * k).
    """
    propagations: list[SparseMatrix] = []
    inner: list[Tensor] = []
    outputs = nodes
    for rule in reversed(rules):
        n, k = rule.shape[0], rule.shape[1] // rule.shape[0]
        rows = sp.csr_matrix(rule)[outputs]
        inputs = np.union1d(outputs, rows.indices // k)
        position = np.zeros(n, dtype=np.int64)
        position[inputs] = np.arange(len(inputs))
        columns = position[rows.indices // k] * k + rows.indices % k
        cut = sp.csr_matrix((rows.data, columns, rows.indptr), shape=(len(outputs), len(inputs) * k))
        propagations.insert(0, SparseMatrix(cut, device))
        inner.insert(0, torch.from_numpy(position[outputs]).to(device))
        outputs = inputs
    return Field(SparseMatrix(sp.csr_matrix(features)[outputs], device), propagations, inner)
