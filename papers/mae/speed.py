"""A pre-training step beside transformers' ViTMAEForPreTraining; how it grows with the resolution."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from common.random import generator
from common.speed import Case, Growth, Peer, Step, training
from papers.mae.audit import build
from papers.mae.config import PRESETS
from papers.mae.model import initialise
from papers.mae.timing import peer

CFG = replace(PRESETS["timing"], batch_size=8)


def inputs(side: int) -> tuple[Tensor, Tensor]:
    return torch.randn(CFG.batch_size, 3, side, side), torch.rand(CFG.batch_size, (side // CFG.patch) ** 2)


def adamw(model: nn.Module, fused: bool) -> torch.optim.AdamW:
    learning = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(learning, lr=1e-4, betas=(0.9, 0.95), weight_decay=CFG.weight_decay, fused=fused)


def ours(side: int = CFG.resolution) -> Step:
    (x, noise), model = inputs(side), build(replace(CFG, resolution=side))
    initialise(model, generator(0, "weights"))
    return training(model, adamw(model, True), lambda: model(x, noise))


def theirs() -> Step:
    (x, noise), model = inputs(CFG.resolution), peer(CFG)
    return training(model, adamw(model, False), lambda: model(x, noise=noise).loss)


CASES = {
    "vit-s": Case(
        f"encoder of width {CFG.width} with {CFG.depth} blocks, decoder of {CFG.decoder_width} with "
        f"{CFG.decoder_depth}, {CFG.resolution}x{CFG.resolution}, batch {CFG.batch_size}, AdamW",
        ours,
        {"ViTMAEForPreTraining": Peer("transformers", theirs)},
        "adam",
    )
}
GROWTH = Growth("pixels a side", (112, 224, 448), ours)
