"""The masked autoencoder: an encoder of visible patches, a small decoder of all, and what is put on the encoder later.

Paper: K. He, X. Chen, S. Xie, Y. Li, P. Dollár, R. Girshick, "Masked Autoencoders Are Scalable Vision Learners",
CVPR 2022, arXiv 2111.06377. What the text leaves out follows the authors' PyTorch code, github.com/facebookresearch/mae
at efb2a80 ("code" below); the paper's own runs were in TensorFlow.

Glossary (code: paper, shape)
    x               pictures, (b, 3, h, w); digits have one channel
    p, g, n         side of a patch in pixels, patches along a side, patches N = g * g
    patches         pixels of each patch, (b, n, p * p * 3): rows, columns, then channels (the code's patchify)
    k, m            visible and masked patches of a picture, k + m = n
    noise, order    one number a patch, (b, n); patches sorted by it, visible ones first (Section 3, "Simple
                    implementation")
    z               tokens, (b, tokens, d); d is the width of the encoder, e that of the decoder
    paths           multipliers of residual branches, (b, depth, 2): 0 where a branch is left out (stochastic depth)
    drop            dropout of one training step; none: nothing is dropped
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from common.attention import attention
from common.batchnorm import BatchNorm
from common.errors import UserError
from common.random import generator

Mask = Literal["random", "block", "grid"]
Drop = Callable[[Tensor], Tensor] | None
ALL = slice(None)  # tokens


class Dialect(NamedTuple):
    """What the paper's architecture becomes in another's code, whose numbers we reproduce too."""

    eps: float  # of layer normalisation
    qkv_bias: bool
    learned: bool  # positions are learned, and the encoder's class token has none; else sines and cosines
    bridge: bool  # the decoder has an embedding of its own and a last normalisation
    xavier: bool  # initial weights; else torch's defaults
    class_token: bool  # beside the patches
    copied: bool  # all blocks of a stack start with the same weights, as nn.TransformerEncoder's copies of a layer do


DIALECTS = {
    "mae": Dialect(1e-6, True, False, True, True, True, False),
    "icaruswizard": Dialect(1e-5, False, True, False, False, True, False),  # IcarusWizard/MAE, model.py
    "vordmekh": Dialect(1e-5, True, True, True, False, False, True),  # VordMekh_project, mae_patch_embd/mae.py
}


def patchify(x: Tensor, p: int) -> Tensor:
    """(b, 3, g p, g p) -> (b, n, p * p * 3)."""
    return rearrange(x, "b c (gh ph) (gw pw) -> b (gh gw) (ph pw c)", ph=p, pw=p)


def unpatchify(patches: Tensor, p: int) -> Tensor:
    """The inverse of `patchify`."""
    g = math.isqrt(patches.shape[1])
    return rearrange(patches, "b (gh gw) (ph pw c) -> b c (gh ph) (gw pw)", gh=g, ph=p, pw=p)


def sines(g: int, d: int) -> Tensor:
    """Fixed positions (A.1; code: pos_embed.py), (1, 1 + n, d): column in one half, row in the other; class token 0."""
    omega = 10_000.0 ** -(torch.arange(d // 4, dtype=torch.float64) / (d / 4))
    angles = torch.arange(g, dtype=torch.float64)[:, None] * omega
    one = torch.cat([angles.sin(), angles.cos()], 1).float()  # (g, d / 2)
    grid = torch.cat([one.expand(g, -1, -1), one[:, None].expand(-1, g, -1)], -1).reshape(1, g * g, d)
    return F.pad(grid, (0, 0, 1, 0))


def taken(values: Tensor, order: Tensor) -> Tensor:
    """Rows of (b or 1, n, c) in an order (b, k): (b, k, c)."""
    if values.shape[0] == 1:
        return values[0][order]
    return values.gather(1, order[..., None].expand(-1, -1, values.shape[2]))


def noise(kind: Mask, b: int, g: int, generator: torch.Generator) -> Tensor:
    """One number a patch, (b, n): the smallest stay visible (Section 4.1, Figure 6). Drawn where the generator is.

    Blocks (after BEiT): rectangles fall one after the other, and whatever an earlier one covers goes first. The grid
    keeps one patch of every four.
    """
    device = generator.device
    u = torch.rand(b, g * g, generator=generator, device=device)
    if kind == "random":
        return u
    at = torch.arange(g, device=device)
    if kind == "grid":
        kept = ((at[:, None] % 2 == 0) & (at % 2 == 0)).flatten()
        return u + ~kept
    count = 4 * g  # more than will be needed: each covers 1/12 of the picture or more
    area, ratio, top, left = torch.rand(4, b, count, generator=generator, device=device)
    area, ratio = g * g * (1 + 2 * area) / 12, torch.exp((2 * ratio - 1) * math.log(10 / 3))  # BEiT: 0.3 to 1 / 0.3
    h, w = ((area * r).sqrt().round().clamp(1, g) for r in (ratio, 1 / ratio))
    inside = [
        (at >= first[..., None]) & (at < (first + size)[..., None])  # (b, count, g)
        for first, size in (((top * (g - h + 1)).floor(), h), ((left * (g - w + 1)).floor(), w))
    ]
    covered = (inside[0][..., :, None] & inside[1][..., None, :]).flatten(2)  # (b, count, n)
    first = torch.where(covered.any(1), covered.int().argmax(1), count)
    return u - first + count


class Dropout:
    """Dropout of one training step: random numbers depend on a key and on the order in which it is asked.

    Every process draws for the whole batch and keeps its rows. Sixteen bits an entry, so that the rate is one of
    1 / 65,536 steps (0.1 is 0.100006): a draw of 64 bits for four entries takes a twelfth of the time of torch's own
    dropout on a CPU, which draws one number each (14 ms and 176 for 6.8 million).
    """

    def __init__(
        self, rate: float, *key: int | str, device: torch.device | str = "cpu", part: tuple[int, int] = (0, 1)
    ) -> None:
        dropped = round(65_536 * rate)
        self.threshold, self.scale = dropped - 32_768, 65_536 / (65_536 - dropped)
        self.draw, self.part = generator(*key, device=device), part

    def __call__(self, x: Tensor) -> Tensor:
        (rank, world), n = self.part, x.numel()
        whole = torch.empty(-(-n * world // 4), dtype=torch.int64, device=self.draw.device)
        bits = whole.random_(-(2**63), None, generator=self.draw).view(torch.int16)[rank * n : (rank + 1) * n]
        return x * (bits >= self.threshold).to(x.dtype).mul_(self.scale).view(x.shape)


class Block(nn.Module):
    """A transformer block: z + MSA(LN(z)), then z + MLP(LN(z)) (Section 3 and A.1: the standard ViT's)."""

    def __init__(self, d: int, heads: int, dialect: Dialect) -> None:
        super().__init__()
        if d % heads:
            raise UserError(f"a width of {d} does not divide among {heads} heads")
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d, dialect.eps), nn.LayerNorm(d, dialect.eps)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=dialect.qkv_bias), nn.Linear(d, d)
        self.mlp1, self.mlp2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, z: Tensor, paths: Tensor | None = None, read: slice = ALL, drop: Drop = None) -> Tensor:
        """(b, n, d) -> the tokens that will be read, (b, r, d), which alone ask and pass the MLP; paths (b, 2)."""
        if drop is None:
            drop = same
        h = self.norm1(z)
        if read == ALL:
            q, k, v = self.qkv(h).chunk(3, -1)
        else:  # the last block of all
            d = z.shape[2]
            weight, bias, z = self.qkv.weight, self.qkv.bias, z[:, read]
            q = F.linear(h[:, read], weight[:d], None if bias is None else bias[:d])
            k, v = F.linear(h, weight[d:], None if bias is None else bias[d:]).chunk(2, -1)
        q, k, v = (rearrange(part, "b n (heads c) -> b heads n c", heads=self.heads) for part in (q, k, v))
        scale = q.shape[-1] ** -0.5
        a = attention(q, k, v, scale) if drop is same else drop((q * scale @ k.mT).softmax(-1)) @ v
        a = drop(self.out(rearrange(a, "b heads n c -> b n (heads c)")))
        z = z + (a if paths is None else a * paths[:, 0, None, None])
        a = drop(self.mlp2(drop(F.gelu(self.mlp1(self.norm2(z))))))
        return z + (a if paths is None else a * paths[:, 1, None, None])


