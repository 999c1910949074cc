"""Graphs: the Planetoid files as the official code reads them, the karate club, and generated ones."""

import os
import pickle
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import scipy.sparse as sp

from common.data import hub
from common.errors import UserError
from common.random import integer

FILES = ("x", "y", "tx", "ty", "allx", "ally", "graph", "test.index")
SOURCE = "https://github.com/kimiyoung/planetoid"


@dataclass(frozen=True)
class Graph:
    """A graph with features and labels.

    Attributes:
        adjacency: A, (n, n), binary and symmetric; self loops of the source are kept, as in the official code.
        features: X, (n, f), as stored (not normalised).
        labels: (n,), -1 where a node has none.
        train, validation, test: node indices of the data set's own split.
        listed: neighbours listed in the source's file, duplicates and self loops included.
    """

    name: str
    adjacency: sp.csr_matrix
    features: sp.csr_matrix
    labels: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    listed: int

    @property
    def fingerprint(self) -> str:
        """Hash of everything above."""
        parts = [matrix.indptr.astype("<i4") for matrix in (self.adjacency, self.features)]
        parts += [matrix.indices.astype("<i4") for matrix in (self.adjacency, self.features)]
        parts += [matrix.data.astype("<f4") for matrix in (self.adjacency, self.features)]
        return hub.fingerprint(
            *parts, *(a.astype("<i8") for a in (self.labels, self.train, self.validation, self.test))
        )

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1


def load(name: str, data_dir: Path | None) -> Graph:
    """Read `Planetoid/Cora`, `Planetoid/CiteSeer`, `Planetoid/PubMed`, `generated/karate` or `synthetic/blocks`.

    Raises:
        UserError: unknown, out of reach or damaged.
    """
    if name == "synthetic/blocks":
        return blocks()
    if name == "generated/karate":
        return karate()
    if name not in ("Planetoid/Cora", "Planetoid/CiteSeer", "Planetoid/PubMed"):
        raise UserError(
            f"data set {name} has no loader here; known are Planetoid/Cora, Planetoid/CiteSeer, Planetoid/PubMed, "
            "generated/karate and synthetic/blocks"
        )
    short = name.removeprefix("Planetoid/")
    folder = _raw_folder(short, data_dir)
    try:
        return _read(name, {part: folder / f"ind.{short.lower()}.{part}" for part in FILES})
    except (OSError, ValueError, IndexError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"data set {name}: a file in {folder} is damaged ({error}); fetch it anew from {SOURCE}"
        ) from None


