"""Trains graph convolutional networks, all seeds together."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("gcn")

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from common.cost import now, slope
from common.random import integer
from common.run import Run
from common.threads import on_threads
from papers.gcn import data
from papers.gcn.config import Config
from papers.gcn.model import GCN, accuracy, cross_entropy
from papers.gcn.propagation import Field, receptive_field, side_by_side, supports

SEEDS = "sharded"


def train(cfg: Config, run: Run) -> None:
    """Carry out the experiment a configuration names."""
    # a second thread gains 10 % on idle cores, and loses tenfold on busy ones
    with on_threads(torch.get_num_threads() if cfg.experiment == "timing" else 1):
        {"classification": classify, "karate": karate, "timing": time_epochs}[cfg.experiment](cfg, run)


class Part:
    """The nodes that count for each net, among those that are computed for all, with everything they depend on.

    `computed` must not depend on which nets are trained together: dropout is drawn for what it reaches.
    """

    def __init__(self, features: sp.csr_matrix, rules: Sequence[sp.csr_matrix], labels: np.ndarray,
                 computed: np.ndarray, counted: Sequence[np.ndarray], device: torch.device) -> None:  # fmt: skip
        share = np.stack([np.isin(computed, own) / len(own) for own in counted])
        self.field: Field = receptive_field(features, rules, computed, device)
        self.labels = torch.from_numpy(labels[computed].clip(min=0)).to(device)
        self.share = torch.from_numpy(share).to(device, torch.float32)  # (s, n)


def adam(model: GCN, cfg: Config) -> torch.optim.Adam:
    """Adam on the loss with its L2 term: the first layer's gradient gets weight_decay * W."""
    first, *others = model.weights
    groups = [{"params": [first], "weight_decay": cfg.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.Adam([g for g in groups if g["params"]], lr=cfg.lr, fused=True)


def step_like_tensorflow(optimizer: torch.optim.Adam, step: int) -> None:
    """One update. TensorFlow adds epsilon to sqrt(v) before the bias correction, torch after it."""
    for group in optimizer.param_groups:
        group["eps"] = 1e-8 / math.sqrt(1 - 0.999 ** (step + 1))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def stops(costs: Tensor, window: int) -> Tensor:
    """The official rule: the newest validation cost lies above the mean of the `window` before it.

    Args:
        costs: of all epochs so far, (t, s). The weights at the stop are used; there is no way back to better ones.
    """
    if len(costs) <= window + 1:
        return torch.zeros_like(costs[-1], dtype=torch.bool)
    return costs[-1] > costs[-1 - window : -1].mean(0)


def classify(cfg: Config, run: Run) -> None:
    """Tables 2 and 3; with split = folds, the cross-validation of App. B."""
    graph = data.load(cfg.dataset, run.data_dir)
    run.read(graph.name, graph.fingerprint)
    features = data.row_normalize(graph.features)
    matrices = supports(cfg.propagation, graph.adjacency, cfg.chebyshev_degree)
    rules = [side_by_side(matrices)] * cfg.layers

    stopping = cfg.early_stopping_epochs > 0
    keys: list[tuple[int, ...]] = [(seed,) for seed in run.seeds]
    computed = [np.arange(len(graph.labels))] * 3
    if cfg.split == "folds":
        parts = [data.folds(graph, cfg.folds, seed) for seed in run.seeds]
        keys = [(seed, fold) for seed in run.seeds for fold in range(cfg.folds)]
        splits = [(np.concatenate(p[:i] + p[i + 1 :]), p[i], p[i]) for p in parts for i in range(cfg.folds)]
    elif cfg.split == "random":
        splits = [data.random_split(graph, seed) for seed in run.seeds]
    else:
        computed = [graph.train, graph.validation, graph.test]
        splits = [(graph.train, graph.validation, graph.test)] * len(run.seeds)
    training, validation, testing = (
        Part(features, rules, graph.labels, nodes, counted, run.device)
        for nodes, counted in zip(computed, zip(*splits, strict=True), strict=True)
    )

    widths = [features.shape[1], *[cfg.hidden_units] * (cfg.layers - 1), graph.classes]
    model = GCN(len(keys), widths, len(matrices), cfg.dropout, cfg.residual)
    model.initialize(keys)
    model.to(run.device)
    optimizer = adam(model, cfg)

    costs = torch.zeros(cfg.max_epochs, len(keys), device=run.device)  # validation, L2 included
    stopped = torch.full((len(keys),), cfg.max_epochs, device=run.device)  # epochs trained when the rule fired
    result = torch.zeros(len(keys), device=run.device)  # test accuracy at that moment
    seconds = torch.zeros(len(keys))
    state: dict[str, Any] = {"model": model, "optimizer": optimizer}
    state |= {"costs": costs, "stopped": stopped, "result": result}
    if cfg.timed:  # a clock would keep equal runs from leaving equal bits
        run.timed()
        state["seconds"] = seconds

    def per_seed(values: Tensor) -> list[float]:
        return values.view(len(run.seeds), -1).mean(1).tolist()

    begun = time.perf_counter()
    for step in run.steps(cfg.max_epochs, state):
        logits = model(training.field, model.masks(training.field, keys, step))
        loss = cross_entropy(logits, training.labels, training.share)
        loss.sum().backward()
        logged = step % max(1, cfg.max_epochs // 40) == 0 or step == cfg.max_epochs - 1
        if logged:
            train_loss = loss.detach() + model.penalty(cfg.weight_decay).detach()
        step_like_tensorflow(optimizer, step)

        running = stopped == cfg.max_epochs
        with torch.no_grad():
            if stopping and (logged or bool(running.any())):
                logits = model(validation.field)
                costs[step] = cross_entropy(logits, validation.labels, validation.share)
                costs[step] += model.penalty(cfg.weight_decay)
                fires = running & stops(costs[: step + 1], cfg.early_stopping_epochs)
                if bool(fires.any()):
                    nets = fires.nonzero().flatten()
                    stopped[nets] = step + 1
                    shown = model(testing.field, nets=nets)
                    result[nets] = accuracy(shown, testing.labels, testing.share[nets])
                    seconds[nets.cpu()] = time.perf_counter() - begun
        if logged and stopping:
            validated = accuracy(logits, validation.labels, validation.share)
            run.log(step, train_loss=per_seed(train_loss), validation_cost=per_seed(costs[step]),
                    validation_accuracy=per_seed(validated))  # fmt: skip
        elif logged:
            run.log(step, train_loss=per_seed(train_loss))

    with torch.no_grad():
        final = accuracy(model(testing.field), testing.labels, testing.share)
        trained = accuracy(model(training.field), training.labels, training.share)
    running = stopped == cfg.max_epochs
    result = torch.where(running, final, result)
    columns = {"test_accuracy": per_seed(result), "train_accuracy": per_seed(trained)}
    if stopping:
        columns |= {"test_accuracy_no_stop": per_seed(final), "epochs": per_seed(stopped.float())}
    if cfg.timed:
        seconds[running.cpu()] = time.perf_counter() - begun
        columns["seconds"] = [s / len(run.seeds) for s in per_seed(seconds)]
    run.finish([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])


def karate(cfg: Config, run: Run) -> None:
    """App. A: embeddings of the karate club before and after training, Figures 3 and 4."""
    graph = data.load(cfg.dataset, run.data_dir)
    run.read(graph.name, graph.fingerprint)
    convolution, softmax_layer = supports(cfg.propagation, graph.adjacency)[0], supports("none", graph.adjacency)[0]
    rules = [convolution] * cfg.layers
    keys = [(seed,) for seed in run.seeds]
    everyone, labelled = (
        Part(graph.features, [*rules, softmax_layer], graph.labels, nodes, [nodes] * len(keys), run.device)
        for nodes in (np.arange(len(graph.labels)), graph.train)
    )
    widths = [graph.features.shape[1], *[cfg.hidden_units] * (cfg.layers - 1), 2, graph.classes]
    model = GCN(len(keys), widths, activation=torch.tanh)
    model.initialize(keys)
    model.to(run.device)
    optimizer = adam(model, cfg)

    @torch.no_grad()
    def scores() -> dict[str, list[float]]:
        *_, embeddings, logits = model.layers(everyone.field)
        shuffled = [np.random.default_rng(integer(seed, "shuffle")).permutation(graph.labels) for seed in run.seeds]
        points = list(embeddings.cpu().numpy())
        return {
            "accuracy": accuracy(logits, everyone.labels, everyone.share).tolist(),
            "separable": [separable(p, graph.labels) for p in points],
            "purity": [purity(p, graph.labels) for p in points],
            "purity_shuffled": [purity(p, labels) for p, labels in zip(points, shuffled, strict=True)],
        }

    untrained = {f"{name}_untrained": values for name, values in scores().items()}
    for step in run.steps(cfg.max_epochs, {"model": model, "optimizer": optimizer}):
        loss = cross_entropy(model(labelled.field), labelled.labels, labelled.share)
        loss.sum().backward()
        step_like_tensorflow(optimizer, step)
        if step + 1 in (25, 50, 75, 100, 200, 300) or step == cfg.max_epochs - 1:  # the snapshots of Figure 4
            run.log(step, train_loss=loss.detach(), **scores())
    columns = scores() | untrained
    run.finish([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])


def purity(points: np.ndarray, labels: np.ndarray, neighbours: int = 3) -> float:
    """Percent of a point's nearest neighbours that bear its label."""
    distance = np.square(points[:, None] - points[None]).sum(2)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argsort(1, kind="stable")[:, :neighbours]
    return 100 * float((labels[nearest] == labels[:, None]).mean())


def separable(points: np.ndarray, labels: np.ndarray) -> float:
    """100 where a straight line lies between every class and every other, else 0."""
    from scipy.optimize import linprog

    scaled = (points - points.mean(0)) / (points.std(0) + 1e-12)
    for a in range(labels.max()):
        for b in range(a + 1, labels.max() + 1):
            one, two = scaled[labels == a], scaled[labels == b]
            sides = np.concatenate([np.c_[-one, -np.ones(len(one))], np.c_[two, np.ones(len(two))]])
            if not linprog(np.zeros(3), sides, -np.ones(len(sides)), bounds=(None, None)).success:
                return 0.0
    return 100.0


def time_epochs(cfg: Config, run: Run) -> None:
    """Section 6.3: seconds for forward pass, cross-entropy and backward pass on random graphs, X = I."""
    run.timed()
    seconds = torch.zeros(len(cfg.edges), len(run.seeds), dtype=torch.float64)
    for step in run.steps(len(cfg.edges) * len(run.seeds), {"seconds": seconds}, every=1):
        size, which = divmod(step, len(run.seeds))
        edges, seed = cfg.edges[size], run.seeds[which]
        adjacency = data.random_graph(edges, seed)
        n = adjacency.shape[0]
        rules = [supports(cfg.propagation, adjacency)[0]] * cfg.layers
        nodes = np.arange(n)
        everyone = Part(sp.eye_array(n, format="csr"), rules, np.ones_like(nodes), nodes, [nodes], run.device)
        model = GCN(1, [n, *[cfg.hidden_units] * (cfg.layers - 1), 2])
        model.initialize([(seed,)])
        model.to(run.device)
        for epoch in range(cfg.max_epochs + 1):  # the first one warms up
            if epoch == 1:
                begun = now(run.device)
            cross_entropy(model(everyone.field), everyone.labels, everyone.share).sum().backward()
            model.zero_grad(set_to_none=True)
        seconds[size, which] = (now(run.device) - begun) / cfg.max_epochs
        run.log(step, edges=float(edges), seconds_per_epoch=float(seconds[size, which]))
    large = [i for i, edges in enumerate(cfg.edges) if edges >= 100_000]
    large = large if len(large) > 1 else list(range(len(cfg.edges)))  # overhead hides the slope of small graphs
    sizes = [cfg.edges[i] for i in large]
    metrics = []
    for own in seconds.numpy().T:
        found = {f"seconds_{edges}": float(s) for edges, s in zip(cfg.edges, own, strict=True)}
        metrics.append(found | {"slope": slope(sizes, own[large])})
    run.finish(metrics)