def same(x: Tensor) -> Tensor:
    return x


def through(
    blocks: nn.ModuleList, z: Tensor, paths: Tensor | None = None, read: slice = ALL, drop: Drop = None
) -> Tensor:
    """All blocks; of what the last one makes only what will be read."""
    for i, block in enumerate(blocks):
        z = block(z, None if paths is None else paths[:, i], read if i == len(blocks) - 1 else ALL, drop)
    return z


class Encoder(nn.Module):
    """A ViT over whichever patches it is given, and a class token (Section 3, "MAE encoder"; not in all dialects)."""

    def __init__(
        self,
        resolution: int,
        p: int,
        d: int,
        depth: int,
        heads: int,
        dialect: str,
        pool: Literal["token", "mean"] = "token",
        channels: int = 3,
    ) -> None:
        super().__init__()
        if resolution % p:
            raise UserError(f"{resolution} pixels do not divide into patches of {p}")
        if d % 4:
            raise UserError(f"a width of {d} must be a multiple of 4: sine and cosine of row and column")
        self.dialect, self.p, self.g, self.d, self.pool = DIALECTS[dialect], p, resolution // p, d, pool
        if pool == "token" and not self.dialect.class_token:
            raise UserError("this dialect has no class token: leave --pool mean")
        self.embedding = nn.Linear(p * p * channels, d)  # what the code does as a convolution
        self.class_token = nn.Parameter(torch.empty(1, 1, d)) if self.dialect.class_token else None
        rows = self.g**2 + (not self.dialect.learned)
        self.positions = nn.Parameter(torch.empty(1, rows, d), requires_grad=self.dialect.learned)
        self.blocks = nn.ModuleList(Block(d, heads, self.dialect) for _ in range(depth))
        self.norm = nn.LayerNorm(d, self.dialect.eps)

    def tokens(self, patches: Tensor, order: Tensor | None) -> Tensor:
        """Patches (of an order) with their positions, (b, k, d). Only visible ones are projected."""
        positions = self.positions[:, -(self.g**2) :]
        if order is None:
            return self.embedding(patches) + positions
        return self.embedding(taken(patches, order)) + taken(positions, order)

    def forward(self, z: Tensor, paths: Tensor | None = None, read: slice = ALL, drop: Drop = None) -> Tensor:
        """Tokens (b, k, d) -> those that will be read of (b, 1 + k, d), the class token, if there is one, first."""
        if self.class_token is not None:
            first: Tensor = self.class_token
            if not self.dialect.learned:
                first = first + self.positions[:, :1]
            z = torch.cat([first.expand(len(z), -1, -1).to(z.dtype), z], 1)
        return self.norm(through(self.blocks, z, paths, read, drop))

    def features(self, x: Tensor, paths: Tensor | None = None, drop: Drop = None) -> Tensor:
        """The class token of whole pictures, or the mean of their patches' tokens: (b, d) (A.1)."""
        read = slice(0, 1) if self.pool == "token" else slice(1, None) if self.dialect.class_token else ALL
        return self(self.tokens(patchify(x, self.p), None), paths, read, drop).mean(1)


