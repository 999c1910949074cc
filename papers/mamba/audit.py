"""Counts at the paper's own scale, on torch's meta device: Tables 9 to 11, the released sizes, Section 3.4's block."""

from pathlib import Path

import torch

from common.cost import parameters
from common.errors import UserError
from papers.mamba.config import PRESETS, Config, replace
from papers.mamba.h3 import SmallLM
from papers.mamba.model import Model

SIZES = {"130m": (24, 768), "370m": (48, 1024), "790m": (48, 1536), "1.4b": (48, 2048), "2.8b": (64, 2560)}  # README
RANKS, STATES = (0, 1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16)  # Tables 9 and 10


def build(cfg: Config, vocabulary: int = 0) -> Model:
    """The network of a configuration, on the current device, not initialised."""
    return Model(
        vocabulary=vocabulary or cfg.vocabulary,
        d=cfg.width,
        layers=cfg.layers,
        block=cfg.block,
        layer=cfg.layer,
        n=cfg.state,
        expand=cfg.expand,
        rank=cfg.rank,
        selective=cfg.selective,
        init=cfg.init,
        heads=cfg.heads,
        positions=cfg.positions,
        layer_norm=cfg.layer_norm,
        tied=cfg.tied,
        longest=cfg.longest,
        trained=min(cfg.longest, cfg.length + cfg.data_tokens),
    )


def small_lm(cfg: Config) -> SmallLM:
    """The network of a configuration of the H3 paper's tasks, not initialised.

    Raises:
        UserError: another block than that paper's three.
    """
    if cfg.block not in ("h3", "s4d", "attention"):
        raise UserError(f"--block is h3, s4d or attention with --experiment h3-task, not {cfg.block}")
    places = cfg.length + 2  # safari: __l_max
    return SmallLM(cfg.vocabulary, cfg.width, cfg.layers, cfg.block, cfg.state, places, cfg.dropout)


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data sets read: none)."""
    counts: dict[str, float] = {}
    ablated = Config(vocabulary=50_257, width=1024, layers=48, rank=64)
    with torch.device("meta"):
        for rank in RANKS:
            counts[f"millions/rank{rank}"] = parameters(build(replace(ablated, rank=rank))) / 1e6
        for n in STATES:
            counts[f"millions/n{n}"] = parameters(build(replace(ablated, state=n))) / 1e6
            constant = replace(ablated, state=n, selective=("delta",))
            counts[f"millions/constant-n{n}"] = parameters(build(constant)) / 1e6
        for name, (layers, d) in SIZES.items():
            model = build(Config(vocabulary=50_280, width=d, layers=layers, rank=-(-d // 16)))
            counts[f"parameters/{name}"] = parameters(model)
            counts[f"block-in-d2/{name}"] = parameters(model.layers[0]) / d**2
        for name in ("mamba", "mha-abs", "h3", "hyena"):
            cfg = PRESETS[f"table11-{name}"]
            # Hyena's whole position table is a parameter, though rows beyond the training length never change
            model = build(replace(cfg, length=cfg.longest, data_tokens=0) if cfg.longest else cfg)
            counts[f"thousands/{name}"] = parameters(model) / 1e3
        transformer = build(PRESETS["fig8-transformer-1.3b"])
        counts["block-in-d2/transformer"] = parameters(transformer.layers[0]) / transformer.d**2
        for name in ("shakespeare-mamba", "shakespeare-transformer", "scaled-mamba", "scaled-transformer"):
            counts[f"parameters/{name}"] = parameters(build(PRESETS[name], 65))
    return counts, {}
