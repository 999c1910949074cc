"""Counts at the paper's own scale: parameters, sequence lengths, multiply-adds, and Table 6's training compute.

Networks are built on torch's meta device; `FlopCounterMode` counts their matrix products and convolutions, two
floating-point operations for each multiply-add. A training step is three forward passes.
"""

from pathlib import Path

import torch

from common.cost import multiply_adds, parameters
from papers.vit.config import PRESETS, Config, shape
from papers.vit.model import ViT

JFT_IMAGES = 303e6  # Section 4.1
TABLE_6 = (("b32", 7), ("b16", 7), ("l32", 7), ("l16", 7), ("l16", 14), ("h14", 14))
OFFICIAL = ("ti16", "s16", "s32", "b8", "b16", "b32", "l16", "l32", "h14", "r50-b16", "r50-l32", "r26-b32", "r26-s32")
OTHERS = ("ct-vit-lite-7-4", "ct-vit-lite-6-4", "vit-cifar", "kentaroy47-200")
TRENDS = ("cifar-1d", "cifar-hybrid", "cifar-cnn", "laptop-1d", "laptop-cnn")  # compared at equal compute


def build(cfg: Config) -> ViT:
    """The network of a configuration, on the current device, not initialised."""
    return ViT(
        resolution=cfg.resolution,
        patch=cfg.patch,
        d=cfg.width,
        depth=cfg.depth,
        heads=cfg.heads,
        mlp=cfg.mlp,
        classes=cfg.classes,
        channels=len(cfg.mean),
        pool=cfg.pool,
        positions=cfg.positions,
        position_layers=cfg.position_layers,
        stages=None if cfg.stem == "none" else cfg.stages,
        stem_channels=cfg.stem_channels,
        small_root=cfg.stem == "small",
        pre_logits=cfg.pre_logits,
        dropout=cfg.dropout,
        attention_dropout=cfg.attention_dropout,
        drop_path=cfg.drop_path,
        dialect=cfg.dialect,
    )


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data sets read: none)."""
    counts: dict[str, float] = {}
    with torch.device("meta"):
        for name in OFFICIAL:
            model = build(shape(name))
            whole, head = parameters(model), parameters(model.head)
            counts[f"parameters/{name}"], counts[f"parameters-without-head/{name}"] = whole, whole - head
            counts[f"tokens/{name}"] = model.tokens
            counts[f"gmacs/{name}"] = multiply_adds(model, 224) / 1e9
        for name in (*OTHERS, *TRENDS):
            model = build(PRESETS[name])
            counts[f"parameters/{name}"] = parameters(model)
            counts[f"gmacs/{name}"] = multiply_adds(model, 32) / 1e9
            n, d = model.tokens, PRESETS[name].width
            counts[f"gmacs-without-attention/{name}"] = counts[f"gmacs/{name}"] - 2e-9 * n * n * d * len(model.blocks)
    for size in ("b", "l", "h"):
        name = f"{size}14" if size == "h" else f"{size}16"
        counts[f"millions/{name}"] = counts[f"parameters/{name}"] / 1e6
        counts[f"millions-without-head/{name}"] = counts[f"parameters-without-head/{name}"] / 1e6
    counts["millions/l32"] = counts["parameters/l32"] / 1e6
    for name in OTHERS:
        counts[f"millions/{name}"] = counts[f"parameters/{name}"] / 1e6
    for name, epochs in TABLE_6:
        counts[f"exaflops/{name}-{epochs}"] = 6 * counts[f"gmacs/{name}"] * 1e9 * JFT_IMAGES * epochs / 1e18
    return counts, {}