def _raw_folder(short: str, data_dir: Path | None) -> Path:
    """Where the raw files lie; fetched by PyG's Planetoid where no mirror has them."""
    names = [f"ind.{short.lower()}.{part}" for part in FILES]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "repro" / "planetoid"
    places = [root / short / "raw" for root in (data_dir and data_dir / "planetoid", cache) if root]
    for place in places:
        if all((place / file).is_file() for file in names):
            return place
    looked = f"not in {places[0]}" if data_dir else "PAPERS_DATA is not set"
    message = (
        f"data set Planetoid/{short} cannot be read: {looked}, and {SOURCE} is out of reach; "
        f"put its ind.* files at DIR/planetoid/{short}/raw and set PAPERS_DATA=DIR (or --data-dir DIR)"
    )
    if not hub.reachable("github.com"):
        raise UserError(message)
    from filelock import FileLock
    from torch_geometric.datasets import Planetoid

    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{short}.lock"):
            Planetoid(str(cache), short)
    except Exception as error:  # whatever the download stumbles over
        raise UserError(
            f"{message} ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from None
    return places[-1]


class _Unpickler(pickle.Unpickler):
    """Reads what the Planetoid files hold, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("scipy.sparse.csr", "csr_matrix"): sp.csr_matrix,
            ("collections", "defaultdict"): defaultdict,
            ("__builtin__", "list"): list,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[module, name]


def _unpickle(file: IO[bytes]) -> Any:
    return _Unpickler(file, encoding="latin1").load()


def _read(name: str, files: dict[str, Path]) -> Graph:
    """Put the Planetoid files together as tkipf/gcn's load_data does."""
    parts = {}
    for part in FILES[:-1]:
        with open(files[part], "rb") as file:
            parts[part] = _unpickle(file)
    listed_test = np.loadtxt(files["test.index"], dtype=np.int64)
    known, total = parts["allx"].shape[0], int(listed_test.max()) + 1

    # Test rows come in the order of the index file. CiteSeer's 15 nodes without a row stay without features and label.
    rows = np.concatenate([np.arange(known), listed_test])
    stored = sp.coo_matrix(sp.vstack((parts["allx"], parts["tx"])))
    features = sp.csr_matrix((stored.data, (rows[stored.row], stored.col)), shape=(total, stored.shape[1]))
    one_hot = np.zeros((total, parts["y"].shape[1]))
    one_hot[rows] = np.vstack((parts["ally"], parts["ty"]))
    labels = np.where(one_hot.any(1), one_hot.argmax(1), -1)

    graph = parts["graph"]
    source = np.concatenate([np.full(len(neighbours), node) for node, neighbours in graph.items()])
    target = np.concatenate([np.asarray(neighbours, dtype=np.int64) for neighbours in graph.values()])
    train = len(parts["y"])
    return Graph(
        name,
        undirected(source.astype(np.int64), target, total),
        features.astype(np.float32),
        labels,
        np.arange(train),
        np.arange(train, train + 500),
        np.sort(listed_test),
        len(source),
    )


def undirected(source: np.ndarray, target: np.ndarray, n: int) -> sp.csr_matrix:
    """Binary, symmetric A from a list of edges; duplicates count once, self loops stay."""
    both = (np.concatenate([source, target]), np.concatenate([target, source]))
    adjacency = sp.csr_matrix((np.ones(len(both[0]), dtype=np.float32), both), shape=(n, n))
    adjacency.sum_duplicates()
    adjacency.data[:] = 1.0
    return adjacency


def row_normalize(features: sp.csr_matrix) -> sp.csr_matrix:
    """Rows divided by their sum; empty rows stay empty (Section 5.2)."""
    total = np.asarray(features.sum(1), dtype=np.float64).ravel()
    return sp.csr_matrix(sp.diags_array(np.divide(1.0, total, out=np.zeros_like(total), where=total != 0)) @ features)


def random_split(graph: Graph, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A split of the same size: as many training nodes of each class, the others among the rest of the labelled."""
    order = np.random.default_rng(integer(seed, "split")).permutation(np.flatnonzero(graph.labels >= 0))
    per_class = len(graph.train) // graph.classes
    train = np.concatenate([order[graph.labels[order] == c][:per_class] for c in range(graph.classes)])
    rest = order[~np.isin(order, train)]
    held_out = len(graph.validation)
    return np.sort(train), np.sort(rest[:held_out]), np.sort(rest[held_out : held_out + len(graph.test)])


def folds(graph: Graph, count: int, seed: int) -> list[np.ndarray]:
    """All labelled nodes in `count` random parts."""
    order = np.random.default_rng(integer(seed, "folds")).permutation(np.flatnonzero(graph.labels >= 0))
    return [np.sort(part) for part in np.array_split(order, count)]


# fmt: off
KARATE_EDGES = {
    0: [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 17, 19, 21, 31], 1: [2, 3, 7, 13, 17, 19, 21, 30],
    2: [3, 7, 8, 9, 13, 27, 28, 32], 3: [7, 12, 13], 4: [6, 10], 5: [6, 10, 16], 6: [16], 8: [30, 32, 33], 9: [33],
    13: [33], 14: [32, 33], 15: [32, 33], 18: [32, 33], 19: [33], 20: [32, 33], 22: [32, 33],
    23: [25, 27, 29, 32, 33], 24: [25, 27, 31], 25: [31], 26: [29, 33], 27: [33], 28: [31, 33], 29: [32, 33],
    30: [32, 33], 31: [32, 33], 32: [33],
}
# The partition of highest modularity, 0.4198 (Brandes et al. 2008, whom the paper cites for its labels).
KARATE_COMMUNITIES = [
    0, 0, 0, 0, 1, 1, 1, 0, 2, 2, 1, 0, 0, 0, 2, 2, 1, 0, 2, 0, 2, 0, 2, 3, 3, 3, 2, 3, 3, 2, 2, 3, 2, 2,
]
# fmt: on


def karate() -> Graph:
    """Zachary's karate club (App. A): X = I, one labelled node per community, the one of most neighbours."""
    pairs = np.array([(a, b) for a, others in KARATE_EDGES.items() for b in others])
    adjacency = undirected(pairs[:, 0], pairs[:, 1], 34)
    labels = np.array(KARATE_COMMUNITIES)
    degree = np.asarray(adjacency.sum(1)).ravel()
    train = np.array([np.flatnonzero(labels == c)[degree[labels == c].argmax()] for c in range(4)])
    rest = np.setdiff1d(np.arange(34), train)
    identity = sp.csr_matrix(sp.eye_array(34, dtype=np.float32, format="csr"))
    return Graph("generated/karate", adjacency, identity, labels, np.sort(train), rest[:0], rest, 2 * len(pairs))


def random_graph(edges: int, seed: int) -> sp.csr_matrix:
    """Adjacency of a graph with edges / 2 nodes and `edges` edges, ends drawn uniformly (Section 5.1)."""
    ends = np.random.default_rng(integer(seed, "random graph", edges)).integers(edges // 2, size=(2, edges))
    return undirected(ends[0], ends[1], edges // 2)


def blocks(n: int = 300, classes: int = 3, words: int = 60) -> Graph:
    """A small stochastic block model with bag-of-words features: neighbours and words both tell the class."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    same = labels[:, None] == labels[None]
    source, target = np.nonzero(np.triu(rng.random((n, n)) < np.where(same, 0.03, 0.003), 1))
    topic = np.arange(words) % classes
    present = rng.random((n, words)) < np.where(labels[:, None] == topic[None], 0.15, 0.05)
    train, validation, test = np.split(np.arange(n), [20 * classes, 20 * classes + 80])
    features, adjacency = sp.csr_matrix(present.astype(np.float32)), undirected(source, target, n)
    return Graph("synthetic/blocks", adjacency, features, labels, train, validation, test, 2 * len(source))
