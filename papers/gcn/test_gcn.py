"""The maths against PyG and the official formulas; what the paper promises; the data files; seeds in company."""

import pickle
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from common.errors import UserError
from papers.gcn import data, train
from papers.gcn.audit import audit
from papers.gcn.config import PRESETS
from papers.gcn.model import GCN, accuracy, cross_entropy, keep
from papers.gcn.propagation import SparseMatrix, receptive_field, side_by_side, supports

RULES = ["renormalization", "chebyshev", "first-order", "single-parameter", "first-order-only", "none"]


class Runner(SimpleNamespace):
    """A run without folder, log or checkpoints."""

    def __init__(self, seeds: list[int], data_dir: Path | None = None) -> None:
        super().__init__(seeds=seeds, device=torch.device("cpu"), data_dir=data_dir, metrics=[], state={})

    def read(self, name: str, fingerprint: str) -> None: ...

    def timed(self) -> None: ...

    def log(self, step: int, **values: Any) -> None: ...

    def steps(self, total: int, state: dict[str, Any], every: int | None = None) -> range:
        self.state = state
        return range(total)

    def finish(self, metrics: list[dict[str, float]]) -> None:
        self.metrics = metrics


def ran(config: Any, seeds: list[int], data_dir: Path | None = None) -> Runner:
    run = Runner(seeds, data_dir)
    train.train(config, run)  # type: ignore[arg-type]
    return run


@pytest.fixture(scope="module")
def graph() -> data.Graph:
    return data.blocks()


@pytest.fixture
def irregular() -> sp.csr_matrix:
    """A graph with an isolated node (5), a self loop (1) and a link listed twice."""
    return data.undirected(np.array([0, 1, 1, 2, 2, 3]), np.array([1, 1, 2, 3, 3, 4]), 6)


def test_parameters_and_karate_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.hub, "reachable", lambda host: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = audit(None)[0]
    assert "nodes_cora" not in found
    assert (found["parameters_cora"], found["parameters_citeseer"], found["parameters_pubmed"]) == (23040, 59344, 8048)
    assert (found["karate_nodes"], found["karate_edges"]) == (34, 156)


# ---- propagation


def test_rules_are_table_3(irregular: sp.csr_matrix) -> None:
    a = irregular.toarray().astype(np.float64)
    assert a[1, 1] == 1
    assert a[2, 3] == 1
    i = np.eye(6)

    def normalized(m: np.ndarray) -> np.ndarray:
        d = m.sum(1)
        scale = np.array([x**-0.5 if x else 0.0 for x in d])
        return scale[:, None] * m * scale[None]

    s = normalized(a)
    laplacian = i - s
    scaled = 2 / np.linalg.eigvalsh(laplacian).max() * laplacian - i
    expected = {
        "renormalization": [normalized(a + i)],
        "chebyshev": [i, scaled, 2 * scaled @ scaled - i, 4 * scaled @ scaled @ scaled - 3 * scaled],
        "first-order": [i, s],
        "single-parameter": [i + s],
        "first-order-only": [s],
        "none": [i],
    }
    for rule in RULES:
        got = supports(rule, irregular, 3)
        assert len(got) == len(expected[rule])
        for ours, theirs in zip(got, expected[rule], strict=True):
            np.testing.assert_allclose(ours.toarray(), theirs, atol=1e-7)


