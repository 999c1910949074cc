"""Beam search over whole batches, with the keys and values of past tokens kept.

Glossary: b sentences still open, k beams, t tokens so far, V tokens of the vocabulary.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from papers.transformer.model import PAD, Keys, Past, Transformer

AT_ONCE = 256  # sentences searched together; moves no number but by rounding


class Rule(NamedTuple):
    """How hypotheses are scored and when a sentence is done. Lengths count the end of the sentence.

    Attributes:
        wu: score by log p / ((5 + length) / 6)^alpha (Wu et al. 2016), else by log p / length^alpha.
        first: done once k hypotheses have ended among the best k (fairseq); else once no open one can win (the code).
        slope, extra: most tokens before the end, slope * source length + extra.
        least: tokens before the end that every hypothesis has.
    """

    wu: bool
    first: bool
    slope: int
    extra: int
    least: int = 0

    def penalty(self, length: int | Tensor, alpha: float) -> float | Tensor:
        return ((5 + length) / 6) ** alpha if self.wu else length**alpha


RULES = {
    "paper": Rule(wu=True, first=False, slope=1, extra=50),  # Section 6.1
    "fairseq": Rule(wu=False, first=True, slope=0, extra=200, least=1),  # its sequence_generator.py
    "bentrevett": Rule(wu=False, first=True, slope=0, extra=49),  # at most 50 tokens, the end among them
}


class Decoding:
    """A decoder at work: what it has seen, and the memory's keys, which the beams of a sentence share."""

    def __init__(self, model: Transformer, source: Tensor, beams: int) -> None:
        self.model, self.beams, self.length = model, beams, 0
        memory, self.mask = model.encode(source)
        self.keys: list[Keys] = [
            layer.cross_attention.keys(memory) for layer in model.decoder_layers if layer.cross_attention is not None
        ]
        self.past: list[Past] = [[] for _ in model.decoder_layers]

    def __call__(self, tokens: Tensor) -> Tensor:
        """The newest tokens (b, k) -> log probabilities of the next ones (b, k, V)."""
        model = self.model
        x = model.embedded(tokens.view(-1, 1), "target", self.length).view(*tokens.shape, -1)
        for layer, past, keys in zip(model.decoder_layers, self.past, self.keys, strict=True):
            x = layer.step(x, past, keys, self.mask)
        self.length += 1
        return model.logits(x).float().log_softmax(-1)

    def go_on_with(self, rows: Tensor, beams: Tensor) -> None:
        """Keep these sentences (n,), and of each the histories of these beams (n, k)."""
        flat = (rows[:, None] * self.beams + beams).flatten()
        self.past = [[part[flat] for part in past] for past in self.past]
        if len(rows) < len(self.mask):
            self.mask = self.mask[rows]
            self.keys = [(k[rows], v[rows]) for k, v in self.keys]


@torch.no_grad()
def beam_search(
    model: Transformer, source: Tensor, beams: int, alpha: float, rule: Rule, bos: int, eos: int
) -> tuple[Tensor, Tensor]:
    """The best hypothesis of every sentence.

    Args:
        source: (b, s), padded.

    Returns:
        (b, t) tokens without bos, ending in eos, padded; (b,) their scores.
    """
    model.eval()
    device, b = source.device, len(source)
    limit = (rule.slope * ((source != PAD).sum(1) - 1) + rule.extra).clamp(max=model.length - 1)
    longest = int(limit.max()) + 1
    said = torch.full((b, longest), PAD, device=device)
    best = torch.full((b,), -math.inf, device=device)
    ended = torch.zeros(b, dtype=torch.long, device=device)
    open_ = torch.arange(b, device=device)  # numbers of the sentences that are not done
    tokens = torch.full((b, beams, 1), bos, device=device)
    scores = torch.full((b, beams), -math.inf, device=device)
    scores[:, 0] = 0  # all beams begin alike: one counts
    rank = torch.arange(2 * beams, device=device)
    decoding = Decoding(model, source, beams)
    for t in range(longest):
        log_p = decoding(tokens[..., -1])
        vocabulary = log_p.shape[-1]
        log_p[..., PAD] = -math.inf
        if t < rule.least:
            log_p[..., eos] = -math.inf
        over = limit[open_] <= t  # nothing may come but the end
        end = log_p[..., eos].clone()
        log_p.masked_fill_(over[:, None, None], -math.inf)
        log_p[..., eos] = end
        # Per beam first: the best 2k of all hold at most 2k of a beam, and at least k that do not end.
        likely, which = log_p.topk(min(2 * beams, vocabulary), -1)  # (b, k, 2k)
        candidate, place = (scores[..., None] + likely).flatten(1).topk(2 * beams)  # (b, 2k)
        beam, token = place // likely.shape[-1], which.flatten(1).gather(1, place)

        ends = (token == eos) & candidate.isfinite()
        if rule.first:
            ends &= rank < beams
            ends &= ended[open_, None] + ends.cumsum(1) <= beams
        value = torch.where(ends, candidate / rule.penalty(t + 1, alpha), -math.inf)
        new, column = value.max(1)
        better = new > best[open_]
        won = open_[better]
        best[won] = new[better]
        histories = tokens[better, beam[better, column[better]], 1:]  # (n, t)
        said[won] = PAD
        said[won, :t] = histories
        said[won, t] = eos
        ended[open_] += ends.sum(1)

        scores, kept = candidate.masked_fill(token == eos, -math.inf).topk(beams)
        beam, token = beam.gather(1, kept), token.gather(1, kept)
        done = over | (ended[open_] >= beams) if rule.first else over
        if not rule.first:  # a longer hypothesis gains by its length at most what the longest would
            bound = scores[:, 0] / torch.as_tensor(rule.penalty(limit[open_] + 1, alpha), device=device)
            done = done | (best[open_] >= bound)
        rows = (~done).nonzero().flatten()
        if not len(rows):
            break
        decoding.go_on_with(rows, beam[rows])
        tokens = tokens[rows[:, None], beam[rows]]
        tokens = torch.cat([tokens, token[rows][..., None]], -1)
        scores, open_ = scores[rows], open_[rows]
    return said[:, : int((said != PAD).sum(1).max())], best


def translate(
    model: Transformer, sentences: Sequence[Sequence[int]], beams: int, alpha: float, rule: Rule, bos: int, eos: int,
    device: torch.device | str = "cpu",
) -> list[list[int]]:  # fmt: skip
    """Translations in the order of the sentences, which are without eos, as the translations are."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    found: list[list[int]] = [[] for _ in sentences]
    for first in range(0, len(order), AT_ONCE):
        chosen = order[first : first + AT_ONCE]
        width = max(len(sentences[i]) for i in chosen) + 1
        rows = [[*sentences[i], eos] + [PAD] * (width - 1 - len(sentences[i])) for i in chosen]
        said, _ = beam_search(model, torch.tensor(rows, device=device), beams, alpha, rule, bos, eos)
        for i, row in zip(chosen, said.tolist(), strict=True):
            found[i] = row[: row.index(eos)]
    return found
