"""Judging samples: distances and scores of pictures through the features of a network, in float64.

The mathematics knows no network: `common.extractors` has those. What a number depends on is part of its name, as in
`fid_mnist_classifier_1a2b3c4d_u8_n10000_test10000`: the metric, the extractor with its fingerprint, what it is fed (u8:
pictures rounded to 8 bits), the number of samples, and the real pictures they are compared with. A number by another
network has another name.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from accelerate.utils import gather_object
from torch import Tensor

from common.run import Run

NEIGHBOURS = 3  # k of precision and recall (Kynkäänniemi et al. 2019, Section 4)
SPLITS = 10  # of the inception score (Salimans et al. 2016, as their code has it)


class Extractor(Protocol):
    """A network that pictures are seen through.

    Attributes:
        name: with a fingerprint of the network.
    """

    name: str

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(b, c, h, w) in [0, 1] -> features (b, d), class probabilities (b, k)."""


class Seen(NamedTuple):
    """Pictures as an extractor sees them: (n, d) and (n, k) float32, on the CPU."""

    features: Tensor
    probabilities: Tensor


def eight_bits(pictures: Tensor) -> Tensor:
    """[0, 1] rounded to the levels of a picture file: what all scores here are taken of, but path lengths."""
    return (pictures.clamp(0, 1) * 255).round() / 255


@torch.no_grad()
def look(run: Run, extractor: Extractor, n: int, batch_size: int, pictures: Callable[[slice], Tensor]) -> Seen:
    """Features of n pictures, whose batches the processes share out; the same on every process.

    Args:
        pictures: slice of samples -> (b, c, h, w) in [0, 1], a pure function of the slice.
    """
    rank, world = run.part
    mine = []
    for start in range(rank * batch_size, n, world * batch_size):
        features, probabilities = extractor(eight_bits(pictures(slice(start, min(start + batch_size, n)))))
        mine.append((start, features.float().cpu(), probabilities.float().cpu()))
    parts = sorted(gather_object(mine) if world > 1 else mine, key=lambda part: part[0])
    seen = Seen(torch.cat([f for _, f, _ in parts]), torch.cat([p for _, _, p in parts]))
    if len(seen.features) != n:
        raise RuntimeError(f"judged {len(seen.features)} of {n} samples")
    return seen


def scores(extractor: str, real: Seen, samples: Seen, reference: str) -> dict[str, float]:
    """Frechet distance, inception score, precision and recall of the samples, under their full names.

    Args:
        extractor: its name.
        reference: which real pictures: "train", "test".
    """
    n = f"{extractor}_u8_n{len(samples.features)}"
    against = f"{n}_{reference}{len(real.features)}"
    score, spread = inception_score(samples.probabilities)
    precision, recall = precision_recall(real.features, samples.features)
    return {
        f"fid_{against}": frechet_distance(moments(real.features), moments(samples.features)),
        f"is_{n}": score,
        f"is_sd_{n}": spread,
        f"precision_{against}": precision,
        f"recall_{against}": recall,
    }


