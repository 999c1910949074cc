"""The paper's generated data: sequence number n of a trial is a pure function of (the trial's key, n).

Tasks: embedded Reber grammar (1), long time lags without and with noise (2a, 2b, 2c), noise and signal on one channel
(3a, 3b, 3c), adding (4), multiplication (5), temporal order (6a, 6b). Compiled, because a trial reads millions of them.
"""

import hashlib
import math
from typing import Any, NamedTuple

import numba
import numpy as np

from common.errors import UserError
from common.random import integer


class Sequences(NamedTuple):
    """Sequences laid end to end. A row is one time step; its input vector is sparse.

    numba keeps compiled code by the file it stands in: after changing these fields touch kernel.py too.
    """

    start: Any  # (n + 1,) sequence i has rows start[i] ... start[i + 1] - 1
    unit: Any  # (rows, j) input units that are not zero ...
    value: Any  # (rows, j) ... and their values
    target: Any  # (rows,) the output unit with a non-zero target; -1: no error signal at this step
    amount: Any  # (rows,) that unit's target
    clean: Any  # (rows,) the same before noise was added (task 3c), else equal
    legal: Any  # (rows,) Reber: bit k says that symbol k may come next


class Task(NamedTuple):
    """What the generators need to know; each uses its own part."""

    kind: int  # which generator
    length: int = 100  # minimal sequence length T
    informative: int = 1  # N first elements that carry the class (task 3)
    p: int = 100  # size of the alphabet of distractors (task 2)
    q: int = 100  # minimal number of distractors (task 2c)
    random_middle: int = 0  # task 2b
    input_noise: float = 0.0  # standard deviation of the noise on the informative elements (3b)
    target_noise: float = 0.0  # of the noise on the target (3c)
    low: float = 0.0  # target of the class shown by -1 ...
    high: float = 1.0  # ... and by +1 (task 3)
    product: int = 0  # multiply instead of adding
    events: int = 2  # relevant symbols: 2 in 6a, 3 in 6b
    endless: int = 0  # Reber: predict the next string's first symbol too (Gers et al. 2000)


NOISE = math.sqrt(0.2)  # task 3: Gaussian of VARIANCE 0.2
_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


# ---- random numbers: a hash of (key, n, number of the draw). All products stay below 2^63.


