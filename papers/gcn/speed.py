"""A training epoch on Cora's sizes, beside PyTorch Geometric's; how it grows with edges and with nets."""

from functools import cache

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import nn

from common.speed import Case, Growth, Peer, Step, training
from papers.gcn import data
from papers.gcn.config import Config
from papers.gcn.model import GCN, cross_entropy
from papers.gcn.propagation import supports
from papers.gcn.train import Part, adam, step_like_tensorflow

NODES, EDGES, FEATURES, WORDS, CLASSES, TRAINED = 2_708, 5_278, 1_433, 18, 7, 140  # Cora (Table 1); words a document
SEEDS = 10


@cache
def graph() -> tuple[sp.csr_matrix, sp.csr_matrix, np.ndarray]:
    """(features with rows of sum 1, adjacency, labels): random, of Cora's sizes."""
    rng = np.random.default_rng(0)
    columns = np.concatenate([rng.choice(FEATURES, WORDS, replace=False) for _ in range(NODES)])
    features = sp.csr_matrix(
        (np.full(len(columns), 1 / WORDS, np.float32), (np.arange(NODES).repeat(WORDS), columns)), (NODES, FEATURES)
    )
    ends = rng.integers(NODES, size=(2, EDGES))
    half = sp.coo_array((np.ones(EDGES, np.float32), ends), (NODES, NODES))
    adjacency = sp.csr_matrix((half + half.T) > 0, dtype=np.float32)
    adjacency.setdiag(0)
    adjacency.eliminate_zeros()
    return features, adjacency, rng.integers(CLASSES, size=NODES)


def ours(nets: int = 1) -> Step:
    cfg, (features, adjacency, labels) = Config(), graph()
    rules = [supports(cfg.propagation, adjacency)[0]] * 2
    nodes = np.arange(TRAINED)
    part = Part(features, rules, labels, nodes, [nodes] * nets, torch.device("cpu"))
    keys = [(seed,) for seed in range(nets)]
    model = GCN(nets, [FEATURES, cfg.hidden_units, CLASSES], dropout=cfg.dropout)
    model.initialize(keys)
    optimizer = adam(model, cfg)
    epoch = [0]

    def run() -> None:
        loss = cross_entropy(model(part.field, model.masks(part.field, keys, epoch[0])), part.labels, part.share)
        loss.sum().backward()
        step_like_tensorflow(optimizer, epoch[0])
        epoch[0] += 1

    return Step(run, sum(p.numel() for p in model.parameters()))


def geometric(sparse: bool) -> Step:
    """The two-layer net of PyG's own example (examples/gcn.py), from its GCNConv with cached normalisation."""
    from torch_geometric.nn import GCNConv
    from torch_geometric.utils import from_scipy_sparse_matrix, to_torch_csr_tensor

    features, adjacency, labels = graph()
    edges = from_scipy_sparse_matrix(adjacency)[0]
    x, y = torch.from_numpy(features.toarray()), torch.from_numpy(labels[:TRAINED])
    where = to_torch_csr_tensor(edges, size=(NODES, NODES)) if sparse else edges

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = GCNConv(FEATURES, 16, cached=True, normalize=True, bias=False)
            self.two = GCNConv(16, CLASSES, cached=True, normalize=True, bias=False)

        def forward(self) -> torch.Tensor:
            hidden = self.one(F.dropout(x, 0.5, self.training), where).relu()
            return self.two(F.dropout(hidden, 0.5, self.training), where)

    net = Net()
    groups = [{"params": net.one.parameters(), "weight_decay": 5e-4}, {"params": net.two.parameters()}]
    return training(net, torch.optim.Adam(groups, lr=0.01), lambda: F.cross_entropy(net()[:TRAINED], y))


def floor() -> float:
    """Two operations for each stored number and unit: X W and S (XW) of both layers, and their backward passes."""
    features, adjacency, _ = graph()
    entries = adjacency.nnz + NODES
    return 2.0 * (2 * features.nnz * 16 + 2 * entries * 16 + 3 * NODES * 16 * CLASSES + 2 * entries * CLASSES)


def many_peers() -> Step:
    """PyG's net once for each seed: it holds one net at a time."""
    steps = [geometric(sparse=True) for _ in range(SEEDS)]

    def run() -> None:
        for step in steps:
            step.run()

    return Step(run, sum(step.parameters for step in steps))


def at_edges(edges: int) -> Step:
    """An epoch of Figure 2: forward and backward pass on a random graph with half as many nodes, X = I."""
    adjacency = data.random_graph(edges, 0)
    n = adjacency.shape[0]
    nodes = np.arange(n)
    rules = [supports("renormalization", adjacency)[0]] * 2
    everyone = Part(sp.eye_array(n, format="csr"), rules, np.ones_like(nodes), nodes, [nodes], torch.device("cpu"))
    model = GCN(1, [n, 32, 2])
    model.initialize([(0,)])

    def run() -> None:
        cross_entropy(model(everyone.field), everyone.labels, everyone.share).sum().backward()
        model.zero_grad(set_to_none=True)

    return Step(run, sum(p.numel() for p in model.parameters()))


CASES = {
    "cora": Case(
        f"one net of 16 units on a random graph of Cora's sizes ({NODES} nodes, {EDGES} edges), dropout, Adam",
        ours,
        {
            "PyG GCNConv, edge list": Peer("torch_geometric", lambda: geometric(sparse=False)),
            "PyG GCNConv, sparse matrix": Peer("torch_geometric", lambda: geometric(sparse=True)),
        },
        "adam",
        (floor(), 0.0),
    ),
    f"cora-{SEEDS}-seeds": Case(
        f"the same with {SEEDS} seeds: a stack of nets, beside one net after the other",
        lambda: ours(SEEDS),
        {"PyG GCNConv, sparse matrix": Peer("torch_geometric", many_peers)},
        "adam",
        (SEEDS * floor(), 0.0),
    ),
}
GROWTH = Growth("edges", (10_000, 100_000, 1_000_000), at_edges)