class MAE(nn.Module):
    """The asymmetric autoencoder (Section 3).

    The decoder keeps the shuffled order: attention does not mind it, positions say where a token belongs, and only the
    last normalisation and projection of masked patches are computed. Nothing has to be unshuffled.

    Args:
        e, decoder_depth, decoder_heads: of the decoder.
        mask_ratio: share of patches that are masked.
        encoded_masks: mask tokens go through the encoder too (Table 1c, "encoder w/ [M]").
        normalised: the target is each patch's pixels less their mean, over their deviation (Section 3).
        loss_on_all: the loss is of all patches, not of the masked ones alone.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        e: int,
        decoder_depth: int,
        decoder_heads: int,
        mask_ratio: float,
        encoded_masks: bool = False,
        normalised: bool = False,
        loss_on_all: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()
        d, dialect = encoder.d, encoder.dialect
        if not dialect.bridge and e != d:
            raise UserError(f"this dialect's decoder is as wide as its encoder: {d}, not {e}")
        if e % 4:
            raise UserError(f"a decoder's width of {e} must be a multiple of 4: sine and cosine of row and column")
        n = encoder.g**2
        self.k = int(n * (1 - mask_ratio))
        if decoder_depth < 1:
            raise UserError("a decoder needs a block")
        if not 0 < self.k < n:
            raise UserError(f"a mask ratio of {mask_ratio} leaves {self.k} of {n} patches visible")
        self.encoder, self.encoded_masks, self.normalised, self.loss_on_all = (
            encoder, encoded_masks, normalised, loss_on_all,
        )  # fmt: skip
        self.mask_token = nn.Parameter(torch.empty(1, 1, d if encoded_masks else e))
        self.decoder_embedding = nn.Linear(d, e) if dialect.bridge else nn.Identity()
        self.first = int(dialect.class_token)  # where the patches begin
        self.decoder_positions = nn.Parameter(torch.empty(1, self.first + n, e), requires_grad=dialect.learned)
        self.decoder_blocks = nn.ModuleList(Block(e, decoder_heads, dialect) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(e, dialect.eps) if dialect.bridge else nn.Identity()
        self.prediction = nn.Linear(e, encoder.p**2 * channels)

    def decoded(self, patches: Tensor, order: Tensor, drop: Drop = None) -> Tensor:
        """Predicted pixels of the patches in an order, visible ones first where they count: (b, m or n, p * p * 3)."""
        b, n = order.shape
        z = self.encoder.tokens(patches, order[:, : self.k])
        masks = self.mask_token.expand(b, n - self.k, -1)
        if self.encoded_masks:
            positions = taken(self.encoder.positions[:, -n:], order[:, self.k :])
            z = self.decoder_embedding(self.encoder(torch.cat([z, masks + positions], 1), drop=drop))
        else:
            z = self.decoder_embedding(self.encoder(z, drop=drop))
            z = torch.cat([z, masks.to(z.dtype)], 1)
        at = F.pad(order + self.first, (self.first, 0))  # the class token's place is 0
        z = z + taken(self.decoder_positions, at)
        read = slice(self.first if self.loss_on_all else self.first + self.k, None)
        return self.prediction(self.decoder_norm(through(self.decoder_blocks, z, read=read, drop=drop)))

    def target(self, patches: Tensor) -> Tensor:
        if not self.normalised:
            return patches
        variance, mean = torch.var_mean(patches, -1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()

    def losses(self, x: Tensor, noise: Tensor, drop: Drop = None) -> Tensor:
        """Squared error of each picture, the mean over pixels of its masked (or all) patches: (b,)."""
        patches, order = patchify(x, self.encoder.p), noise.argsort(1)
        predicted = self.decoded(patches, order, drop).to(patches.dtype)
        wanted = self.target(taken(patches, order[:, -predicted.shape[1] :]))
        return (predicted - wanted).square().mean((1, 2))

    def forward(self, x: Tensor, noise: Tensor, drop: Drop = None) -> Tensor:
        """The loss of a batch (every picture has as many masked patches)."""
        return self.losses(x, noise, drop).mean()

    @torch.no_grad()
    def reconstructed(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(x with its masked patches predicted, which pixels were masked (b, 1, h, w)).

        A normalised patch gets its true mean and deviation back.
        """
        patches, order = patchify(x, self.encoder.p), noise.argsort(1)
        masked = order[:, self.k :]
        predicted = self.decoded(patches, order)[:, -masked.shape[1] :].to(patches.dtype)
        if self.normalised:
            variance, mean = torch.var_mean(taken(patches, masked), -1, keepdim=True)
            predicted = predicted * (variance + 1e-6).sqrt() + mean
        index = masked[..., None].expand_as(predicted)
        mask = torch.zeros_like(patches).scatter(1, index, 1.0)
        whole = unpatchify(patches.scatter(1, index, predicted), self.encoder.p)
        return whole, unpatchify(mask, self.encoder.p)[:, :1]


