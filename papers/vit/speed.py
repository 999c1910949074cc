"""A training step of ViT-Ti/16, beside transformers' and torch's own encoder; how it grows with the resolution.

GELU is the tanh form of the paper's code on all sides; what torch does badly there, `papers.vit.gelu` does again.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.random import generator
from common.speed import Case, Growth, Peer, Step, training
from papers.vit.audit import build
from papers.vit.config import Config, shape
from papers.vit.train import make_optimizer

BATCH, SIDE, D, DEPTH, HEADS, MLP = 16, 224, 192, 12, 3, 768  # Ti/16


def batch(side: int = SIDE) -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, 3, side, side), torch.randint(1000, (BATCH,))


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.3)


def ours(side: int = SIDE, dtype: torch.dtype = torch.float32) -> Step:
    cfg = shape("ti16", Config(dropout=0.0, resolution=side))
    (x, y), net = batch(side), build(cfg)
    net.initialise(generator(0, "weights"))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = net(x)
        return F.cross_entropy(logits.float(), y)

    return training(net, make_optimizer(cfg, net), loss)


def transformers(dtype: torch.dtype = torch.float32) -> Step:
    from transformers import ViTConfig, ViTForImageClassification

    net = ViTForImageClassification(
        ViTConfig(  # type: ignore[call-arg]
            hidden_size=D, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=MLP, num_labels=1000,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, hidden_act="gelu_pytorch_tanh",
        )
    )  # fmt: skip
    x, y = batch()

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = net(x).logits
        return F.cross_entropy(logits.float(), y)

    return training(net, adamw(net), loss)


class Plain(nn.Module):
    """As one would put it together from torch.nn."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, D, 16, 16)
        self.token, self.places = nn.Parameter(torch.zeros(1, 1, D)), nn.Parameter(torch.randn(1, 197, D) * 0.02)
        gelu = partial(F.gelu, approximate="tanh")
        layer = nn.TransformerEncoderLayer(D, HEADS, MLP, 0.0, gelu, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, DEPTH, nn.LayerNorm(D), enable_nested_tensor=False)
        self.head = nn.Linear(D, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        return self.head(self.encoder(torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places)[:, 0])


def plain() -> Step:
    net, (x, y) = Plain(), batch()
    return training(net, adamw(net), lambda: F.cross_entropy(net(x), y))


CASES = {
    "ti16": Case(
        f"ViT-Ti/16, 224x224, batch {BATCH}, AdamW",
        ours,
        {
            "ViTForImageClassification": Peer("transformers", transformers),
            "nn.TransformerEncoder": Peer("torch", plain),
        },
        "adam",
    ),
    "ti16-bf16": Case(
        f"ViT-Ti/16, 224x224, batch {BATCH}, AdamW, autocast",
        lambda: ours(dtype=torch.bfloat16),
        {"ViTForImageClassification": Peer("transformers", lambda: transformers(torch.bfloat16))},
        "adam",
        dtype="bfloat16",
    ),
}
GROWTH = Growth("pixels a side", (112, 224, 448), ours)
