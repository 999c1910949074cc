"""A training step beside transformers' Mamba and mambapy's; how it grows with the length."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.random import generator
from common.speed import Case, Growth, Peer, Step, training
from papers.mamba.audit import build
from papers.mamba.config import PRESETS

CFG = replace(PRESETS["laptop"], rank=4)  # Table 11's net; the peers' rank of Delta is a sixteenth of the width
WIDE = replace(PRESETS["shakespeare-mamba"], width=256, layers=2, rank=16, vocabulary=64, batch_size=4, length=512)
SIZES = {"induction": CFG, "characters": WIDE}


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, name: str, length: int, logits: str = "") -> Step:
    """Cross-entropy of every next token."""
    cfg = SIZES[name]
    tokens = torch.randint(cfg.vocabulary, (cfg.batch_size, length + 1))
    x, y = tokens[:, :-1], tokens[:, 1:].flatten()

    def loss() -> Tensor:
        out = model(x)
        return F.cross_entropy((getattr(out, logits) if logits else out).flatten(0, 1), y)

    return training(model, optimizer, loss)


def ours(name: str = "induction", length: int = 0) -> Step:
    cfg = SIZES[name]
    model = build(cfg)
    model.initialise(generator(0, "start"))
    optimizer = torch.optim.AdamW(model.decay_groups(cfg.weight_decay), lr=cfg.lr, fused=True)
    return step_of(model, optimizer, name, length or cfg.length)


def transformers(name: str, mambapy: bool) -> Step:
    """The path without CUDA kernels: a loop over time, or mambapy's parallel scan."""
    from transformers import MambaConfig, MambaForCausalLM

    cfg = SIZES[name]
    model = MambaForCausalLM(
        MambaConfig(
            vocab_size=cfg.vocabulary, hidden_size=cfg.width, num_hidden_layers=cfg.layers, state_size=cfg.state,
            time_step_rank=cfg.rank, tie_word_embeddings=cfg.tied, use_mambapy=mambapy, use_cache=False,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
    return step_of(model, optimizer, name, cfg.length, "logits")


def mambapy(name: str) -> Step:
    from mambapy.mamba import Mamba, MambaConfig, RMSNorm

    cfg = SIZES[name]
    embedding, head = nn.Embedding(cfg.vocabulary, cfg.width), nn.Linear(cfg.width, cfg.vocabulary, bias=False)
    blocks = Mamba(MambaConfig(d_model=cfg.width, n_layers=cfg.layers, dt_rank=cfg.rank, d_state=cfg.state))
    if cfg.tied:
        head.weight = embedding.weight
    model = nn.Sequential(embedding, blocks, RMSNorm(cfg.width, 1e-5), head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
    return step_of(model, optimizer, name, cfg.length)


def floor(name: str) -> tuple[float, float]:
    """Products of forward and backward pass, and the scan: some six operations for each state forward, twice back."""
    cfg = SIZES[name]
    d, inner, n = cfg.width, cfg.expand * cfg.width, cfg.state
    weights = 2 * d * inner + inner * (cfg.rank + 2 * n) + cfg.rank * inner + inner * d + 4 * inner
    tokens = cfg.batch_size * cfg.length
    return 3.0 * tokens * (cfg.layers * (2 * weights + 6 * inner * n) + 2 * d * cfg.vocabulary), 0.0


# transformers' own path without CUDA kernels; half a minute a step at the larger size
loop_over_time = {"MambaForCausalLM": Peer("transformers", lambda: transformers("induction", False))}
CASES = {
    name: Case(
        f"{cfg.layers} layers, width {cfg.width}, N = {cfg.state}, batch {cfg.batch_size}, length {cfg.length}, AdamW",
        lambda name=name: ours(name),  # type: ignore[misc]
        {
            **(loop_over_time if name == "induction" else {}),
            "MambaForCausalLM, mambapy's scan": Peer("transformers", lambda name=name: transformers(name, True)),  # type: ignore[misc]
            "mambapy": Peer("mambapy", lambda name=name: mambapy(name)),  # type: ignore[misc]
        },
        "adam",
        floor(name),
    )
    for name, cfg in SIZES.items()
}
GROWTH = Growth("length", (256, 1_024, 4_096), lambda length: ours(length=length))