class Classifier(nn.Module):
    """An encoder with a linear head on its class token, to be fine-tuned: all of it, or the last blocks (Section 4.3).

    Args:
        tuned: blocks that learn, None for all; half a block is its MLP. Head and last normalisation always learn.
    """

    def __init__(self, encoder: Encoder, classes: int, tuned: float | None = None) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.d, classes)
        encoder.requires_grad_(tuned is None)
        if tuned is not None:
            depth, whole = len(encoder.blocks), int(tuned)
            if tuned - whole not in (0, 0.5) or not 0 <= tuned <= depth:
                raise UserError(f"{tuned} of {depth} blocks cannot be tuned; halves of a block can")
            learning = [encoder.norm, *encoder.blocks[depth - whole :]]
            if tuned > whole:
                half = cast(Block, encoder.blocks[depth - whole - 1])
                learning += [half.norm2, half.mlp1, half.mlp2]
            for module in learning:
                module.requires_grad_(True)

    def forward(self, x: Tensor, paths: Tensor | None = None, drop: Drop = None) -> Tensor:
        """(b, 3, h, w) -> logits (b, classes)."""
        return self.head(self.encoder.features(x, paths, drop))

    def layers(self) -> list[list[tuple[str, nn.Parameter]]]:
        """Parameters by layer, from the patches to the head (code: lr_decay.py)."""
        encoder = self.encoder
        below = [(name, p) for name, p in encoder.named_parameters(recurse=False)]
        below += [(f"embedding.{name}", p) for name, p in encoder.embedding.named_parameters()]
        blocks = [list(block.named_parameters()) for block in encoder.blocks]
        return [below, *blocks, [*encoder.norm.named_parameters(), *self.head.named_parameters()]]


