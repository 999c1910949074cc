"""The counts of Tables 1 to 3, on the meta device, and the bits that a sequence's targets hold."""

from itertools import product
from pathlib import Path

import numpy as np
import torch

from papers.ntm import data
from papers.ntm.config import PAPER
from papers.ntm.model import NTM
from papers.ntm.train import shape_of

COUNTED = {
    f"{table}-{task}": f"fig{figure}-{task}-{net}"
    for table, net in (("table1", "ntm-ff"), ("table2", "ntm-lstm"), ("table3", "lstm"))
    for figure, task in ((3, "copy"), (7, "repeat"), (10, "associative"), (13, "ngrams"), (18, "sort"))
}


def target_bits(name: str) -> float:
    """Mean number of data bits that a training sequence asks for: its cost by guessing, markers left out."""
    task, rng = data.TASKS[name], np.random.default_rng(0)
    made = [task.make(rng, *size) for size in product(*(range(low, high + 1) for low, high in task.sizes))]
    steps = [len(y) - first - y[first:, task.data_bits :].sum() for _, y, first in made]  # a marked step has no data
    return float(np.mean(steps)) * task.data_bits


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data sets read: none)."""
    with torch.device("meta"):
        counts = {f"parameters/{name}": NTM(shape_of(PAPER[preset])).theta.numel() for name, preset in COUNTED.items()}
    return {**counts, **{f"target_bits/{name}": target_bits(name) for name in data.TASKS}}, {}
