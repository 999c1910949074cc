"""The counts of Tables 1 to 10 and of Gers et al. 2000: trainable weights, on the meta device."""

from pathlib import Path

import torch

from papers.lstm.config import PRESETS
from papers.lstm.train import build

COUNTED = {
    "weights_1_4x1": "table1-4x1-lr0.1",
    "weights_1_3x2": "table1-3x2-lr0.1",
    "weights_2a": "table2-lstm",
    **{f"weights_2c_p{p}": f"table3-{p}" for p in (50, 100, 200, 500, 1000)},
    "weights_3": "table4-T100N3",
    "weights_4": "table7-T100",
    "weights_5": "table8-nseq13",
    "weights_6a": "table9-6a",
    "weights_6b": "table9-6b",
    "weights_gers": "gers-forget",
}


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data sets read: none)."""
    with torch.device("meta"):
        return {name: build(PRESETS[preset], 1).weights() for name, preset in COUNTED.items()}, {}