class Probe(nn.Module):
    """Batch normalisation without gain and bias, then a linear layer (A.1, "Linear probing"; code: eps 1e-6)."""

    def __init__(self, d: int, classes: int) -> None:
        super().__init__()
        self.norm, self.head = BatchNorm(d, eps=1e-6).requires_grad_(False), nn.Linear(d, classes)

    def forward(self, features: Tensor) -> Tensor:
        """(b, d) -> logits (b, classes)."""
        return self.head(self.norm(features))


@torch.no_grad()
def initialise(model: MAE, generator: torch.Generator) -> None:
    """Start from random weights: Xavier uniform, positions of sines (A.1); or torch's defaults, learned positions."""
    encoder = model.encoder
    xavier = encoder.dialect.xavier
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()
        elif isinstance(module, nn.Linear):
            outputs, inputs = module.weight.shape
            bound = math.sqrt(6 / (inputs + outputs)) if xavier else inputs**-0.5
            module.weight.uniform_(-bound, bound, generator=generator)
            if module.bias is not None:
                module.bias.zero_() if xavier else module.bias.uniform_(-bound, bound, generator=generator)
    for table in (encoder.class_token, model.mask_token, encoder.positions, model.decoder_positions):
        if table is not None:
            table.normal_(0.0, 0.02, generator=generator)
    if encoder.dialect.copied:  # nn.MultiheadAttention: Xavier uniform for q, k and v as one matrix, no biases
        for blocks in (encoder.blocks, model.decoder_blocks):
            first = cast(Block, blocks[0])
            bound = math.sqrt(6 / sum(first.qkv.weight.shape))
            first.qkv.weight.uniform_(-bound, bound, generator=generator)
            first.qkv.bias.zero_()
            first.out.bias.zero_()
            for block in blocks:
                block.load_state_dict(first.state_dict())
    if not encoder.dialect.learned:
        encoder.positions.copy_(sines(encoder.g, encoder.d))
        model.decoder_positions.copy_(sines(encoder.g, model.decoder_positions.shape[2]))


@torch.no_grad()
def initialise_head(head: nn.Linear, generator: torch.Generator, sd: float | None) -> None:
    """Normal weights of deviation sd and no bias; None: torch's default."""
    if sd is None:
        bound = head.in_features**-0.5
        head.weight.uniform_(-bound, bound, generator=generator)
        head.bias.uniform_(-bound, bound, generator=generator)
    else:
        head.weight.normal_(0.0, sd, generator=generator)
        head.bias.zero_()


def votes(queries: Tensor, references: Tensor, labels: Tensor, k: int, classes: int) -> Tensor:
    """How many of the k nearest references (m, d), by Euclidean distance, are of which class: (b, classes)."""
    distance = torch.addmm(references.square().sum(1)[None], queries, references.T, alpha=-2)  # less the query's square
    return F.one_hot(labels[distance.topk(k, largest=False).indices], classes).sum(1)
