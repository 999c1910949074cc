"""Text: corpora and sentence pairs, vocabularies, batches that are pure functions of (seed, step), and BLEU.

Glossary: b sentences or windows, s source length, t target or window length.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from common.data import hub
from common.errors import UserError
from common.random import generator

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEUScore

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
_END = "</w>"  # marks the last piece of a word, as in Sennrich's subword-nmt


# ---- corpora


@dataclass(frozen=True)
class Text:
    """A running text."""

    characters: str
    fingerprint: str


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations, in the same order."""

    source: list[str]
    target: list[str]
    fingerprint: str


@lru_cache(maxsize=4)
def load_text(name: str, data_dir: Path | None) -> Text:
    """`karpathy/tiny_shakespeare`, or another text that stands in one file `input.txt`, whole.

    `synthetic/text` is drawn by the program: no file, no network.

    Raises:
        UserError: the set cannot be reached.
    """
    file = data_dir / "hub" / name / "input.txt" if data_dir else None
    if name == "synthetic/text":
        characters = " ".join(source for source, _ in _phrases(1500, 0)).replace(" .", ".\n")
    elif file is not None and file.is_file():
        with hub.reading(name):
            characters = file.read_text(encoding="utf-8")
    else:  # a script data set: the Hub keeps its three parts, in order, on this branch
        parts = [hub.load(name, s, data_dir, revision="refs/convert/parquet") for s in ("train", "validation", "test")]
        characters = "".join(row for part in parts for row in part["text"])
    return Text(characters, _fingerprint([characters]))


@lru_cache(maxsize=8)
def load_pairs(name: str, split: str, data_dir: Path | None, languages: tuple[str, str] = ("en", "de")) -> Pairs:
    """One split of a parallel corpus: columns named by language, or WMT's `translation`.

    `synthetic/pairs` is drawn by the program: a toy language translated word by word, adjective behind the noun.

    Raises:
        UserError: the set cannot be reached, or does not have these languages.
    """
    if name == "synthetic/pairs":
        n, first = {"train": (400, 0), "validation": (40, 1), "test": (40, 2)}[split]
        source, target = (list(side) for side in zip(*_phrases(n, first), strict=True))
    else:
        data = hub.load(name, split, data_dir)
        if "translation" in data.column_names:
            data = data.flatten()
            data = data.rename_columns({name: name.removeprefix("translation.") for name in data.column_names})
        if not set(languages) <= set(data.column_names):
            raise UserError(f"data set {name} has no columns {' and '.join(languages)}, only {data.column_names}")
        source, target = (list(data[language]) for language in languages)
    return Pairs(source, target, _fingerprint(source, target))


