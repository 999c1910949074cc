"""Seconds a pre-training step takes (Table 2): ours, with a one-block decoder, with mask tokens in the encoder, and
transformers' ViTMAEForPreTraining."""

import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from common.cost import learned, now
from common.random import generator
from common.run import Run
from papers.mae.audit import build
from papers.mae.config import Config
from papers.mae.model import initialise

KINDS = ("ours", "one-block", "mask-tokens", "transformers")


def peer(cfg: Config) -> nn.Module:
    """transformers' network of the same sizes; called like ours."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=cfg.width,
            num_hidden_layers=cfg.depth,
            num_attention_heads=cfg.heads,
            intermediate_size=4 * cfg.width,
            image_size=cfg.resolution,
            patch_size=cfg.patch,
            decoder_hidden_size=cfg.decoder_width,
            decoder_num_hidden_layers=cfg.decoder_depth,
            decoder_num_attention_heads=cfg.decoder_heads,
            decoder_intermediate_size=4 * cfg.decoder_width,
            mask_ratio=cfg.mask_ratio,
            norm_pix_loss=cfg.target == "normalised",
            layer_norm_eps=1e-6,
        )
    )
    return model


def step_of(cfg: Config, kind: str, run: Run) -> Callable[[Tensor, Tensor], None]:
    """One update of a kind of network."""
    if kind == "transformers":
        torch.manual_seed(0)  # it knows no generator; times do not depend on it
        model = peer(cfg)
    else:
        changed = {"one-block": {"decoder_depth": 1}, "mask-tokens": {"mask_tokens": "encoder"}}.get(kind, {})
        model = build(replace(cfg, **changed))  # type: ignore[arg-type]
        initialise(model, generator(0, "weights"))
    model.to(run.device)
    learning = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learning) == learned(model)
    optimizer = torch.optim.AdamW(learning, lr=cfg.lr, betas=(0.9, 0.95), weight_decay=cfg.weight_decay, fused=True)
    wrapped = run.wrapped(model)

    def step(x: Tensor, noise: Tensor) -> None:
        loss = wrapped(x, noise=noise).loss if kind == "transformers" else wrapped(x, noise)
        optimizer.zero_grad(set_to_none=True)
        run.accelerator.backward(loss)
        optimizer.step()

    return step


def time_steps(cfg: Config, run: Run) -> None:
    """`epochs` rounds in which every kind takes its turn; a round before them warms up."""
    run.timed()
    x = torch.randn(cfg.batch_size, 3, cfg.resolution, cfg.resolution, generator=generator(run.seeds[0], "x"))
    noise = torch.rand(cfg.batch_size, (cfg.resolution // cfg.patch) ** 2, generator=generator(run.seeds[0], "noise"))
    x, noise = run.share(x).to(run.device), run.share(noise).to(run.device)
    steps = {kind: step_of(cfg, kind, run) for kind in KINDS}
    for step in steps.values():
        step(x, noise)
    seconds = torch.zeros(cfg.epochs, len(KINDS), dtype=torch.float64)
    for turn in run.steps(cfg.epochs, {"seconds": seconds}, every=1):
        for i, step in enumerate(steps.values()):
            begun = now(run.device)
            step(x, noise)
            seconds[turn, i] = now(run.device) - begun
        run.log(turn, **{f"ms_per_step/{k}": 1e3 * s for k, s in zip(KINDS, seconds[turn].tolist(), strict=True)})
    median = {kind: statistics.median(column.tolist()) for kind, column in zip(KINDS, seconds.T, strict=True)}
    metrics = {f"ms_per_step/{kind}": 1e3 * value for kind, value in median.items()}
    for kind in ("ours", "one-block"):
        metrics[f"speedup/{kind}"] = median["mask-tokens"] / median[kind]
    metrics["transformers_over_ours"] = median["transformers"] / median["ours"]
    run.finish([metrics])
