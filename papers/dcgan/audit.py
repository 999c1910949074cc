"""Counts at the paper's own scale, on the meta device, and Table 3's real-data row: MNIST and no training."""

from pathlib import Path

import torch

from common.cost import parameters
from common.data import images
from common.errors import UserError
from common.judging import Nearest
from papers.dcgan import model as nets
from papers.dcgan.config import PRESETS
from papers.dcgan.data import levels
from papers.dcgan.train import build

SHAPES = {"table3-dcgan": (28, 1), "table3-gan": (28, 1), "app8.1-dcgan-affine": (28, 1), "table1-imagenet32": (32, 3)}


def faces() -> tuple[nets.Generator, nets.Discriminator]:
    """The 64x64 nets of Figure 1 with the released script's D (code: faces/train_uncond_dcgan.py)."""
    norm = nets.norm_layer(affine=True)
    up = [(512, 2), (256, 2), (128, 2), (3, 2)]
    down = [(128, 2), (256, 2), (512, 2), (1024, 2)]
    return nets.Generator(norm, 100, 1024, up, 5), nets.Discriminator(norm, down, 5)


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data set read -> fingerprint); what needs data that cannot be read is left out."""
    counts: dict[str, float] = {}
    read: dict[str, str] = {}
    with torch.device("meta"):
        pairs = {name: build(PRESETS[name], *shape) for name, shape in SHAPES.items()} | {"faces64": faces()}
        for name, (g, d) in pairs.items():
            counts |= {f"parameters/{name}/g": parameters(g), f"parameters/{name}/d": parameters(d)}
        d = pairs["table1-imagenet32"][1]
        assert isinstance(d, nets.Discriminator)
        x = torch.empty(2, 3, 32, 32)
        counts["svm_features"] = d.features(x).shape[1]
        counts["widest_layer"] = max(h.shape[1] for h in d.maps(x))
    try:
        digits = images.load("ylecun/mnist", data_dir)
    except UserError:
        return counts, read
    read[digits.name] = digits.fingerprint
    nearest = Nearest(levels(digits.test, 0).flatten(1))
    for x, y in zip(digits.train.split(Nearest.BLOCK), digits.train_labels.split(Nearest.BLOCK), strict=True):
        nearest.add(levels(x, 0).flatten(1), y)
    counts["nn_error_60000"] = 100 * float((nearest.label != digits.test_labels).double().mean())
    return counts, read
