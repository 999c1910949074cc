"""A training step of the base model beside torch.nn.Transformer, transformers' Marian and x-transformers; growth with
the length."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.random import generator
from common.speed import Case, Growth, Peer, Step, training
from papers.transformer.audit import build
from papers.transformer.config import Config
from papers.transformer.model import PAD, sinusoids
from papers.transformer.train import make_optimizer, summed_loss

CFG = Config()  # the base model of Table 3
VOCABULARY, BATCH, LENGTH = 8_000, 16, 64  # words fewer than the paper's, so that not the softmax alone is timed


def tokens(length: int = LENGTH) -> tuple[Tensor, Tensor, Tensor]:
    """Source, target in, target out: no padding, so that all contenders have as much to do."""
    source, target = (torch.randint(4, VOCABULARY, (BATCH, length + i)) for i in (0, 1))
    return source, target[:, :-1].contiguous(), target[:, 1:].contiguous()


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-9)


def smoothed(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD, label_smoothing=0.1)


def ours(length: int = LENGTH) -> Step:
    model, (source, x, y) = build(CFG, VOCABULARY), tokens(length)
    model.initialise(generator(0, "weights"))
    optimizer = make_optimizer(CFG, model)
    return training(model, optimizer, lambda: summed_loss(model(source, x), y, CFG.label_smoothing) / y.numel())


class Plain(nn.Module):
    """As one would put it together from torch.nn: post-norm, tied embeddings."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, CFG.width)
        self.net = nn.Transformer(
            CFG.width, CFG.heads, CFG.layers, CFG.layers, CFG.feed_forward, CFG.dropout, batch_first=True
        )
        self.register_buffer("places", sinusoids(LENGTH, CFG.width).float())
        self.register_buffer("ahead", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def embedded(self, x: Tensor) -> Tensor:
        return F.dropout(self.embedding(x) * math.sqrt(CFG.width) + self.places, CFG.dropout, self.training)

    def forward(self, source: Tensor, x: Tensor) -> Tensor:
        y = self.net(self.embedded(source), self.embedded(x), tgt_mask=self.ahead, tgt_is_causal=True)
        return F.linear(y, self.embedding.weight)


def plain() -> Step:
    model, (source, x, y) = Plain(), tokens()
    return training(model, adam(model), lambda: smoothed(model(source, x), y))


def marian() -> Step:
    from transformers import MarianConfig, MarianMTModel

    model = MarianMTModel(
        MarianConfig(
            vocab_size=VOCABULARY, d_model=CFG.width, encoder_layers=CFG.layers, decoder_layers=CFG.layers,
            encoder_attention_heads=CFG.heads, decoder_attention_heads=CFG.heads, encoder_ffn_dim=CFG.feed_forward,
            decoder_ffn_dim=CFG.feed_forward, dropout=CFG.dropout, max_position_embeddings=LENGTH,
            activation_function="relu", scale_embedding=True, pad_token_id=PAD, decoder_start_token_id=1,
        )
    ).train()  # fmt: skip
    source, x, y = tokens()
    return training(model, adam(model), lambda: smoothed(model(source, decoder_input_ids=x, use_cache=False).logits, y))


def x_transformers() -> Step:
    from x_transformers import XTransformer

    sizes: dict[str, float] = {"depth": CFG.layers, "heads": CFG.heads, "num_tokens": VOCABULARY}
    sizes |= {"max_seq_len": LENGTH + 1, "ff_dropout": CFG.dropout, "emb_dropout": CFG.dropout, "attn_flash": True}
    both = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in sizes.items()}
    model = XTransformer(dim=CFG.width, tie_token_emb=True, **both)
    source, x, y = tokens()
    target = torch.cat([x, y[:, -1:]], 1)
    return training(model, adam(model), lambda: model(source, target))


CASES = {
    "base": Case(
        f"base model with {VOCABULARY} words, {BATCH} pairs of {LENGTH} and {LENGTH} tokens, dropout, Adam",
        ours,
        {
            "nn.Transformer": Peer("torch", plain),
            "MarianMTModel": Peer("transformers", marian),
            "XTransformer": Peer(
                "x-transformers", x_transformers, "pre-norm, its own softmax matrix, no label smoothing", same=False
            ),
        },
        "adam",
    )
}
GROWTH = Growth("tokens", (32, 128, 256), ours)
