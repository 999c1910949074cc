"""Sequences: pictures as pixels, ListOps and Pathfinder by programs of our own after the published rules.

A generated sample is a pure function of (split, its number): the sets are the same for every seed, as files would be.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.data import hub, images
from common.errors import UserError
from common.random import integer
from papers.s4.snakes import pathfinder

SPLITS = ("train", "validation", "test")
VOCABULARY = ("<pad>", "<unk>", "<eos>", "]", "[MIN", "[MAX", "[MED", "[SM", *"0123456789")  # 18, as LRA's
EOS, CLOSE, OPERATOR, DIGIT = 2, 3, 4, 8
LISTOPS_CHUNK, LISTOPS_LENGTH, MAX_DEPTH, MAX_ARGUMENTS = 500, 2000, 10, 10


@dataclass(frozen=True)
class Sequences:
    """A labelled set of sequences in three parts; each maps a split to a tensor.

    Attributes:
        x: (n, l, c) or tokens (n, l), uint8. y: (n,) int64. lengths: (n,) int64 of tokens, else None.
        tokens: size of the vocabulary, 0 for numbers.
    """

    fingerprint: str
    x: dict[str, Tensor]
    y: dict[str, Tensor]
    lengths: dict[str, Tensor] | None
    tokens: int
    classes: int


def bit_reversal(n: int) -> Tensor:
    """0 ... n - 1 in the order of their reversed bits, as the official code permutes MNIST."""
    bits = max(1, (n - 1).bit_length())
    order = [int(format(i, f"0{bits}b")[::-1], 2) for i in range(1 << bits)]
    return torch.tensor([i for i in order if i < n])


def held_out(n: int, seed: int = 42) -> tuple[Tensor, Tensor]:
    """Training and validation numbers: the official code's random tenth, always drawn with seed 42."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[: int(n * 0.9)], order[int(n * 0.9) :]


