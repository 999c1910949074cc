"""The five tasks of section 4: sequence n of a seed is a pure function of (seed, purpose, n)."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numba
import numpy as np

from common.errors import UserError
from common.random import integer

Size = tuple[int, ...]
Sequence = tuple[np.ndarray, np.ndarray, int]  # inputs (t, i), targets (t, k), first step that is judged


class Task(NamedTuple):
    """What a task's sequences look like."""

    inputs: int
    outputs: int
    sizes: tuple[tuple[int, int], ...]  # smallest and largest of each thing that is drawn uniformly in training
    steps: Callable[..., int]  # of a sequence of a given size
    make: Callable[..., Sequence]
    data_bits: int  # outputs that carry data; a further one is a marker


class Batch(NamedTuple):
    """Sequences of any lengths, padded with zeros."""

    x: np.ndarray  # (n, t, i)
    y: np.ndarray  # (n, t, k)
    first: np.ndarray  # (n,) outputs are judged from this step ...
    steps: np.ndarray  # (n,) ... to the end of the sequence


def _bits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 2, shape).astype(np.float32)


def _copy(rng: np.random.Generator, length: int) -> Sequence:
    """Start flag, 8-bit vectors, end flag; then the vectors again (4.1)."""
    bits = _bits(rng, length, 8)
    x, y = np.zeros((2 * length + 2, 10), np.float32), np.zeros((2 * length + 2, 9), np.float32)
    x[0, 8] = x[length + 1, 9] = 1
    x[1 : length + 1, :8] = y[length + 2 :, :8] = bits
    return x, y, length + 2


def _repeat_copy(rng: np.random.Generator, length: int, repeats: int) -> Sequence:
    """6-bit vectors, end flag, how often; then the vectors that often, and an end marker (4.2)."""
    bits = _bits(rng, length, 6)
    steps = length + 2 + length * repeats + 1
    x, y = np.zeros((steps, 8), np.float32), np.zeros((steps, 7), np.float32)
    x[:length, :6] = bits
    x[length, 6] = 1
    x[length + 1, 7] = (repeats - 5.5) / np.sqrt(8.25)  # mean 0, variance 1 over the repeats 1 to 10 of training
    y[length + 2 : -1, :6] = np.tile(bits, (repeats, 1))
    y[-1, 6] = 1
    return x, y, length + 2


def _associative(rng: np.random.Generator, items: int) -> Sequence:
    """Items of three 6-bit vectors, each after an item flag; one of them between query flags; then the next (4.3)."""
    bits = _bits(rng, items, 3, 6)
    query = int(rng.integers(items - 1))
    steps = 4 * items + 5 + 3
    x, y = np.zeros((steps, 8), np.float32), np.zeros((steps, 6), np.float32)
    x[: 4 * items : 4, 6] = 1
    for vector in range(3):
        x[vector + 1 : 4 * items : 4, :6] = bits[:, vector]
    x[4 * items, 7] = x[4 * items + 4, 7] = 1
    x[4 * items + 1 : 4 * items + 4, :6] = bits[query]
    y[-3:] = bits[query + 1]
    return x, y, steps - 3


@numba.njit(cache=True)
def _ngram_bits(table: np.ndarray, uniform: np.ndarray, bits: np.ndarray) -> None:
    """The context of a bit is the five before it, the newest being the lowest digit."""
    context = 0
    for t in range(len(bits)):
        bits[t] = uniform[t] < (0.5 if t < 5 else table[context])
        context = (2 * context + int(bits[t])) % 32


def _ngrams(rng: np.random.Generator, length: int) -> Sequence:
    """Bits of a 6-gram source whose 32 probabilities are drawn from Beta(1/2, 1/2); each is to be predicted (4.4)."""
    table = np.sin(np.pi / 2 * rng.random(32)) ** 2  # Beta(1/2, 1/2) is the arcsine distribution
    y = np.empty((length, 1), np.float32)
    _ngram_bits(table, rng.random(length), y[:, 0])
    return np.concatenate([np.zeros((1, 1), np.float32), y[:-1]]), y, 0