@_jit
def _mix(x):
    """32 bits in, 32 bits out: xor-shift and multiply (constants from C. Wellons' hash prospector)."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD & 0xFFFFFFFF
    x = (x ^ (x >> 15)) * 0x735A2D97 & 0xFFFFFFFF
    return x ^ (x >> 15)


@_jit
def _begin(rng, key, n):
    rng[0] = _mix((key[0] ^ _mix(n & 0xFFFFFFFF)) & 0xFFFFFFFF)
    rng[1] = _mix((key[1] + _mix((n & 0xFFFFFFFF) ^ 0x5BD1E995)) & 0xFFFFFFFF)
    rng[2] = 0


@_jit
def uniform(rng):
    """The next number in (0, 1)."""
    rng[2] += 1
    return (_mix(rng[0] ^ _mix((rng[1] + rng[2] * 0x9E3779B9) & 0xFFFFFFFF)) + 0.5) / 4294967296.0


@_jit
def gaussian(rng):
    """Mean 0, variance 1 (Box and Muller)."""
    radius = math.sqrt(-2.0 * math.log(uniform(rng)))
    return radius * math.cos(2.0 * math.pi * uniform(rng))


def key_of(*words: int | str) -> np.ndarray:
    """Two 32-bit words for a purpose: `key_of(seed, "data")`."""
    bits = integer(*words)
    return np.array([bits & 0xFFFFFFFF, bits >> 32], dtype=np.int64)


# ---- one function a task: a sequence into the rows from `row` on; returns the row after its last.
# Rows come with value 1, target -1 (none), amount and clean 1, legal 0.

# Symbols B T P S X V E = 0 ... 6. From node i, the two edges: symbol and next node (5: the grammar's end).
REBER_SYMBOLS = "BTPSXVE"
_EDGE_SYMBOL = np.array([(1, 2), (3, 4), (1, 5), (4, 3), (2, 5)])
_EDGE_NODE = np.array([(1, 2), (1, 3), (2, 4), (2, 5), (3, 5)])


@_jit
def _reber(task, rng, row, out):
    """Embedded Reber grammar: B w B ... E w E, with w one of T and P (Figures 3 and 4)."""
    w = 1 + int(uniform(rng) * 2)
    begin = row
    out.unit[row, 0], out.unit[row + 1, 0], out.unit[row + 2, 0] = 0, w, 0
    out.legal[row], out.legal[row + 1] = 1 << 1 | 1 << 2, 1 << 0
    row, node = row + 2, 0
    while node < 5:
        out.legal[row] = 1 << _EDGE_SYMBOL[node, 0] | 1 << _EDGE_SYMBOL[node, 1]
        edge = int(uniform(rng) * 2)
        row += 1
        out.unit[row, 0], node = _EDGE_SYMBOL[node, edge], _EDGE_NODE[node, edge]
    out.unit[row + 1, 0], out.unit[row + 2, 0], out.unit[row + 3, 0] = 6, w, 6
    out.legal[row], out.legal[row + 1], out.legal[row + 2], out.legal[row + 3] = 1 << 6, 1 << w, 1 << 6, 1 << 0
    for r in range(begin, row + 3):
        out.target[r] = out.unit[r + 1, 0]
    if task.endless:
        out.target[row + 3] = 0
    return row + 4


@_jit
def _lag(task, rng, row, out):
    """Tasks 2a and 2b: w a_1 ... a_{p-1} w, w one of x and y; the next symbol is the target at every step."""
    w = task.p - 1 + int(uniform(rng) * 2)
    out.unit[row, 0] = out.unit[row + task.p, 0] = w
    for i in range(task.p - 1):
        out.unit[row + 1 + i, 0] = int(uniform(rng) * (task.p - 1)) if task.random_middle else i
    for r in range(row, row + task.p):
        out.target[r] = out.unit[r + 1, 0]
    return row + task.p + 1


@_jit
def _distractors(task, rng, row, out):
    """Task 2c: b, x or y, q distractors and geometrically many more, e; then tell x from y."""
    w = int(uniform(rng) * 2)
    out.unit[row, 0], out.unit[row + 1, 0] = task.p + 1, task.p + 2 + w
    row, count = row + 2, 0
    while count < task.q or uniform(rng) < 0.9:
        out.unit[row, 0] = int(uniform(rng) * task.p)
        row, count = row + 1, count + 1
    out.unit[row, 0], out.target[row] = task.p, w
    return row + 1


@_jit
def _two_sequences(task, rng, row, out):
    """Task 3: the first N elements are +1 or -1 (3b, 3c: plus noise), the rest is noise."""
    positive = uniform(rng) < 0.5
    last = row + task.length + int(uniform(rng) * (task.length // 10 + 1)) - 1
    for r in range(row, last + 1):
        out.unit[r, 0] = 0
        if r - row < task.informative:
            out.value[r, 0] = 1.0 if positive else -1.0
            if task.input_noise > 0.0:
                out.value[r, 0] += task.input_noise * gaussian(rng)
        else:
            out.value[r, 0] = NOISE * gaussian(rng)
    out.target[last] = 0
    out.amount[last] = out.clean[last] = task.high if positive else task.low
    if task.target_noise > 0.0:
        out.amount[last] += task.target_noise * gaussian(rng)
    return last + 1


@_jit
def _marked_pairs(task, rng, row, out):
    """Adding (4) and multiplication (5): pairs (value, marker), two of them marked by 1."""
    last = row + task.length + int(uniform(rng) * (task.length // 10 + 1)) - 1
    for r in range(row, last + 1):
        x = uniform(rng)
        out.unit[r, 0], out.unit[r, 1] = 0, 1
        out.value[r, 0], out.value[r, 1] = x if task.product else 2.0 * x - 1.0, 0.0
    out.value[row, 1] = out.value[last, 1] = -1.0
    one = int(uniform(rng) * 10)
    other = int(uniform(rng) * (task.length // 2 - 1))  # among the first T/2 - 1 pairs that are still unmarked
    if other >= one:
        other += 1
    if one == 0 or other == 0:  # "we set X1 to zero" (5.5: to 1.0)
        out.value[row, 0] = 1.0 if task.product else 0.0
    out.value[row + one, 1] = out.value[row + other, 1] = 1.0
    a, b = out.value[row + one, 0], out.value[row + other, 0]
    out.target[last] = 0
    out.amount[last] = out.clean[last] = a * b if task.product else 0.5 + (a + b) / 4.0
    return last + 1


@_jit
def _temporal_order(task, rng, row, out):
    """Task 6: E, distractors a-d with an X or Y at two (three) places, B; the class is the order of the X and Y.

    Symbols a b c d X Y E B = 0 ... 7; positions count from 1.
    """
    last = row + 99 + int(uniform(rng) * 11)
    out.unit[row, 0], out.unit[last, 0] = 6, 7
    for r in range(row + 1, last):
        out.unit[r, 0] = int(uniform(rng) * 4)
    order = 0
    for event in range(task.events):
        position = 10 + (40 * event if task.events == 2 else 23 * event + 10 * (event // 2))  # 10, 50; 10, 33, 66
        y = int(uniform(rng) * 2)
        out.unit[row + position - 1 + int(uniform(rng) * 11), 0] = 4 + y
        order = 2 * order + y
    out.target[last] = order
    return last + 1


# ---- many sequences


@_jit
def _fill(task, key, first, count, out, longest):
    """Sequences first ... first + count - 1, or as many of them as surely fit; returns how many."""
    rng = np.zeros(3, dtype=np.int64)
    made = 0
    out.start[0] = 0
    while made < count and out.start[made] + longest <= len(out.target):
        row = out.start[made]
        _begin(rng, key, first + made)
        if task.kind == 0:
            row = _reber(task, rng, row, out)
        elif task.kind == 1:
            row = _lag(task, rng, row, out)
        elif task.kind == 2:
            row = _distractors(task, rng, row, out)
        elif task.kind == 3:
            row = _two_sequences(task, rng, row, out)
        elif task.kind == 4:
            row = _marked_pairs(task, rng, row, out)
        else:
            row = _temporal_order(task, rng, row, out)
        made += 1
        out.start[made] = row
    return made


@_jit
def choices(key, first, count, n):
    """For sequences first ... first + count - 1, one of n things at random."""
    rng = np.zeros(3, dtype=np.int64)
    chosen = np.empty(count, dtype=np.int64)
    for i in range(count):
        _begin(rng, key, first + i)
        chosen[i] = int(uniform(rng) * n)
    return chosen


NAMES = (
    "reber", "continual-reber", "2a", "2b", "2c", "3a", "3b", "3c", "adding", "multiplication", "6a", "6b",
)  # fmt: skip


def describe(name: str, length: int, informative: int, p: int, q: int) -> tuple[Task, int, int, int]:
    """(task, input units, output units, rows the longest sequence needs).

    Raises:
        UserError: no such task, or a size its generator cannot make.
    """
    least = {"2a": (p, 2), "2b": (p, 2), "2c": (min(p, q), 1), "adding": (length, 22), "multiplication": (length, 22)}
    size, smallest = least.get(name, (length, max(1, informative)))
    if name not in NAMES:
        raise UserError(f"dataset generated/{name}: no such task; known: {', '.join(NAMES)}")
    if size < smallest:
        raise UserError(f"dataset generated/{name} needs a size of at least {smallest}, not {size}")
    noise, rows = NOISE if name in ("3b", "3c") else 0.0, length + length // 10 + 1
    if name in ("reber", "continual-reber"):  # each further symbol has probability 0.72: 200 are never met
        return Task(0, endless=int(name != "reber")), 7, 7, 200
    if name in ("2a", "2b"):
        return Task(1, p=p, random_middle=int(name == "2b")), p + 1, p + 1, p + 1
    if name == "2c":
        return Task(2, p=p, q=q), p + 4, 2, q + 500
    if name in ("3a", "3b"):
        return Task(3, length, informative, input_noise=noise), 1, 1, rows
    if name == "3c":  # class 1 (+1) has target 0.2, class 2 has 0.8, both with noise of VARIANCE 0.1
        return Task(3, length, informative, 0, 0, 0, noise, math.sqrt(0.1), low=0.8, high=0.2), 1, 1, rows
    if name in ("adding", "multiplication"):
        return Task(4, length, product=int(name == "multiplication")), 2, 1, rows
    return Task(5, events=2 if name == "6a" else 3), 8, 4 if name == "6a" else 8, 110


ROWS = 40_000  # of a buffer: some 2 MB, so that the 20 trials of a claim stay small


class Source:
    """The sequences of one key, a buffer at a time."""

    def __init__(
        self, name: str, length: int, informative: int, p: int, q: int, key: np.ndarray, most: int, rows: int = ROWS
    ) -> None:
        self.task, self.inputs, self.outputs, self.longest = describe(name, length, informative, p, q)
        self.key = key
        self.pool: Sequences | None = None  # where set, exemplars are picked from it
        self.most = max(1, min(most, rows // self.longest))
        self.out = empty(self.most, self.most * self.longest, 2 if self.task.kind == 4 else 1)

    def read(self, first: int, count: int) -> tuple[Sequences, int]:
        """Sequences first, first + 1 ...: (buffer, how many are in it). The buffer is used again by the next call."""
        count = min(count, self.most)
        if self.pool is not None:  # training exemplars are picked randomly from the training set (task 1)
            return select(self.pool, choices(self.key, first, count, len(self.pool.start) - 1)), count
        rows = count * self.longest
        self.out.value[:rows], self.out.target[:rows] = 1.0, -1
        self.out.amount[:rows] = self.out.clean[:rows] = 1.0
        return self.out, _fill(self.task, self.key, first, count, self.out, self.longest)


def empty(count: int, rows: int, sparse: int) -> Sequences:
    return Sequences(
        np.zeros(count + 1, dtype=np.int64),
        np.zeros((rows, sparse), dtype=np.int64),
        np.zeros((rows, sparse)),
        np.full(rows, -1, dtype=np.int64),
        np.zeros(rows),
        np.zeros(rows),
        np.zeros(rows, dtype=np.int64),
    )


def strings(data: Sequences, count: int) -> list[str]:
    """Reber strings as text."""
    return ["".join(REBER_SYMBOLS[u] for u in data.unit[data.start[i] : data.start[i + 1], 0]) for i in range(count)]


def select(data: Sequences, chosen: np.ndarray) -> Sequences:
    """Some of the sequences, in that order."""
    lengths = np.diff(data.start)[chosen]
    start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.arange(start[-1]) + np.repeat(data.start[chosen] - start[:-1], lengths)
    return Sequences(start, *(part[rows].copy() for part in data[1:]))


def reber_sets(key: np.ndarray, size: int) -> tuple[Sequences, Sequences]:
    """Section 5.1: `size` training strings, and as many test strings none of which is a training string."""
    source = Source("reber", 1, 1, 1, 1, key, most=16 * size, rows=16 * size * 200)
    data, count = source.read(0, 16 * size)
    texts = strings(data, count)
    train = set(texts[:size])
    test = [i for i in range(size, count) if texts[i] not in train][:size]
    if len(test) < size:
        raise UserError(f"too few strings outside a training set of {size}; ask for smaller sets")
    return select(data, np.arange(size)), select(data, np.array(test))


def fingerprint(name: str) -> str:
    """A hash of what a task's generator makes at one fixed size: sequences of a fixed key, to nine digits."""
    source = Source(name, 100, 3, 50, 50, key_of("fingerprint"), most=20)
    data, count = source.read(0, 20)
    rows = data.start[count]
    digest = hashlib.sha256(name.encode())
    for part in (data.start[: count + 1], *(part[:rows] for part in data[1:])):
        digest.update(np.round(part * 1e9).astype(np.int64).tobytes())
    return f"sha256:{digest.hexdigest()}"
