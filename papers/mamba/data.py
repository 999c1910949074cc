"""The synthetic tasks of Section 4.1 and of the H3 paper; what is drawn is a pure function of the generator."""

import hashlib

import torch
from torch import Generator, Tensor

from common.errors import UserError
from common.random import generator

SPECIALS = 2  # tokens of the vocabulary that are not data: the prefix and an unused one; noise and marker


def _marked(batch: int, length: int, vocabulary: int, draw: Generator) -> tuple[Tensor, Tensor]:
    """Data drawn evenly with one special token somewhere among them, (b, l), and what followed it, (b, 1)."""
    data = vocabulary - SPECIALS
    if length < 3 or data < 2:
        raise UserError("induction heads need a length of 3 or more and a vocabulary of 4 or more")
    tokens = torch.randint(data, (batch, length), generator=draw)
    place = torch.randint(length - 2, (batch, 1), generator=draw)
    target = tokens.gather(1, place + 1)
    return tokens.scatter_(1, place, data), target


def induction_heads(batch: int, length: int, vocabulary: int, draw: Generator) -> tuple[Tensor, Tensor]:
    """Tokens (b, l) and, for the last position, the token to be remembered (b, 1).

    HazyResearch/safari, `generate_induction_head`: data drawn evenly, one special token somewhere among them and again
    at the end; what followed it the first time is to follow again.

    Raises:
        UserError: too short a sequence or too small a vocabulary.
    """
    tokens, target = _marked(batch, length, vocabulary, draw)
    tokens[:, -1] = vocabulary - SPECIALS
    return tokens, target


def selective_copying(batch: int, length: int, count: int, vocabulary: int, draw: Generator) -> tuple[Tensor, Tensor]:
    """Tokens (b, l + count) and, for the last `count` positions, the data in their order (b, count).

    0 is noise, the last token a marker, those between are data: `count` of them at random places among l, then as many
    markers, at which they are to be said.

    Raises:
        UserError: more data than places, or too small a vocabulary.
    """
    if count > length or vocabulary - SPECIALS < 2:
        raise UserError(f"{count} data tokens do not fit {length} places, or a vocabulary of {vocabulary} has too few")
    target = torch.randint(1, vocabulary - 1, (batch, count), generator=draw)
    places = torch.rand(batch, length, generator=draw).topk(count, sorted=False).indices.sort().values
    tokens = torch.zeros(batch, length, dtype=torch.long).scatter_(1, places, target)
    return torch.cat([tokens, torch.full((batch, count), vocabulary - 1)], 1), target


def h3_induction(count: int, length: int, vocabulary: int, draw: Generator) -> Tensor:
    """The H3 paper's induction heads, (count, length + 2): data, the special token, and what followed it before.

    HazyResearch/safari, `generate_induction_head`, where the special token is never the last but one of the data.

    Raises:
        UserError: too short a sequence or too small a vocabulary.
    """
    tokens, target = _marked(count, length, vocabulary, draw)
    return torch.cat([tokens, torch.full_like(target, vocabulary - SPECIALS), target], 1)


def h3_recall(count: int, length: int, vocabulary: int, draw: Generator) -> Tensor:
    """The H3 paper's associative recall, (count, length + 3): pairs of key and value, the special token, a key and its
    value.

    HazyResearch/safari, `generate_assoc_recall`: half of the data are keys; every sequence gives each key a value of
    its own; the key that is asked for is drawn evenly from those present.

    Raises:
        UserError: an odd length, or too small a vocabulary.
    """
    keys = (vocabulary - SPECIALS) // 2
    if length < 2 or length % 2 or keys < 2:
        raise UserError("associative recall needs an even length and a vocabulary of 6 or more")
    values = keys + torch.randint(vocabulary - SPECIALS - keys, (count, keys), generator=draw)
    key = torch.randint(keys, (count, length // 2), generator=draw)
    present = torch.zeros(count, keys).scatter_(1, key, 1.0)
    asked = torch.multinomial(present, 1, generator=draw)
    pairs = torch.stack([key, values.gather(1, key)], 2).flatten(1)
    return torch.cat([pairs, torch.full_like(asked, vocabulary - SPECIALS), asked, values.gather(1, asked)], 1)


def fingerprint(dataset: str) -> str:
    """Of what a data set's generator draws, whatever the configuration."""
    if dataset in H3_TASKS:
        drawn = [H3_TASKS[dataset](8, 20, 10, generator("fingerprint"))]
    else:
        heads = induction_heads(4, 64, 16, generator("fingerprint"))
        drawn = [*heads, *selective_copying(4, 64, 16, 16, generator("fingerprint"))]
    digest = hashlib.sha256()
    for tokens in drawn:
        digest.update(tokens.numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


H3_TASKS = {"generated/h3-induction": h3_induction, "generated/h3-recall": h3_recall}
