"""Parameters of the nets (printed nowhere; identity tests of ours), on the meta device."""

from pathlib import Path

from common.cost import parameters
from papers.snn.config import PRESETS
from papers.snn.train import build

INPUTS = {"generated/randman": (20,), "generated/randman-stork": (20,), "local/braille-taxels": (4,)}
COUNTED = {
    "zv": "zv-one", "zv-recurrent": "zv-fig5-sprop", "stork": "stork-nb01", "spytorch-t2": "spytorch-t2",
    "spytorch-t5": "spytorch-t5", "snntorch": "snntorch-t5", "spikingjelly-fc": "spikingjelly-mnist-fc",
    "spikingjelly-conv": "spikingjelly-fmnist", "stbp-repo-cnn": "stbp-repo-mnist-cnn", "stbp-cnn": "stbp-mnist-cnn",
    "stbp-fc": "stbp-mnist-fc",
}  # fmt: skip


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data sets read: none)."""
    counts = {}
    for name, preset in COUNTED.items():
        cfg = PRESETS[preset]
        counts[f"parameters/{name}"] = float(parameters(build(cfg, 1, INPUTS.get(cfg.dataset, (1, 28, 28)), "meta")))
    return counts, {}