def _fingerprint(*columns: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for column in columns:
        for row in column:
            digest.update(row.encode() + b"\0")
        digest.update(b"\1")
    return f"sha256:{digest.hexdigest()}"


_WORDS = {
    "a": {"one": "ein", "two": "zwo", "some": "viel", "no": "kein"},
    "j": {"red": "rot", "old": "alt", "small": "klein", "loud": "laut", "blue": "blau", "young": "jung"},
    "n": {"dog": "hund", "bird": "vogel", "child": "kind", "boat": "boot", "house": "haus", "man": "mann"},
    "v": {"sees": "sieht", "hears": "hort", "likes": "mag", "follows": "folgt"},
}


def _phrases(n: int, stream: int) -> list[tuple[str, str]]:
    """Sentences of a toy grammar with their translations: `one red dog sees no boat .`"""
    rng = np.random.default_rng([20, stream])

    def pick(kind: str) -> tuple[str, str]:
        return list(_WORDS[kind].items())[rng.integers(len(_WORDS[kind]))]

    def noun() -> tuple[list[str], list[str]]:
        article, thing, adjectives = pick("a"), pick("n"), [pick("j") for _ in range(rng.integers(3))]
        here = [article[0], *(a[0] for a in adjectives), thing[0]]
        return here, [article[1], thing[1], *(a[1] for a in adjectives)]

    made = []
    for _ in range(n):
        (left, links), verb, (right, rechts) = noun(), pick("v"), noun()
        made.append((" ".join([*left, verb[0], *right, "."]), " ".join([*links, verb[1], *rechts, "."])))
    return made


# ---- units


def moses(sentences: Iterable[str], language: str, lower: bool = True) -> list[str]:
    """Lower case, Moses' normalised punctuation, Moses' tokens parted by one space.

    So treated, the German side of Multi30k's test2016 has the 12,103 words published with its scores.
    """
    from sacremoses import MosesPunctNormalizer, MosesTokenizer

    normaliser, tokenizer = MosesPunctNormalizer(language), MosesTokenizer(language)
    tokens = (tokenizer.tokenize(normaliser.normalize(s.lower() if lower else s), escape=False) for s in sentences)
    return [" ".join(" ".join(one).split()) for one in tokens]


class Vocabulary:
    """Tokens and their numbers.

    Args:
        tokens: each once, in the order of their numbers.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = list(tokens)
        self.index = {token: i for i, token in enumerate(self.tokens)}
        if len(self.index) < len(self.tokens):
            raise ValueError("a token stands twice in the vocabulary")
        self._unknown = self.index.get("<unk>")

    @classmethod
    def of(cls, tokens: Iterable[str], min_count: int = 1, specials: Sequence[str] = ()) -> "Vocabulary":
        """The specials, then what occurs at least `min_count` times, most frequent first (then as first met)."""
        counts = Counter(tokens)
        for special in specials:
            counts.pop(special, None)
        return cls([*specials, *(token for token, n in counts.most_common() if n >= min_count)])

    @classmethod
    def of_characters(cls, text: str) -> "Vocabulary":
        """The characters of a text, in the order of their code points."""
        return cls(sorted(set(text)))

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Numbers of tokens; unknown ones become `<unk>`.

        Raises:
            UserError: a token is unknown and the vocabulary has no `<unk>`.
        """
        try:
            if self._unknown is None:
                return [self.index[token] for token in tokens]
            return [self.index.get(token, self._unknown) for token in tokens]
        except KeyError as error:
            raise UserError(f"{error.args[0]!r} is not in the vocabulary of {len(self)} tokens") from None

    def decode(self, numbers: Iterable[int]) -> list[str]:
        return [self.tokens[n] for n in numbers]


def load_characters(name: str, data_dir: Path | None) -> tuple[Tensor, Vocabulary, str]:
    """A text's characters as numbers (n,) int64, their vocabulary, and the text's fingerprint; as `load_text`."""
    text = load_text(name, data_dir)
    vocabulary = Vocabulary.of_characters(text.characters)
    return torch.tensor(vocabulary.encode(text.characters)), vocabulary, text.fingerprint


class Subwords:
    """Byte-pair encoding of words parted by spaces (Sennrich et al. 2016): pieces never cross a space.

    The numbers are the specials', then those of the pieces that occur in the training text, most frequent first.

    Args:
        merges: pairs of pieces, in the order learned.
        tokens: specials and pieces in the order of their numbers; must hold `<unk>`.
    """

    def __init__(self, merges: Sequence[tuple[str, str]], tokens: Sequence[str]) -> None:
        self.merges, self.vocabulary = [(a, b) for a, b in merges], Vocabulary(tokens)
        self._specials = {t for t in tokens if t in SPECIALS}
        # the encoder must know every piece on the way to a longer one, in whatever order; ours are numbered apart
        pieces = {t for pair in self.merges for t in (*pair, "".join(pair))} | (set(tokens) - self._specials)
        self._encoder = _encoder({piece: i for i, piece in enumerate(sorted(pieces))}, self.merges)

    @classmethod
    def trained(cls, sentences: Sequence[str], merges: int, specials: Sequence[str] = SPECIALS) -> "Subwords":
        """Learn at most `merges` merges from sentences whose words are parted by spaces."""
        from tokenizers.trainers import BpeTrainer

        encoder = _encoder({}, [])
        # Numbered beforehand, or the trainer meets them in an order of its own each time and breaks ties by it.
        ends = sorted({word[-1] + _END for s in sentences for word in s.split()})
        # It counts pieces, not merges (a merge may make a piece that is there already): ask for enough, and cut.
        size = merges + len(ends) + len({c for s in sentences for c in s})
        trainer = BpeTrainer(vocab_size=size, special_tokens=ends, end_of_word_suffix=_END, show_progress=False)
        encoder.train_from_iterator(sentences, trainer)
        model = json.loads(encoder.to_str())["model"]
        # Text may spell a mark of ours ("</w>", "<pad>"): no piece inside a word may read like one.
        marks = {_END, "<unk>", *specials}
        learned = [(a, b) for a, b in model["merges"] if not _spells(a, b, marks)][:merges]
        letters = {*ends, *(c for s in sentences for word in s.split() for c in word)}
        segmented = _encoder({p: i for i, p in enumerate(_pieces(letters, learned))}, learned)
        counts = Counter(piece for one in segmented.encode_batch(sentences) for piece in one.tokens)
        pieces = sorted(counts, key=lambda piece: (-counts[piece], piece))
        return cls(learned, [*specials, *pieces])

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Numbers of each sentence's pieces, without specials."""
        return [self.vocabulary.encode(one.tokens) for one in self._encoder.encode_batch(list(sentences))]

    def decode(self, numbers: Iterable[Iterable[int]]) -> list[str]:
        """Words parted by one space; padding, begin and end are left out."""
        silent = self._specials - {"<unk>"}
        return [
            "".join(
                p.removesuffix(_END) + " " if p == "<unk>" or p.endswith(_END) else p
                for p in self.vocabulary.decode(one)
                if p not in silent
            ).strip()
            for one in numbers
        ]

    @property
    def fingerprint(self) -> str:
        return f"sha256:{hashlib.sha256(self._json().encode()).hexdigest()}"

    def save(self, path: Path) -> None:
        path.write_text(self._json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Subwords":
        """Raises: UserError: the file is missing or is not one of ours."""
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            return cls([(a, b) for a, b in held["merges"]], held["tokens"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path} holds no subwords; leave it out to train them anew") from None

    def _json(self) -> str:
        return json.dumps({"merges": self.merges, "tokens": self.vocabulary.tokens}, ensure_ascii=False)


def _spells(a: str, b: str, marks: set[str]) -> bool:
    """Whether the merge makes a mark of what is not one (or builds upon such a piece)."""
    return a.endswith(_END) or b == _END or (not b.endswith(_END) and any((a + b).endswith(mark) for mark in marks))


def _pieces(letters: Iterable[str], merges: Iterable[tuple[str, str]]) -> list[str]:
    return sorted({*letters, *("".join(pair) for pair in merges), *(piece for pair in merges for piece in pair)})


def _encoder(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads and forks do not mix
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import WhitespaceSplit

    vocabulary = vocabulary | {"<unk>": len(vocabulary)}
    encoder = Tokenizer(BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", end_of_word_suffix=_END))
    encoder.pre_tokenizer = WhitespaceSplit()
    return encoder


# ---- batches

Share = Callable[[Tensor], Tensor]


def _whole(batch: Tensor) -> Tensor:
    return batch


class Windows:
    """step -> (x, y), both (b, t): windows of a text drawn with replacement, y one token further on.

    A pure function of (seed, purpose, step).
    """

    def __init__(
        self, ids: Tensor, length: int, batch_size: int, seed: int, share: Share = _whole, purpose: str = "windows"
    ) -> None:
        if len(ids) <= length:
            raise UserError(f"a text of {len(ids)} tokens has no window of {length}; take a shorter one")
        self.ids, self.length, self.batch_size = ids, length, batch_size
        self.seed, self.share, self.purpose = seed, share, purpose
        self._along = torch.arange(length + 1, device=ids.device)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        draw = generator(self.seed, self.purpose, step)
        first = torch.randint(len(self.ids) - self.length, (self.batch_size,), generator=draw)
        window = self.ids[self.share(first).to(self.ids.device)[:, None] + self._along]
        return window[:, :-1], window[:, 1:]


class Streams:
    """step -> (x, y), both (b, t): a text cut into b parallel streams, read in order, as recurrent models want.

    Row i goes on where row i of the step before ended, until an epoch is over.
    """

    def __init__(self, ids: Tensor, length: int, batch_size: int, share: Share = _whole) -> None:
        each = len(ids) // batch_size
        if each <= length:
            raise UserError(f"{len(ids)} tokens do not make {batch_size} streams longer than {length}")
        self.length, self.per_epoch = length, (each - 1) // length
        self._streams = share(ids[: each * batch_size].view(batch_size, each))

    def fresh(self, step: int) -> bool:
        """Whether this step begins the text, so that nothing is to be carried over."""
        return step % self.per_epoch == 0

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        first = step % self.per_epoch * self.length
        window = self._streams[:, first : first + self.length + 1]
        return window[:, :-1], window[:, 1:]


@dataclass(frozen=True)
class Batch:
    """This process's part of a batch of sentence pairs, padded.

    Attributes:
        source: (b, s), ending in eos.
        target_in, target_out: (b, t), beginning with bos, ending in eos: what is read, and what is to be said.
        tokens: number of target_out's real tokens in the whole batch, of all processes.
        index: (b,) numbers of the sentences.
    """

    source: Tensor
    target_in: Tensor
    target_out: Tensor
    tokens: int
    index: Tensor


class TokenBatches:
    """step -> Batch: sentences of like length together, as many as a budget of tokens holds.

    Which sentences go together is a function of the seed, in which order of (seed, epoch); so any step can be made
    without those before it. With several processes each takes every n-th sentence of the same batch.

    Args:
        source, target: numbers of each sentence, without bos and eos.
        tokens: largest padded size of the whole batch's longer side (sentences times length, eos counted).
        part: (i, n): which of n processes this is.
        multiple: padded lengths are multiples of it.
        rows: a batch of more sentences than these holds a multiple of them (fairseq: 8).
        shuffle: False keeps the order by length.

    Raises:
        UserError: a sentence is longer than the budget, or a batch has fewer sentences than there are processes.
    """

    def __init__(
        self,
        source: Sequence[Sequence[int]],
        target: Sequence[Sequence[int]],
        tokens: int,
        seed: int,
        *,
        pad: int = 0,
        bos: int = 1,
        eos: int = 2,
        part: tuple[int, int] = (0, 1),
        device: torch.device | str = "cpu",
        multiple: int = 1,
        rows: int = 1,
        shuffle: bool = True,
    ) -> None:
        self.seed, self.pad, self.part, self.device = seed, pad, part, device
        self.multiple, self.shuffle = multiple, shuffle
        self._source = [np.array([*one, eos]) for one in source]
        self._target = [np.array([bos, *one, eos]) for one in target]
        s, t = (np.array([len(one) for one in side]) for side in (self._source, self._target))
        t -= 1  # read or said: without one of the two ends
        longer = -(-np.maximum(s, t) // multiple) * multiple
        if longer.max() > tokens:
            raise UserError(f"a sentence of {longer.max()} tokens is longer than a batch of {tokens}")
        tie = torch.randperm(len(s), generator=generator(seed, "ties")).numpy()
        self._batches: list[np.ndarray] = []
        held: list[int] = []
        width = 0
        for one in np.lexsort((tie, t, s)).tolist():  # by source, then by target
            while held and max(width, longer[one]) * (len(held) + 1) > tokens:
                cut = len(held) // rows * rows or len(held)
                self._batches.append(np.array(held[:cut]))
                held = held[cut:]
                width = longer[held].max(initial=0)
            held.append(one)
            width = max(width, longer[one])
        self._batches.append(np.array(held))
        if min(map(len, self._batches)) < part[1]:
            raise UserError(
                f"a batch of {tokens} tokens may hold fewer sentences than the {part[1]} processes; "
                "launch fewer processes, or give batches more tokens"
            )
        self._tokens = [int(t[batch].sum()) for batch in self._batches]
        self.per_epoch = len(self._batches)
        self._epoch, self._order = -1, np.arange(self.per_epoch)

    def __call__(self, step: int) -> Batch:
        epoch, position = divmod(step, self.per_epoch)
        if self.shuffle and epoch != self._epoch:
            self._order = torch.randperm(self.per_epoch, generator=generator(self.seed, "order", epoch)).numpy()
            self._epoch = epoch
        number = self._order[position]
        rank, world = self.part
        mine = self._batches[number][rank::world]
        target = self._padded([self._target[i] for i in mine], 1)
        return Batch(
            self._padded([self._source[i] for i in mine], 0),
            target[:, :-1].masked_fill(target[:, 1:] == self.pad, self.pad),  # nothing is said after eos
            target[:, 1:],
            self._tokens[number],
            torch.from_numpy(mine.copy()).to(self.device),
        )

    def _padded(self, rows: Sequence[np.ndarray], extra: int) -> Tensor:
        width = max(map(len, rows)) - extra
        width = -(-width // self.multiple) * self.multiple + extra
        padded = np.full((len(rows), width), self.pad)
        for row, values in zip(padded, rows, strict=True):
            row[: len(values)] = values
        return torch.from_numpy(padded).to(self.device)


# ---- scores


def bleu(
    hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a", lowercase: bool = False
) -> tuple[str, float]:
    """sacreBLEU with its signature as the metric's name: ("BLEU|nrefs:1|case:mixed|...", score in %)."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize=tokenize, lowercase=lowercase, force=True)
    score = metric.corpus_score(list(hypotheses), [list(references)])
    return f"BLEU|{metric.get_signature()}", score.score


def tokenised_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> "BLEUScore":
    """BLEU-4 of text that is tokenised already, unsmoothed, one reference: the number of multi-bleu.perl, in %.

    The result has `score`, four `precisions`, `bp`, `sys_len` and `ref_len`.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    return metric.corpus_score(list(hypotheses), [list(references)])