def test_gcn_conv_and_cheb_conv(graph: data.Graph) -> None:
    from torch_geometric.nn import ChebConv, GCNConv
    from torch_geometric.utils import from_scipy_sparse_matrix

    edges, _ = from_scipy_sparse_matrix(graph.adjacency)
    x = torch.from_numpy(graph.features.toarray())
    n, f = x.shape
    laplacian = sp.eye_array(n) - supports("first-order-only", graph.adjacency)[0]
    lambda_max = torch.tensor(sp.linalg.eigsh(laplacian, 1, return_eigenvectors=False)[0], dtype=torch.float32)
    chebyshev = ChebConv(f, 5, K=4, bias=False)  # PyG counts supports
    for rule, layer, arguments in (
        ("renormalization", GCNConv(f, 5, bias=False), ()),
        ("chebyshev", chebyshev, (None, None, lambda_max)),
    ):
        matrices = supports(rule, graph.adjacency, 3)
        field = receptive_field(graph.features, [side_by_side(matrices)], np.arange(n))
        model = GCN(2, [f, 5], len(matrices))
        model.initialize([(0,), (1,)])
        linears = [module for module in layer.modules() if type(module).__name__ == "Linear"]
        with torch.no_grad():
            for k, linear in enumerate(linears):
                linear.weight.copy_(model.weights[0][1, :, k].T)
        ours, theirs = model(field)[1], layer(x, edges, *arguments)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        pull = torch.randn_like(ours)
        (ours * pull).sum().backward()
        (theirs * pull).sum().backward()
        gradient = model.weights[0].grad
        assert gradient is not None
        assert not gradient[0].any()
        for k, linear in enumerate(linears):
            torch.testing.assert_close(gradient[1, :, k], linear.weight.grad.T, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("entries_at_once", [1, 2**23])
def test_sparse_product_with_dropout(entries_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("papers.gcn.propagation.STACKED_ENTRIES", entries_at_once)
    matrix = sp.random_array((7, 5), density=0.5, random_state=np.random.default_rng(0), format="csr")
    dense = torch.randn(3, 5, 4, requires_grad=True)
    sparse = SparseMatrix(matrix)
    kept = torch.rand(3, sparse.entries) < 0.5
    expected = []
    for net in range(3):
        masked = matrix.copy()
        masked.data = masked.data * kept[net].numpy() / 0.5
        expected.append(torch.from_numpy(masked.toarray()).float() @ dense[net])
    result = sparse.matmul(dense, kept, 0.5)
    torch.testing.assert_close(result, torch.stack(expected))
    pull = torch.randn_like(result)
    (ours,) = torch.autograd.grad(result, dense, pull)
    (theirs,) = torch.autograd.grad(torch.stack(expected), dense, pull)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(sparse.matmul(dense)[1], torch.from_numpy(matrix.toarray()).float() @ dense[1])


@pytest.mark.parametrize("rule", RULES)
def test_a_receptive_field_is_exact(rule: str, graph: data.Graph) -> None:
    matrices = supports(rule, graph.adjacency, 2)
    rules = [side_by_side(matrices)] * 4
    model = GCN(2, [graph.features.shape[1], 8, 8, 8, 3], len(matrices), residual=True)
    model.initialize([(0,), (1,)])
    whole = model(receptive_field(graph.features, rules, np.arange(300)))
    nodes = np.array([3, 17, 250])
    torch.testing.assert_close(model(receptive_field(graph.features, rules, nodes)), whole[:, nodes])
    torch.testing.assert_close(
        model(receptive_field(graph.features, rules, nodes), nets=torch.tensor([1]))[0], whole[1, nodes]
    )


def test_renumbering_the_nodes_renumbers_the_outputs(graph: data.Graph) -> None:
    order = np.random.default_rng(0).permutation(300)
    model = GCN(1, [graph.features.shape[1], 16, 3])
    model.initialize([(0,)])

    def outputs(adjacency: sp.csr_matrix, features: sp.csr_matrix) -> torch.Tensor:
        return model(receptive_field(features, supports("renormalization", adjacency) * 2, np.arange(300)))[0]

    moved = outputs(graph.adjacency[order][:, order], graph.features[order])
    torch.testing.assert_close(moved, outputs(graph.adjacency, graph.features)[order], rtol=1e-4, atol=1e-5)


# ---- training


def test_residual_is_equation_14(graph: data.Graph) -> None:
    a = torch.from_numpy(supports("renormalization", graph.adjacency)[0].toarray()).float()
    h = torch.from_numpy(graph.features.toarray())
    model = GCN(1, [h.shape[1], 8, 8, 8, 3], residual=True)
    model.initialize([(0,)])
    first, *hidden, last = (w[0, :, 0] for w in model.weights)
    h = torch.relu(a @ h @ first)
    for w in hidden:
        h = torch.relu(a @ h @ w) + h
    field = receptive_field(graph.features, supports("renormalization", graph.adjacency) * 4, np.arange(300))
    torch.testing.assert_close(model(field)[0], a @ h @ last, rtol=1e-4, atol=1e-5)


def test_glorot_for_each_matrix() -> None:
    model = GCN(2, [300, 16, 7], supports=3)
    model.initialize([(0,), (1,)])
    for weight in model.weights:
        bound = (6 / (weight.shape[1] + weight.shape[3])) ** 0.5
        assert 0.95 * bound < weight.abs().max() <= bound


def test_dropout_keeps_its_share_and_knows_its_key() -> None:
    kept = keep(40_001, 0.3, [(0,), (1,)], "first", 5)
    assert kept.shape == (2, 40_001)
    assert abs(kept.float().mean().item() - 0.7) < 0.01
    assert torch.equal(kept[1:], keep(40_001, 0.3, [(1,)], "first", 5))
    assert not torch.equal(kept[1:], keep(40_001, 0.3, [(1,)], "first", 6))


def test_adam_is_tensorflows_and_the_penalty_is_in_the_first_layer_only() -> None:
    model = GCN(1, [4, 3, 2])
    model.initialize([(0,)])
    config = replace(PRESETS["table2-gcn-cora"], weight_decay=0.5)
    optimizer = train.adam(model, config)
    weights = [w.detach().double().numpy().copy() for w in model.weights]
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]
    rng = np.random.default_rng(0)
    for step in range(5):
        for i, parameter in enumerate(model.weights):
            gradient = rng.normal(size=weights[i].shape) * 1e-7
            parameter.grad = torch.from_numpy(gradient).float()
            total = gradient + (0.5 * weights[i] if i == 0 else 0)
            m, v = 0.9 * moments[i][0] + 0.1 * total, 0.999 * moments[i][1] + 0.001 * total**2
            moments[i] = (m, v)
            rate = 0.01 * (1 - 0.999 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
            weights[i] -= rate * m / (v**0.5 + 1e-8)
        train.step_like_tensorflow(optimizer, step)
    for ours, theirs in zip(model.weights, weights, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-4, atol=1e-6)


def test_stopping_rule_is_the_official_loops() -> None:
    costs = torch.rand(40, 6).cumsum(0).flip(0) + torch.randn(40, 6)
    for net in range(6):
        history: list[float] = []
        for epoch in range(40):
            history.append(costs[epoch, net].item())
            official = epoch > 10 and history[-1] > np.mean(history[-(10 + 1) : -1])
            assert bool(train.stops(costs[: epoch + 1], 10)[net]) == official


def test_losses_count_only_their_nodes() -> None:
    logits, labels = torch.randn(2, 5, 3), torch.tensor([0, 1, 2, 0, 1])
    share = torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 0, 0, 1.0]])
    expected = torch.stack(
        [
            torch.nn.functional.cross_entropy(logits[0, :2], labels[:2]),
            torch.nn.functional.cross_entropy(logits[1, 4:], labels[4:]),
        ]
    )
    torch.testing.assert_close(cross_entropy(logits, labels, share), expected)
    logits[1] = torch.nan
    assert accuracy(logits, labels, share)[1].isnan()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"propagation": "chebyshev"},
        {"split": "random"},
        {"split": "folds", "early_stopping_epochs": 0, "layers": 4},
    ],
)
def test_alone_equals_in_company(changes: dict[str, Any]) -> None:
    config = replace(PRESETS["smoke"], max_epochs=14, **changes)
    company, alone = ran(config, [0, 1, 2, 3, 4, 5, 6, 7, 8]), ran(config, [7])
    assert company.metrics[7] == alone.metrics[0]
    for ours, theirs in zip(company.state["model"].weights, alone.state["model"].weights, strict=True):
        each = len(theirs)
        assert torch.equal(ours[7 * each : 8 * each], theirs)


