"""The two synthetic tasks of Section 4.1; a batch is a pure function of its generator."""

import hashlib

import torch
from torch import Generator, Tensor

from common.errors import UserError
from common.random import generator

SPECIALS = 2  # tokens of the vocabulary that are not data: the prefix and an unused one; noise and marker


def induction_heads(batch: int, length: int, vocabulary: int, draw: Generator) -> tuple[Tensor, Tensor]:
    """Tokens (b, l) and, for the last position, the token to be remembered (b, 1).

    HazyResearch/safari, `generate_induction_head`: data drawn evenly, one special token somewhere among them and again
    at the end; what followed it the first time is to follow again.

    Raises:
        UserError: too short a sequence or too small a vocabulary.
    """
    data = vocabulary - SPECIALS
    if length < 3 or data < 2:
        raise UserError("induction heads need a length of 3 or more and a vocabulary of 4 or more")
    tokens = torch.randint(data, (batch, length), generator=draw)
    place = torch.randint(length - 2, (batch, 1), generator=draw)
    target = tokens.gather(1, place + 1)
    tokens.scatter_(1, place, data)
    tokens[:, -1] = data
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


def fingerprint() -> str:
    """Of what the generators draw, whatever the configuration."""
    digest = hashlib.sha256()
    for tokens, target in (
        induction_heads(4, 64, 16, generator("fingerprint")),
        selective_copying(4, 64, 16, 16, generator("fingerprint")),
    ):
        digest.update(tokens.numpy().tobytes() + target.numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
