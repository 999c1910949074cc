"""Texts as numbers: the two halves a language model needs."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.data import hub
from common.data.text import Vocabulary, load_characters

HELD_OUT = 0.1  # of a text without parts, its end


class Corpus(NamedTuple):
    """Token numbers of both parts, (tokens,) int64, how many kinds there are, and the fingerprint."""

    train: Tensor
    test: Tensor
    vocabulary: int
    fingerprint: str


def characters(name: str, data_dir: Path | None) -> Corpus:
    """The characters of one text; its last tenth is the test part."""
    ids, vocabulary, fingerprint = load_characters(name, data_dir)
    first = round(len(ids) * (1 - HELD_OUT))
    return Corpus(ids[:first], ids[first:], len(vocabulary), fingerprint)


def words(name: str, data_dir: Path | None, min_count: int) -> Corpus:
    """The words of a data set with a column `text`, an `<eos>` after each row; most frequent words come first.

    Raises:
        UserError: the data set cannot be reached.
    """
    rows = {split: hub.load(name, split, data_dir)["text"] for split in ("train", "test")}
    vocabulary = Vocabulary.of((word for row in rows["train"] for word in row.split()), min_count, ("<unk>", "<eos>"))
    ids = {
        split: np.fromiter((n for row in texts for n in vocabulary.encode([*row.split(), "<eos>"])), dtype=np.int64)
        for split, texts in rows.items()
    }
    train, test = (torch.from_numpy(ids[split]) for split in ("train", "test"))
    return Corpus(train, test, len(vocabulary), hub.fingerprint(*ids.values()))