def pixels(x: Tensor, grey: bool, shrink: int, permuted: bool) -> Tensor:
    """(n, h, w, c) uint8 -> (n, l, c) uint8 in scan order; grey by Pillow's weights; `shrink` averages squares."""
    if grey and x.shape[-1] == 3:
        weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32)
        x = torch.stack([((part.int() * weights).sum(-1) + 0x8000) >> 16 for part in x]).to(torch.uint8)[..., None]
    if shrink > 1:
        n, h, w, c = x.shape
        if h % shrink or w % shrink:
            raise UserError(f"pictures of {h} x {w} do not shrink by {shrink}")
        squares = x.view(n, h // shrink, shrink, w // shrink, shrink, c)
        x = torch.stack([part.float().mean((1, 3)).round() for part in squares]).to(torch.uint8)
    x = x.flatten(1, 2)
    return x[:, bit_reversal(x.shape[1])] if permuted else x


@lru_cache(maxsize=1)  # seeds that train one after the other read it once
def load(
    name: str, data_dir: Path | None, sizes: tuple[int, int, int], grey: bool, shrink: int, permuted: bool
) -> Sequences:
    """Read or generate a set.

    Args:
        name: of a picture set (`common.data.images`), "generated/listops" or "generated/pathfinder32".
        sizes: samples of each split; 0: all there are (pictures), where validation is a tenth of the training set.
    """
    if name in ("generated/listops", "generated/pathfinder32"):
        if not all(sizes):
            raise UserError(f"{name} is generated: say how many samples, not 0")
        made = {
            split: (listops if "listops" in name else pathfinder)(split, n)
            for split, n in zip(SPLITS, sizes, strict=True)
        }
        fingerprint = hub.fingerprint(*(array for parts in made.values() for array in parts))
        x, y = ({split: torch.from_numpy(parts[i]) for split, parts in made.items()} for i in (0, 1))
        if name == "generated/pathfinder32":
            return Sequences(fingerprint, {k: v.flatten(1)[..., None] for k, v in x.items()}, y, None, 0, 2)
        lengths = {k: (v != 0).sum(1) for k, v in x.items()}
        return Sequences(fingerprint, x, y, lengths, len(VOCABULARY), 10)
    read = images.load(name, data_dir)
    training, validation = held_out(len(read.train))
    x = {"train": read.train[training], "validation": read.train[validation], "test": read.test}
    y = {"train": read.train_labels[training], "validation": read.train_labels[validation], "test": read.test_labels}
    kept = {split: slice(n or None) for split, n in zip(SPLITS, sizes, strict=True)}
    x = {split: pixels(part[kept[split]], grey, shrink, permuted) for split, part in x.items()}
    return Sequences(read.fingerprint, x, {k: v[kept[k]] for k, v in y.items()}, None, 0, 10)


# ---- ListOps (Nangia and Bowman 2018, with Long Range Arena's settings)


def listops(split: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (n, 2001) uint8, padded with 0, and labels (n,) int64.

    A node above the greatest depth is an operator with probability 1/4, else a digit; operators (MIN, MAX, MED, SM)
    have 2 to 10 arguments; trees of more than 500 and fewer than 2,000 tokens are kept.
    """
    parts = [_listops_chunk(split, i) for i in range(-(-n // LISTOPS_CHUNK))]
    tokens, labels = (np.concatenate(both)[:n] for both in zip(*parts, strict=True))
    return tokens, labels


def _listops_chunk(split: str, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(integer("listops", split, chunk))
    tokens: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    while sum(len(part) for part in labels) < LISTOPS_CHUNK:
        operators, arities = _shapes(rng, 3 * LISTOPS_CHUNK + 200)  # a third is kept
        made = _trees(rng, operators, arities)
        tokens.append(made[0])
        labels.append(made[1])
    return np.concatenate(tokens)[:LISTOPS_CHUNK], np.concatenate(labels)[:LISTOPS_CHUNK]


def _shapes(rng: np.random.Generator, trials: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Numbers of operators on each level, (kept trees, levels), and the operators' arities level by level, of the
    trees whose length is right. Roots that are digits are never long enough: they are not drawn.
    """
    operators = np.zeros((trials, MAX_DEPTH - 1), np.int64)
    operators[:, 0] = 1
    length = np.zeros(trials, np.int64)
    arities = []
    for level in range(MAX_DEPTH - 1):
        count = operators[:, level]
        arity = rng.integers(2, MAX_ARGUMENTS + 1, count.sum())
        owner = np.repeat(np.arange(trials), count)
        children = np.bincount(owner, arity, trials).astype(np.int64)
        deeper = rng.binomial(children, 0.25) if level + 2 < MAX_DEPTH else np.zeros_like(children)
        length += 2 * count + children - deeper
        if level + 2 < MAX_DEPTH:
            operators[:, level + 1] = deeper
        arities.append((owner, arity))
    kept = (length > 500) & (length < LISTOPS_LENGTH)
    return operators[kept], [arity[kept[owner]] for owner, arity in arities]


def _trees(rng: np.random.Generator, operators: np.ndarray, arities: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and values of trees of these shapes; which of a level's nodes are operators is a uniform choice."""
    trees = len(operators)
    nodes = np.ones(trees, np.int64)  # on this level, of each tree
    levels = []
    for level in range(MAX_DEPTH):
        owner = np.repeat(np.arange(trees), nodes)
        value = rng.integers(10, size=len(owner))
        is_operator = np.zeros(len(owner), bool)
        if level < MAX_DEPTH - 1:
            order = np.argsort(owner + rng.random(len(owner)))  # shuffled within each tree
            rank = np.arange(len(owner)) - np.repeat(np.cumsum(nodes) - nodes, nodes)
            is_operator[order] = rank < operators[owner, level]
            nodes = np.bincount(owner[is_operator], arities[level], trees).astype(np.int64)
        levels.append((is_operator, value))
    below_size = below_value = np.zeros(0, np.int64)
    sizes, kinds = [], []
    for level in reversed(range(MAX_DEPTH)):  # values and lengths from the leaves up
        is_operator, value = levels[level]
        size = np.ones(len(value), np.int64)
        kind = np.zeros(0, np.int64)
        if is_operator.any():
            arity = arities[level]
            start = np.cumsum(arity) - arity
            kind = rng.integers(4, size=len(arity))
            ordered = np.sort(16 * np.repeat(np.arange(len(arity)), arity) + below_value) % 16
            median = (ordered[start + (arity - 1) // 2] + ordered[start + arity // 2]) // 2
            total = np.add.reduceat(below_value, start) % 10
            value[is_operator] = np.choose(kind, [ordered[start], ordered[start + arity - 1], median, total])
            size[is_operator] = 2 + np.add.reduceat(below_size, start)
        below_size, below_value = size, value
        sizes.append(size)
        kinds.append(kind)
    tokens = np.zeros((trees, LISTOPS_LENGTH + 1), np.uint8)
    flat, place = tokens.reshape(-1), np.arange(trees) * tokens.shape[1]
    flat[place + sizes[-1]] = EOS
    for level, (is_operator, value) in enumerate(levels):  # places from the root down
        size, kind = sizes[-1 - level], kinds[-1 - level]
        flat[place[~is_operator]] = DIGIT + value[~is_operator]
        first = place[is_operator]
        flat[first] = OPERATOR + kind
        flat[first + size[is_operator] - 1] = CLOSE
        if level < MAX_DEPTH - 1:
            arity, child = arities[level], sizes[-2 - level]
            before = np.cumsum(child) - child
            start = np.cumsum(arity) - arity
            segment = np.repeat(np.arange(len(arity)), arity)
            place = first[segment] + 1 + before - before[start][segment] if len(arity) else place[:0]
    return tokens, levels[0][1]


def listops_value(tokens: list[str]) -> int:
    """The value of an expression, read token by token."""
    stack: list[list] = []
    for token in tokens:
        if token.startswith("["):
            stack.append([token])
            continue
        if token == "]":
            operator, *numbers = stack.pop()
            middle = sorted(numbers)
            value = {
                "[MIN": min(numbers),
                "[MAX": max(numbers),
                "[MED": math.floor((middle[(len(middle) - 1) // 2] + middle[len(middle) // 2]) / 2),
                "[SM": sum(numbers) % 10,
            }[operator]
        else:
            value = int(token)
        if not stack:
            return value
        stack[-1].append(value)
    raise ValueError("the expression does not end")
