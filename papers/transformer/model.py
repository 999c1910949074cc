"""The Transformer: encoder-decoder as in the paper, or its decoder alone.

Paper: A. Vaswani, N. Shazeer, N. Parmar, J. Uszkoreit, L. Jones, A. N. Gomez, Ł. Kaiser, I. Polosukhin, "Attention Is
All You Need", NIPS 2017, arXiv 1706.03762. What the text leaves out follows the official code, tensorflow/tensor2tensor
at bafdc1b, `transformer_base_v1` ("code" below); a `Dialect` has what other codes do instead.

Glossary (code: paper, shape)
    source, target  numbers of tokens, (b, s) and (b, t), padded with 0
    d, heads        d_model, h
    d_k, d_v, d_ff  sizes of a head's keys and values, hidden units of the feed-forward layer
    x               what flows through the layers, (b, t, d)
    q, k, v         queries, keys, values, (b, heads, t, d_k or d_v)
    memory          the encoder's output, (b, s, d)
    mask            True where a key may be seen, broadcast to (b, heads, t, s)
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PAD = 0
Past = list[Tensor]  # keys and values of the tokens so far, (b, heads, t, d_k or d_v) each
Keys = tuple[Tensor, Tensor]  # keys and values of the memory


class Dialect(NamedTuple):
    """What the paper's architecture becomes in other people's code, whose numbers we reproduce too."""

    eps: float = 1e-6  # of layer normalisation
    attention_bias: bool = False
    bias: bool = True  # of the feed-forward layers and normalisations
    pre_norm: bool = False  # x + f(norm(x)), and a norm at the end, in place of norm(x + f(x))
    gelu: bool = False  # in place of ReLU
    scaled: bool = True  # embeddings times sqrt(d) (Section 3.4)
    tied: bool = True  # one matrix for both embeddings and the softmax (Section 3.4)
    halves: bool = False  # sinusoids: all sines, then all cosines, wavelengths spaced by d/2 - 1
    first: int = 0  # number of the first position
    initial: Literal["code", "fairseq", "nanogpt", "xavier"] = "code"  # initialisation


DIALECTS = {
    "paper": Dialect(),
    "fairseq": Dialect(1e-5, attention_bias=True, halves=True, first=2, initial="fairseq"),
    "nanogpt": Dialect(1e-5, bias=False, pre_norm=True, gelu=True, scaled=False, initial="nanogpt"),
    "bentrevett": Dialect(1e-5, attention_bias=True, tied=False, initial="xavier"),
}


def sinusoids(length: int, d: int, halves: bool = False, first: int = 0) -> Tensor:
    """PE of Section 3.5, (length, d) float64: sine and cosine of position / 10000^(2i/d), interleaved.

    halves: the code's own form, sines before cosines and wavelengths spaced by d/2 - 1.
    """
    position = torch.arange(first, first + length, dtype=torch.float64)
    exponent = torch.arange(d // 2, dtype=torch.float64) / (d // 2 - 1 if halves else d / 2)
    angle = position[:, None] / 10000**exponent
    parts = torch.stack([angle.sin(), angle.cos()], -1)  # (length, d / 2, 2)
    return parts.mT.flatten(1) if halves else parts.flatten(1)


class Attention(nn.Module):
    """Multi-head attention (Section 3.2.2), to itself or, with `cross`, to a memory.

    d_k and d_v are free: heads * d_v need not be d (Table 3, rows A and B).
    """

    def __init__(self, d: int, heads: int, d_k: int, d_v: int, bias: bool, dropout: float, cross: bool = False) -> None:
        super().__init__()
        self.heads, self.d_k, self.d_v, self.dropout = heads, d_k, d_v, dropout
        if cross:
            self.q, self.kv = nn.Linear(d, heads * d_k, bias), nn.Linear(d, heads * (d_k + d_v), bias)
        else:
            self.qkv = nn.Linear(d, heads * (2 * d_k + d_v), bias)
        self.out = nn.Linear(heads * d_v, d, bias)

    def _split(self, x: Tensor, *sizes: int) -> list[Tensor]:
        """(b, t, heads * sum of sizes) -> (b, heads, t, size) each."""
        parts = x.split([self.heads * size for size in sizes], -1)
        return [p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts]

    def keys(self, memory: Tensor) -> Keys:
        """Keys and values of a memory, computed once for all tokens."""
        k, v = self._split(self.kv(memory), self.d_k, self.d_v)
        return k, v

    def _projected(self, x: Tensor, keys: Keys | None, past: Past | None) -> tuple[Tensor, Tensor, Tensor]:
        if keys is not None:
            (q,) = self._split(self.q(x), self.d_k)
            return q, *keys
        q, k, v = self._split(self.qkv(x), self.d_k, self.d_k, self.d_v)
        if past is not None:
            k, v = (torch.cat([a, b], 2) for a, b in zip(past, (k, v), strict=True)) if past else (k, v)
            past[:] = k, v
        return q, k, v

    def forward(
        self,
        x: Tensor,
        keys: Keys | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        past: Past | None = None,
    ) -> Tensor:
        """Eq. 1 in each head, (b, t, d) -> (b, t, d).

        Args:
            keys: of the memory, with `cross`.
            past: what was seen before x, longer by x afterwards.
        """
        q, k, v = self._projected(x, keys, past)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, keys: Keys | None = None, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """The softmax of Eq. 1, (b, heads, t, s)."""
        q, k, _ = self._projected(x, keys, None)
        logits = q @ k.mT / math.sqrt(self.d_k)
        if causal:
            mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=x.device).tril()
        return (logits if mask is None else logits.masked_fill(~mask, -math.inf)).softmax(-1)


class Layer(nn.Module):
    """Self-attention, with `cross` attention to the memory, and a feed-forward layer (Sections 3.1 and 3.3)."""

    def __init__(
        self, d: int, heads: int, d_k: int, d_v: int, d_ff: int, cross: bool,
        dropout: float, attention_dropout: float, activation_dropout: float, dialect: Dialect,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dialect, self.dropout, self.activation_dropout = dialect, dropout, activation_dropout
        bias = dialect.attention_bias
        self.self_attention = Attention(d, heads, d_k, d_v, bias, attention_dropout)
        self.cross_attention = Attention(d, heads, d_k, d_v, bias, attention_dropout, cross=True) if cross else None
        self.ff1, self.ff2 = nn.Linear(d, d_ff, dialect.bias), nn.Linear(d_ff, d, dialect.bias)
        self.norms = nn.ModuleList(nn.LayerNorm(d, dialect.eps, bias=dialect.bias) for _ in range(3 if cross else 2))

    def _around(self, i: int, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """LayerNorm(x + Dropout(Sublayer(x))) (Sections 3.1 and 5.4)."""
        norm = self.norms[i]
        if self.dialect.pre_norm:
            return x + F.dropout(sublayer(norm(x)), self.dropout, self.training)
        return norm(x + F.dropout(sublayer(x), self.dropout, self.training))

    def _feed_forward(self, x: Tensor) -> Tensor:
        """Eq. 2."""
        hidden = self.ff1(x)
        hidden = F.gelu(hidden) if self.dialect.gelu else F.relu(hidden)
        if self.activation_dropout:
            hidden = F.dropout(hidden, self.activation_dropout, self.training)
        return self.ff2(hidden)

    def forward(
        self, x: Tensor, mask: Tensor | None, memory: Tensor | None = None, memory_mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:  # fmt: skip
        """(b, t, d) -> (b, t, d)."""
        x = self._around(0, x, lambda y: self.self_attention(y, mask=mask, causal=causal))
        cross = self.cross_attention
        if cross is not None and memory is not None:
            keys = cross.keys(memory)
            x = self._around(1, x, lambda y: cross(y, keys, memory_mask))
        return self._around(-1, x, self._feed_forward)

    def step(self, x: Tensor, past: Past, keys: Keys | None, memory_mask: Tensor | None) -> Tensor:
        """One more token of every beam, (b, beams, d) -> (b, beams, d).

        Each beam has its own past, (b * beams, ...); the memory is shared: its queries are the beams.
        """
        x = self._around(0, x, lambda y: self.self_attention(y.flatten(0, 1)[:, None], past=past).view_as(y))
        cross = self.cross_attention
        if cross is not None and keys is not None:
            x = self._around(1, x, lambda y: cross(y, keys, memory_mask))
        return self._around(-1, x, self._feed_forward)


class Transformer(nn.Module):
    """Figure 1. Without encoder layers it is the decoder alone, a language model.

    Args:
        vocabulary: tokens of the target, and of the source where it has none of its own.
        source_vocabulary: tokens of a source with its own embedding; 0: shared.
        length: most positions.
        positions: sinusoids, or a learned table (Table 3, row E).
        dropout: on sublayer outputs and on the sums of embeddings and positions (Section 5.4).
    """

    places: Tensor

    def __init__(
        self,
        *,
        vocabulary: int,
        source_vocabulary: int = 0,
        encoder_layers: int,
        decoder_layers: int,
        d: int,
        heads: int,
        d_k: int,
        d_v: int,
        d_ff: int,
        length: int,
        positions: Literal["sinusoid", "learned"] = "sinusoid",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        dialect: str = "paper",
    ) -> None:
        super().__init__()
        kind = self.dialect = DIALECTS[dialect]
        self.d, self.dropout, self.length = d, dropout, length
        self.embedding = nn.Embedding(vocabulary, d)
        self.source_embedding = nn.Embedding(source_vocabulary, d) if source_vocabulary else None
        sides = ("source", "target") if source_vocabulary else ("target",)
        self.tables = nn.ParameterDict({s: torch.empty(length, d) for s in sides} if positions == "learned" else {})
        if positions == "sinusoid":
            self.register_buffer("places", sinusoids(length, d, kind.halves, kind.first).float(), persistent=False)

        def stack(n: int, cross: bool) -> nn.ModuleList:
            options = (dropout, attention_dropout, activation_dropout, kind)
            return nn.ModuleList(Layer(d, heads, d_k, d_v, d_ff, cross, *options) for _ in range(n))

        self.encoder, self.decoder = stack(encoder_layers, False), stack(decoder_layers, encoder_layers > 0)
        ends = [self.encoder] if encoder_layers and kind.pre_norm else []
        ends += [self.decoder] if kind.pre_norm else []
        self.ends = nn.ModuleList(nn.LayerNorm(d, kind.eps, bias=kind.bias) for _ in ends)
        self.head = None if kind.tied else nn.Linear(d, vocabulary)

    def embedded(self, tokens: Tensor, side: str, first: int = 0) -> Tensor:
        """Embeddings and positions from `first` on, (b, t) -> (b, t, d)."""
        table = self.source_embedding if side == "source" and self.source_embedding is not None else self.embedding
        x = table(tokens) * math.sqrt(self.d) if self.dialect.scaled else table(tokens)
        places = self.tables[side if side in self.tables else "target"] if len(self.tables) else self.places
        x = x + places[first : first + tokens.shape[1]]
        return F.dropout(x, self.dropout, self.training)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """(b, s) -> memory (b, s, d) and its mask (b, 1, 1, s)."""
        mask = (source != PAD)[:, None, None]
        x = self.embedded(source, "source")
        for layer in self.encoder:
            x = layer(x, mask)
        return (self.ends[0](x) if self.dialect.pre_norm else x), mask

    def logits(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., vocabulary)."""
        if self.dialect.pre_norm:
            x = self.ends[-1](x)
        return F.linear(x, self.embedding.weight) if self.head is None else self.head(x)

    def forward(self, source: Tensor | None, target: Tensor) -> Tensor:
        """(b, s) or None, (b, t) -> logits (b, t, vocabulary): at each place of the token that comes next.

        Padding stands at the end, so that no real token of the target sees it.
        """
        memory, memory_mask = self.encode(source) if source is not None else (None, None)
        x = self.embedded(target, "target")
        for layer in self.decoder:
            x = layer(x, None, memory, memory_mask, causal=True)
        return self.logits(x)

    @property
    def decoder_layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.decoder))

    # ---- initialisation

    @torch.no_grad()
    def initialise(self, numbers: torch.Generator) -> None:
        """Draw all weights. Normalisations begin as the identity, and biases at 0 where a dialect does not say else."""
        kind, d = self.dialect.initial, self.d
        residual = 0.02 / math.sqrt(2 * len(self.decoder))
        for name, p in self.named_parameters():
            last = name.rpartition(".")[0].rpartition(".")[2]
            if "norms" in name or "ends" in name:
                p.fill_(name.endswith("weight"))
            elif p.ndim == 1:
                inputs = self.get_submodule(name.rpartition(".")[0]).in_features
                if kind == "xavier" or (kind == "fairseq" and last in ("qkv", "q", "kv")):  # torch's own
                    p.uniform_(-1 / math.sqrt(cast(int, inputs)), 1 / math.sqrt(cast(int, inputs)), generator=numbers)
                else:
                    p.zero_()
            elif kind == "nanogpt":
                p.normal_(0, residual if last in ("out", "ff2") else 0.02, generator=numbers)
            elif ("embedding" in name or "tables" in name) and kind != "xavier":
                p.normal_(0, d**-0.5, generator=numbers)
                if kind == "fairseq" and "embedding" in name:
                    p[PAD] = 0
            else:
                gain = math.sqrt(0.5) if kind == "fairseq" and last in ("qkv", "q", "kv") else 1.0
                for part in self._matrices(name, p):
                    nn.init.xavier_uniform_(part, gain, generator=numbers)

    def _matrices(self, name: str, p: Tensor) -> tuple[Tensor, ...]:
        """A weight's parts that other codes hold as matrices of their own."""
        module = name.rpartition(".")[0]
        if not module.endswith(("qkv", "kv")):
            return (p,)
        attention = cast(Attention, self.get_submodule(module.rpartition(".")[0]))
        sizes = [attention.d_k, attention.d_v] if module.endswith(".kv") else [attention.d_k] * 2 + [attention.d_v]
        return p.split([attention.heads * size for size in sizes])