def test_karate_and_timing_run() -> None:
    trained = ran(PRESETS["figA-karate"], [0, 1, 2])
    assert np.mean([m["accuracy"] for m in trained.metrics]) > 60
    timed = ran(replace(PRESETS["fig2-time"], edges=(200, 400), max_epochs=2), [0, 1])
    assert all(m["seconds_200"] > 0 for m in timed.metrics)


def test_separable_and_purity() -> None:
    points, labels = np.array([[0.0, 0], [1, 1], [0, 1], [1, 0]]), np.array([0, 0, 1, 1])
    assert train.separable(points, labels) == 0
    assert train.separable(points, np.array([0, 1, 0, 1])) == 100
    assert train.purity(points, labels, 2) == 0


# ---- data


def test_karate_is_networkx_and_its_communities_are_optimal() -> None:
    import networkx

    club, graph = networkx.karate_club_graph(), data.karate()
    np.testing.assert_array_equal(graph.adjacency.toarray(), networkx.to_numpy_array(club, weight=None))
    groups = [set(np.flatnonzero(graph.labels == c)) for c in range(4)]
    assert networkx.community.modularity(club, groups, weight=None) == pytest.approx(0.41979, abs=1e-5)


def test_a_random_graph_has_its_edges() -> None:
    adjacency = data.random_graph(20_000, 0)
    assert adjacency.shape == (10_000, 10_000)
    assert 0.99 * 40_000 < adjacency.nnz <= 40_000  # few fall together
    assert (adjacency != adjacency.T).nnz == 0