# ---- Frechet distance (Heusel et al. 2017)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and unbiased covariance (d, d) of (n, d), float64."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½) of two Gaussians (mean, covariance), which may be degenerate.

    The trace of the root of C1 C2 is the sum of singular values of C1^½ C2^½: symmetric roots only, so that no
    imaginary part appears and no diagonal has to be loaded, as with a root of the product itself.
    """
    (mean1, cov1), (mean2, cov2) = first, second
    root = torch.linalg.svdvals(_root(cov1) @ _root(cov2)).sum()
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * root)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root; eigenvalues that rounding made negative count as zero."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


# ---- Inception score (Salimans et al. 2016)


def inception_score(probabilities: Tensor, splits: int = SPLITS) -> tuple[float, float]:
    """exp of the mean KL(p(y | x), p(y)) over each of `splits` parts in order: their mean and population spread."""
    values = []
    for p in probabilities.double().tensor_split(splits):
        marginal = p.mean(0)
        values.append((torch.xlogy(p, p).sum(1) - torch.xlogy(p, marginal).sum(1)).mean().exp())
    each = torch.stack(values)
    return each.mean().item(), each.std(correction=0).item()


# ---- Precision and recall (Kynkäänniemi et al. 2019)


def precision_recall(real: Tensor, samples: Tensor, k: int = NEIGHBOURS, rows: int = 1000) -> tuple[float, float]:
    """Share of the samples within the real pictures' manifold, and of the real ones within the samples'.

    A manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbour.
    """
    real, samples = real.double(), samples.double()

    def reach(points: Tensor) -> Tensor:
        return torch.cat([torch.cdist(part, points).kthvalue(k + 1).values for part in points.split(rows)])

    def covered(points: Tensor, balls: Tensor, radii: Tensor) -> float:
        inside = [(torch.cdist(part, balls) <= radii).any(1) for part in points.split(rows)]
        return torch.cat(inside).double().mean().item()

    return covered(samples, real, reach(real)), covered(real, samples, reach(samples))


# ---- 1-nearest-neighbour error


class Nearest:
    """The label of every query's nearest reference, references coming in blocks: a running minimum.

    Distances are exact: a float32 product, good to MARGIN, picks who may be nearest, and the sum of squared differences
    in float64 decides. Of equally near ones the first counts. (Of more than FEW in one block that cannot be told apart
    in float32, such as copies by a collapsed generator, the first FEW are compared.)

    Most references are ruled out without that product. Along the AXES that hold most of the queries, and with the
    length of what is left over as one more coordinate, no two points are further apart than in full (Cauchy-Schwarz);
    so whoever is too far there is too far. Where more than SHARE of a block remain, as in the first ones, the product
    is made.

    Args:
        queries: (n, d) float32.
    """

    MARGIN, FEW, BLOCK, AXES, SHARE = 2e-5, 8, 4096, 96, 1e-3

    def __init__(self, queries: Tensor) -> None:
        self.queries, n = queries, len(queries)
        self.square = queries.square().sum(1)
        moment = (queries.T @ queries).double()  # orthonormal axes beyond float32
        self.axes = torch.linalg.eigh(moment).eigenvectors[:, -self.AXES :].to(queries.dtype)  # by eigenvalue
        self.short = self._shortened(queries)
        self.distance = torch.full((n,), torch.inf, dtype=torch.float64, device=queries.device)  # squared
        self.label = torch.full((n,), -1, dtype=torch.int64, device=queries.device)

    def add(self, references: Tensor, labels: Tensor) -> None:
        """Take in (m, d) references with labels (m,)."""
        for block, names in zip(references.split(self.BLOCK), labels.split(self.BLOCK), strict=True):
            square, short = block.square().sum(1), self._shortened(block)
            for start in range(0, len(self.queries), self.BLOCK):
                part = slice(start, start + self.BLOCK)
                # squared distances without the query's square, here and below
                margin = self.MARGIN * (self.square[part] + square.max())
                limit = self.distance[part].float() - self.square[part] + margin
                near = torch.addmm(square[None], self.short[part], short.T, alpha=-2) <= limit[:, None]
                if near.count_nonzero() <= self.SHARE * near.numel():
                    row, column = near.nonzero(as_tuple=True)
                    self._compare(start + row, column, block, names)
                    continue
                rough = torch.addmm(square[None], self.queries[part], block.T, alpha=-2)
                low = rough.amin(1)
                limit = torch.minimum(low + margin, limit)
                hopeful = (low <= limit).nonzero()[:, 0]
                near = rough[hopeful] <= limit[hopeful, None]
                row, column = (near & (near.cumsum(1, dtype=torch.int32) <= self.FEW)).nonzero(as_tuple=True)
                self._compare(start + hopeful[row], column, block, names)

    def _shortened(self, points: Tensor) -> Tensor:
        """(m, d) -> (m, AXES + 1)"""
        along = points @ self.axes
        return torch.cat([along, (points - along @ self.axes.T).norm(dim=1, keepdim=True)], 1)

    def _compare(self, query: Tensor, column: Tensor, block: Tensor, names: Tensor) -> None:
        """Compare pairs of a query and a row of the block exactly."""
        parts = zip(query.split(self.BLOCK), column.split(self.BLOCK), strict=True)
        exact = torch.cat([(self.queries[q].double() - block[c].double()).square().sum(1) for q, c in parts])
        best = torch.full_like(self.distance, torch.inf).scatter_reduce(0, query, exact, "amin")
        nearest = exact == best[query]
        first = torch.full_like(self.label, len(block) - 1).scatter_reduce(0, query[nearest], column[nearest], "amin")
        better = best < self.distance
        self.distance = torch.where(better, best, self.distance)
        self.label = torch.where(better, names[first], self.label)

    def error(self, run: Run, labels: Tensor) -> float:
        """Percent of the queries whose nearest reference, of all processes, has another label than their own."""
        mine = (self.label.cpu(), self.distance.cpu())
        (label, distance), *others = gather_object([mine]) if run.part[1] > 1 else [mine]
        for other, nearness in others:
            label = torch.where(nearness < distance, other, label)
            distance = torch.minimum(nearness, distance)
        return 100 * (label != labels.cpu()).double().mean().item()


# ---- Perceptual path length (Karras et al. 2019)


@torch.no_grad()
def path_length(
    pictures: Callable[[Tensor], Tensor],
    features: Callable[[Tensor], Tensor],
    start: Tensor,
    end: Tensor,
    at: Tensor,
    between: Callable[[Tensor, Tensor, Tensor], Tensor] = torch.lerp,
    epsilon: float = 1e-4,
) -> Tensor:
    """|features(g(t + epsilon)) - features(g(t))|² / epsilon² on the way from `start` to `end`, one per pair, float64.

    Both pictures of a pair go through the generator in one batch, so that what they share (statistics, noise) is
    theirs alone to arrange. The metric is `trimmed_mean` of many. Needs float32: epsilon is lost in half precision.

    Args:
        pictures: (2b, z) latents, all at t before all at t + epsilon -> pictures.
        features: pictures -> (2b, ...) whose squared distance is the perceptual one.
        start, end: (b, z); at: (b, 1) in [0, 1].
        between: torch.lerp, or `slerp` for latents on a sphere.
    """
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        latents = torch.cat([between(start, end, at), between(start, end, at + epsilon)])
        first, second = features(pictures(latents)).double().flatten(1).chunk(2)
    return (second - first).square().sum(1) / epsilon**2


def slerp(start: Tensor, end: Tensor, at: Tensor) -> Tensor:
    """Along the great circle between normalised (b, z) latents (official StyleGAN: `slerp`)."""
    start, end = (torch.nn.functional.normalize(v, dim=-1) for v in (start, end))
    cosine = (start * end).sum(-1, keepdim=True)
    across = torch.nn.functional.normalize(end - cosine * start, dim=-1)
    angle = at * cosine.clamp(-1, 1).acos()
    return start * angle.cos() + across * angle.sin()


def trimmed_mean(distances: Tensor) -> float:
    """Mean without what lies below the 1st or above the 99th percentile (official StyleGAN: lower and higher one)."""
    low = distances.quantile(0.01, interpolation="lower")
    high = distances.quantile(0.99, interpolation="higher")
    return distances[(distances >= low) & (distances <= high)].mean().item()
