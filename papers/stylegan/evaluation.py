"""What a generator is worth: scores of samples, path lengths (Section 4.1), separability (4.2), pictures for the eye.

All of the averaged weights, without truncation, with new noise for every sample (code: `is_validation`). What is drawn
is a pure function of (seed, purpose, first sample of the batch).
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from common import pictures
from common.judging import Extractor, path_length, slerp, trimmed_mean
from common.random import generator
from common.svm import l2_svm
from papers.stylegan.model import Generator, doubled, mixed, truncated

COLUMNS = 10


class Sampler:
    """Samples of a generator at one stage; at the last one in full resolution, without the frame of the data."""

    def __init__(self, g: Generator, seed: int, margin: int, device: torch.device) -> None:
        self.g, self.seed, self.margin, self.device = g, seed, margin, device
        self.layers = 2 * g.stages

    def latents(self, n: int, *key: int | str) -> Tensor:
        """z (n, latents)."""
        return torch.randn(n, self.g.latents, generator=generator(self.seed, *key)).to(self.device)

    def noise(self, n: int, *key: int | str) -> list[Tensor]:
        """Of every layer, (n, 1, s, s)."""
        return self.g.noise(n, self.g.stages - 1, generator(self.seed, "noise", *key, device=self.device))

    def draw(self, w: Tensor, noise: list[Tensor]) -> Tensor:
        """w (b, latents) or (b, layers, latents) -> pictures in [0, 1], as the data have them."""
        w = w if w.ndim == 3 else w[:, None].expand(-1, self.layers, -1)
        x, m = self.g(w, noise, self.g.stages - 1), self.margin
        return (x[:, :, m : x.shape[2] - m, m : x.shape[3] - m] + 1) / 2

    @torch.no_grad()
    def __call__(self, purpose: str, k: int, part: slice) -> Tensor:
        """Samples of k latents each, mixed at random crossover points (Table 2)."""
        n = part.stop - part.start
        ws = self.g.mapping(self.latents(k * n, purpose, k, part.start)).view(k, n, -1)
        numbers = generator(self.seed, purpose, "cuts", k, part.start)
        places = torch.rand(n, self.layers - 1, generator=numbers).argsort(1)[:, : k - 1] + 1
        return self.draw(mixed(ws, places.to(self.device), self.layers), self.noise(n, purpose, k, part.start))

    @torch.no_grad()
    def path(self, extractor: Extractor, space: str, whole: bool, part: slice) -> Tensor:
        """Squared lengths per step, (b,): in z along the sphere, in w straight; noise is alike for a batch (code).

        Args:
            space: "z" or "w".
            whole: at a random place of the way ("full"), or at its beginning ("end").
        """
        n, key = part.stop - part.start, (f"path {space} {whole}", part.start)
        start, end = self.latents(2 * n, *key).chunk(2)
        at = torch.rand(n, 1, generator=generator(self.seed, "place", *key)).to(self.device) * whole
        noise = self.noise(1, *key)
        if space == "w":
            start, end = self.g.mapping(start), self.g.mapping(end)

        def made(latents: Tensor) -> Tensor:
            return self.draw(latents if space == "w" else self.g.mapping(latents), noise)

        between = torch.lerp if space == "w" else slerp
        return path_length(made, lambda x: extractor(x)[0], start, end, at, between)


def path_lengths(sampler: Sampler, extractor: Extractor, pairs: int, batch_size: int) -> dict[str, float]:
    """Of z and, where there is a mapping, of w, full and end; every process for itself, as a trimmed mean needs all."""
    metrics = {}
    for space in ("z", "w") if len(sampler.g.mapping.layers) else ("z",):
        for where in ("full", "end"):
            parts = [slice(i, min(i + batch_size, pairs)) for i in range(0, pairs, batch_size)]
            lengths = [sampler.path(extractor, space, where == "full", part) for part in parts]
            metrics[f"path_length_{space}_{where}_{extractor.name}_n{pairs}"] = trimmed_mean(torch.cat(lengths))
    full, end = (metrics[f"path_length_z_{where}_{extractor.name}_n{pairs}"] for where in ("full", "end"))
    return metrics | {f"path_length_z_end_over_full_{extractor.name}_n{pairs}": end / full}


# ---- Separability (Section 4.2)


def log_odds(probabilities: Tensor, factors: int) -> Tensor:
    """Of every binary factor, from those of all combinations, whose numbers have the factors as bits: (n, factors)."""
    bits = torch.arange(2**factors)[:, None] >> torch.arange(factors).flip(0) & 1  # (combinations, factors)
    true, false = (probabilities.double() @ side.double() for side in (bits, 1 - bits))
    return true.clamp_min(1e-300).log() - false.clamp_min(1e-300).log()


def conditional_entropy(guess: Tensor, truth: Tensor) -> float:
    """H(truth | guess) of two binary variables, in nats."""
    pairs = torch.bincount(2 * guess.long() + truth.long(), minlength=4).double().view(2, 2) / len(truth)
    guessed = pairs.sum(1)
    return float((torch.xlogy(guessed, guessed).sum() - torch.xlogy(pairs, pairs).sum()).clamp_min(0))


def separability(latents: Tensor, odds: Tensor, keep: int) -> float:
    """exp of the sum over attributes of H(Y | X), X the side of a linear boundary (Section 4.2).

    Args:
        latents: (n, d); odds: (n, attributes), the classifier's log odds of each being true.
        keep: samples of each attribute that are kept, those the classifier is surest of.
    """
    total = 0.0
    for each in odds.T:
        kept = each.abs().argsort(descending=True, stable=True)[:keep]
        x, y = torch.nn.functional.pad(latents[kept].double(), (0, 1), value=1.0), (each[kept] > 0).long()
        if len(y.unique()) == 2:  # where there is one class alone nothing is left to know (code: so too)
            scores = x @ l2_svm(x, y, 1.0, classes=2, tolerance=1e-4)
            total += conditional_entropy(scores[:, 1] > 0, y)
    return math.exp(total)


def separabilities(sampler: Sampler, probabilities: Tensor, factors: int, batch_size: int) -> dict[str, float]:
    """Of z and of w, for the samples of one latent that `probabilities` (n, combinations) belong to."""
    n = len(probabilities)
    z = torch.cat([sampler.latents(min(batch_size, n - i), "separability", 1, i) for i in range(0, n, batch_size)])
    with torch.no_grad():
        w = sampler.g.mapping(z)
    odds = log_odds(probabilities, factors)
    spaces = {"z": z, "w": w} if len(sampler.g.mapping.layers) else {"z": z}
    return {f"separability_{name}_n{n}": separability(x.cpu(), odds, n // 2) for name, x in spaces.items()}


# ---- Pictures


@torch.no_grad()
def save_grid(path: Path, sampler: Sampler, psi: float, layers: int, stage: int, old: float) -> None:
    """Fixed latents and noise, truncated, at the stage that training has come to, enlarged to the last one."""
    g, n = sampler.g, COLUMNS**2
    w = g.mapping(sampler.latents(n, "grid"))[:, None].expand(-1, sampler.layers, -1)
    x = g(truncated(w, g.w_mean, psi, layers), sampler.noise(n, "grid"), stage, old)
    while x.shape[2] < 4 << (g.stages - 1):
        x = doubled(x)
    pictures.save(path, (x + 1) / 2, COLUMNS)


@torch.no_grad()
def save_mixing(path: Path, sampler: Sampler, psi: float, layers: int) -> None:
    """Figure 3: coarse styles (up to 8x8) of the first column's latents, the others of the first row's."""
    g, n, cut = sampler.g, COLUMNS - 1, 4
    ws = g.mapping(sampler.latents(2 * n, "mixing"))[:, None].expand(-1, sampler.layers, -1)
    ws = truncated(ws, g.w_mean, psi, layers)
    row, column = ws.chunk(2)
    crossed = torch.cat([column[:, None, :cut].expand(-1, n, -1, -1), row[None, :, cut:].expand(n, -1, -1, -1)], 2)
    made = torch.cat([row, torch.cat([column[:, None], crossed], 1).flatten(0, 1)])
    noise = [part.expand(len(made), -1, -1, -1) for part in sampler.noise(1, "mixing")]
    x = torch.cat([sampler.draw(w, [n[: len(w)] for n in noise]) for w in made.split(COLUMNS)])
    pictures.save(path, torch.cat([torch.zeros_like(x[:1]), x]), COLUMNS)