def test_random_splits_and_folds(graph: data.Graph) -> None:
    parts = data.random_split(graph, 3)
    assert [len(p) for p in parts] == [60, 80, 160]
    assert len(np.unique(np.concatenate(parts))) == 300
    assert np.bincount(graph.labels[parts[0]]).tolist() == [20, 20, 20]
    assert sorted(np.concatenate(data.folds(graph, 5, 3))) == list(range(300))


def test_planetoid_files_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test rows out of order, a test node without a row (6), a self loop, a link listed twice."""
    monkeypatch.setattr(data, "_unpickle", pickle.load)
    one_hot = np.eye(2)
    content = {
        "x": sp.csr_matrix([[1.0, 0, 0]]),
        "y": one_hot[[0]],
        "allx": sp.csr_matrix([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]]),
        "ally": one_hot[[0, 1, 0, 1]],
        "tx": sp.csr_matrix([[7.0, 0, 0], [0, 5, 0], [0, 4, 4]]),  # of nodes 7, 5 and 4
        "ty": one_hot[[0, 1, 0]],
        "graph": {0: [1, 1], 1: [0, 1], 2: [], 3: [7], 4: [], 5: [], 6: [], 7: [3]},
    }
    files = {part: tmp_path / part for part in data.FILES}
    for part, value in content.items():
        files[part].write_bytes(pickle.dumps(value))
    files["test.index"].write_text("7\n5\n4\n")
    graph = data._read("Planetoid/Tiny", files)
    assert graph.features.toarray()[4:].tolist() == [[0, 4, 4], [0, 5, 0], [0, 0, 0], [7, 0, 0]]
    assert graph.labels.tolist() == [0, 1, 0, 1, 0, 1, -1, 0]
    assert graph.test.tolist() == [4, 5, 7]
    assert sorted(zip(*graph.adjacency.nonzero(), strict=True)) == [(0, 1), (1, 0), (1, 1), (3, 7), (7, 3)]
    assert graph.listed == 6
    assert data.row_normalize(graph.features).sum(1).ravel().tolist() == [[1, 1, 1, 1, 1, 1, 0, 1]]


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "planetoid" / "Cora" / "raw"
    folder.mkdir(parents=True)
    for part in data.FILES:
        (folder / f"ind.cora.{part}").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match="damaged"):
        data.load("Planetoid/Cora", tmp_path)


def test_missing_data_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.hub, "reachable", lambda host: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("Planetoid/PubMed", "Planetoid/NELL"):
        with pytest.raises(UserError) as caught:
            data.load(name, tmp_path)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Cora", "CiteSeer"])
def test_real_files_as_pyg_reads_them(name: str, papers_data: Path, tmp_path: Path) -> None:
    from torch_geometric.datasets import Planetoid
    from torch_geometric.utils import from_scipy_sparse_matrix, remove_self_loops

    shutil.copytree(papers_data / "planetoid" / name / "raw", tmp_path / name / "raw")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = Planetoid(str(tmp_path), name)[0]
    ours = data.load(f"Planetoid/{name}", papers_data)
    np.testing.assert_array_equal(ours.features.toarray(), theirs.x.numpy())
    np.testing.assert_array_equal(ours.labels.clip(min=0), theirs.y.numpy())  # theirs gives class 0 to nodes without
    for nodes, mask in ((ours.train, "train"), (ours.validation, "val"), (ours.test, "test")):
        np.testing.assert_array_equal(nodes, theirs[f"{mask}_mask"].nonzero().flatten().numpy())
    edges, _ = remove_self_loops(from_scipy_sparse_matrix(ours.adjacency)[0])  # PyG drops them
    np.testing.assert_array_equal(edges.flip(0).numpy(), theirs.edge_index.numpy())  # ordered by target there
    assert int(ours.adjacency.diagonal().sum()) == {"Cora": 0, "CiteSeer": 124}[name]


def test_table_1(papers_data: Path) -> None:
    found = audit(papers_data)[0]
    for name, counts in {"cora": (2708, 5429, 7, 1433, 0.052), "citeseer": (3327, 4732, 6, 3703, 0.036)}.items():
        *exact, rate = (found[f"{what}_{name}"] for what in ("nodes", "edges", "classes", "features", "label_rate"))
        assert (*exact, round(rate, 3)) == counts


def test_cora_reaches_the_reported_accuracy(papers_data: Path) -> None:
    accuracies = [m["test_accuracy"] for m in ran(PRESETS["table2-gcn-cora"], list(range(6)), papers_data).metrics]
    assert abs(np.mean(accuracies) - 81.5) < 1.0  # sd 0.65 a run
