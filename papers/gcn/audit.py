"""Counts at the paper's own scale: Table 1, the karate club, and the parameters of the nets of Table 2."""

from pathlib import Path

import torch

from common.cost import parameters
from common.errors import UserError
from papers.gcn import data
from papers.gcn.config import DATASETS
from papers.gcn.model import GCN

TABLE_1 = {"citeseer": (3703, 6), "cora": (1433, 7), "pubmed": (500, 3)}  # features, classes


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data set read -> fingerprint); what needs data that cannot be read is left out."""
    counts: dict[str, float] = {}
    read: dict[str, str] = {}
    for name, (features, classes) in TABLE_1.items():
        with torch.device("meta"):
            model = GCN(1, [features, 16, classes])
        counts[f"parameters_{name}"] = parameters(model)
    for name, dataset in DATASETS.items():
        try:
            graph = data.load(dataset, data_dir)
        except UserError:
            continue
        read[graph.name] = graph.fingerprint
        counts[f"nodes_{name}"] = graph.adjacency.shape[0]
        counts[f"edges_{name}"] = graph.listed / 2
        counts[f"classes_{name}"] = graph.classes
        counts[f"features_{name}"] = graph.features.shape[1]
        counts[f"label_rate_{name}"] = len(graph.train) / graph.adjacency.shape[0]
    club = data.karate()
    counts["karate_nodes"], counts["karate_edges"] = club.adjacency.shape[0], club.adjacency.nnz
    return counts, read