@numba.njit(cache=True)
def bayes(bits: np.ndarray) -> np.ndarray:
    """P(bit = 1 | all before) of the optimal estimator (Murphy 2012; section 4.4), (t,) -> (t,); one half without a
    context."""
    ones, zeros = np.zeros(32), np.zeros(32)
    p = np.full(len(bits), 0.5)
    context = 0
    for t in range(len(bits)):
        if t >= 5:
            p[t] = (ones[context] + 0.5) / (ones[context] + zeros[context] + 1.0)
            ones[context] += bits[t]
            zeros[context] += 1 - bits[t]
        context = (2 * context + int(bits[t])) % 32
    return p


def bayes_cost(batch: Batch) -> float:
    """Mean bits per sequence of the optimal estimator."""
    p = np.stack([bayes(y[:, 0]) for y in batch.y])
    return float(-np.log2(np.where(batch.y[..., 0] > 0.5, p, 1 - p)).sum(1).mean())


def _sort(rng: np.random.Generator, length: int) -> Sequence:
    """8-bit vectors, each with a priority from [-1, 1]; then four fifths of them by falling priority (4.5)."""
    bits, priority = _bits(rng, length, 8), rng.uniform(-1, 1, length)
    told = length * 4 // 5
    x, y = np.zeros((length + told, 9), np.float32), np.zeros((length + told, 8), np.float32)
    x[:length, :8], x[:length, 8] = bits, priority
    y[length:] = bits[np.argsort(-priority)[:told]]
    return x, y, length


TASKS = {
    "copy": Task(10, 9, ((1, 20),), lambda n: 2 * n + 2, _copy, 8),
    "repeat-copy": Task(8, 7, ((1, 10), (1, 10)), lambda n, r: n + n * r + 3, _repeat_copy, 6),
    "associative": Task(8, 6, ((2, 6),), lambda n: 4 * n + 8, _associative, 6),
    "ngrams": Task(1, 1, ((200, 200),), lambda n: n, _ngrams, 1),
    "sort": Task(9, 8, ((20, 20),), lambda n: n + n * 4 // 5, _sort, 8),
}


def task(dataset: str) -> Task:
    """The task that a configuration names.

    Raises:
        UserError: there is no such task.
    """
    kind, _, name = dataset.partition("/")
    if kind != "generated" or name not in TASKS:
        raise UserError(f"dataset {dataset}: no such task; known: {', '.join(f'generated/{n}' for n in TASKS)}")
    return TASKS[name]


def sequences(task: Task, key: Iterable[Any], numbers: range, size: Size | None = None) -> Batch:
    """Sequences of these numbers below a key such as (seed, "train"); of one size, or each of its own."""
    made = []
    for n in numbers:
        rng = np.random.default_rng(integer(*key, n))
        chosen = size or tuple(int(rng.integers(low, high + 1)) for low, high in task.sizes)
        made.append(task.make(rng, *chosen))
    steps = np.array([len(x) for x, _, _ in made])
    batch = Batch(
        np.zeros((len(made), steps.max(), task.inputs), np.float32),
        np.zeros((len(made), steps.max(), task.outputs), np.float32),
        np.array([first for _, _, first in made]),
        steps,
    )
    for i, (x, y, _) in enumerate(made):
        batch.x[i, : len(x)], batch.y[i, : len(y)] = x, y
    return batch


def parse_size(task: Task, text: str) -> Size:
    """`30` or, of repeat copy, `10x20`.

    Raises:
        UserError: not a size of this task.
    """
    parts = text.split("x")
    if len(parts) != len(task.sizes) or not all(p.isdecimal() and int(p) > 1 for p in parts):
        raise UserError(f"size {text!r} of a sequence: write {'x'.join('N' * len(task.sizes))} with numbers above 1")
    return tuple(map(int, parts))


def fingerprint(dataset: str) -> str:
    """A hash of what a task's generator makes: twenty sequences below a fixed key, to six digits."""
    batch = sequences(task(dataset), ("fingerprint",), range(20))
    digest = hashlib.sha256(dataset.encode())
    for part in batch:
        digest.update(np.round(part.astype(np.float64) * 1e6).astype(np.int64).tobytes())
    return f"sha256:{digest.hexdigest()}"
