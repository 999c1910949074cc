"""The Vision Transformer, its hybrid with a ResNet stem, and the ResNet alone.

Paper: A. Dosovitskiy, L. Beyer, A. Kolesnikov, D. Weissenborn, X. Zhai, et al., "An Image is Worth 16x16 Words:
Transformers for Image Recognition at Scale", ICLR 2021, arXiv 2010.11929. What the text leaves out follows the official
code, github.com/google-research/vision_transformer at c6de1e5 ("code" below), which holds the fine-tuning only.

Glossary (code: paper, shape)
    x               images, (b, c, h, w); between blocks the tokens z, (b, n, d)
    d, heads, mlp   latent size D, attention heads, hidden units of the MLP (Table 1)
    p, g            patch size P in pixels, side of the grid of patches H / P
    n               tokens: N = g * g patches (Section 3.1), and one class token unless the head pools
    q, k, v         queries, keys, values (Appendix A), (b, heads, n, d / heads)
    a               attention weights, (b, heads, n, n)
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from common.attention import attention
from common.errors import UserError
from papers.vit.gelu import gelu

Positions = Literal["none", "1d", "2d", "relative"]


class Dialect(NamedTuple):
    """What the paper's architecture becomes in other people's code, whose numbers we reproduce too."""

    eps: float  # of layer normalisation
    gelu: Literal["none", "tanh"]  # exact, or flax's default approximation
    qkv_bias: bool = True
    scale_by_width: bool = False  # logits / sqrt(D) where the paper divides by the square root of a head's size
    normed_stream: bool = False  # the second norm acts on the residual stream itself, not on the branch
    gelu_twice: bool = False  # also after the MLP's second layer
    position_sd: float = 0.02
    class_sd: float = 0.0


DIALECTS = {
    "vision-transformer": Dialect(1e-6, "tanh"),  # the paper's own
    "compact-transformers": Dialect(1e-5, "none", qkv_bias=False, normed_stream=True, position_sd=0.2),
    "vit-cifar": Dialect(1e-5, "none", scale_by_width=True, gelu_twice=True, position_sd=1.0, class_sd=1.0),
    "vit-pytorch": Dialect(1e-5, "none", qkv_bias=False, position_sd=1.0, class_sd=1.0),
    "torch": Dialect(1e-5, "none", position_sd=1.0, class_sd=1.0),  # put together from torch's modules, as they start
}


class Attention(nn.Module):
    """Multi-head self-attention (Appendix A), with relative positions as an addition to the logits where asked for.

    Relative positions (Appendix D.4): one learned vector per distance in the sequence, and query * vector as a bias.
    """

    offset: Tensor

    def __init__(self, d: int, heads: int, tokens: int, dropout: float, relative: bool, dialect: Dialect) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.scale = (d if dialect.scale_by_width else d // heads) ** -0.5
        self.qkv = nn.Linear(d, 3 * d, bias=dialect.qkv_bias)
        self.out = nn.Linear(d, d)
        self.distances = nn.Parameter(torch.empty(2 * tokens - 1, d // heads)) if relative else None
        if relative:
            place = torch.arange(tokens)
            self.register_buffer("offset", place[:, None] - place + tokens - 1, persistent=False)

    def _projected(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        b, n, d = z.shape
        # not one view of five dimensions: its gradient would be put together in two copies
        q, k, v = (x.view(b, n, self.heads, -1).transpose(1, 2) for x in self.qkv(z).split(d, -1))
        if self.distances is None:
            return q, k, v, None
        by_distance = (q @ self.distances.T.to(q.dtype)) * self.scale  # (b, heads, n, 2n - 1)
        return q, k, v, by_distance.gather(-1, self.offset.expand(b, self.heads, n, n))

    def forward(self, z: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        q, k, v, bias = self._projected(z)
        dropout = self.dropout if self.training else 0.0
        if bias is None and not dropout:
            z = attention(q, k, v, self.scale)
        else:
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=self.scale)
        return self.out(z.transpose(1, 2).flatten(2))

    def weights(self, z: Tensor) -> Tensor:
        """a, (b, heads, n, n)."""
        q, k, _, bias = self._projected(z)
        logits = q @ k.mT * self.scale
        return (logits if bias is None else logits + bias).softmax(-1)


class Block(nn.Module):
    """Eqs. 2 and 3: z + MSA(LN(z)), then z + MLP(LN(z)). Dropout follows every dense layer but q, k, v (B.1)."""

    def __init__(
        self,
        d: int,
        heads: int,
        mlp: int,
        tokens: int,
        dropout: float,
        attention_dropout: float,
        drop_path: float,
        relative: bool,
        dialect: Dialect,
    ) -> None:
        super().__init__()
        self.dialect, self.dropout, self.drop_path = dialect, dropout, drop_path
        self.norm1 = nn.LayerNorm(d, dialect.eps)
        self.attention = Attention(d, heads, tokens, attention_dropout, relative, dialect)
        self.norm2 = nn.LayerNorm(d, dialect.eps)
        self.mlp1, self.mlp2 = nn.Linear(d, mlp), nn.Linear(mlp, d)

    def _branch(self, z: Tensor) -> Tensor:
        """Dropout, and stochastic depth: a sample's whole branch is left out, the others grow to make up for it."""
        if self.training and self.dropout:
            z = F.dropout(z, self.dropout)
        if self.training and self.drop_path:
            keep = 1 - self.drop_path
            z = z * (torch.rand(len(z), 1, 1, device=z.device) < keep) / keep
        return z

    def _mlp(self, z: Tensor) -> Tensor:
        z = F.dropout(gelu(self.mlp1(z), self.dialect.gelu), self.dropout, self.training)
        z = self.mlp2(z)
        return F.gelu(z) if self.dialect.gelu_twice else z

    def forward(self, z: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        z = z + self._branch(self.attention(self.norm1(z)))
        if self.dialect.normed_stream:
            z = self.norm2(z)
            return z + self._branch(self._mlp(z))
        return z + self._branch(self._mlp(self.norm2(z)))


def same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around x so that a convolution keeps ceil(size / stride), the odd one at the end (TensorFlow's SAME)."""
    h, w = (max((math.ceil(s / stride) - 1) * stride + kernel - s, 0) for s in x.shape[-2:])
    return F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2)) if h or w else x


class StdConv(nn.Conv2d):
    """Convolution whose filters are standardised to mean 0 and deviation 1 (code: models_resnet.py)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-5)
        return F.conv2d(same(x, self.kernel_size[0], self.stride[0]), w, stride=self.stride)


class GroupNorm(nn.GroupNorm):
    """Group normalisation over 32 groups (flax's default), over fewer where those do not divide the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels, eps=1e-6)


class ResidualUnit(nn.Module):
    """Bottleneck unit of the hybrid's ResNet: 1x1, 3x3, 1x1 with four times the channels (code: models_resnet.py)."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.gn1 = StdConv(inputs, channels, 1), GroupNorm(channels)
        self.conv2, self.gn2 = StdConv(channels, channels, 3, stride), GroupNorm(channels)
        self.conv3, self.gn3 = StdConv(channels, 4 * channels, 1), GroupNorm(4 * channels)
        projects = inputs != 4 * channels or stride != 1
        self.conv_proj = StdConv(inputs, 4 * channels, 1, stride) if projects else None
        self.gn_proj = GroupNorm(4 * channels) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.gn1(self.conv1(x)))
        y = F.relu(self.gn2(self.conv2(y)))
        y = self.gn3(self.conv3(y))
        if self.conv_proj is not None and self.gn_proj is not None:
            x = self.gn_proj(self.conv_proj(x))
        return F.relu(x + y)


class ResNet(nn.Module):
    """Root and stages of units; each stage but the first halves the picture.

    Args:
        stages: units of each stage; () is the root alone.
        channels: of the root; stage i has 4 * channels * 2^i.
        small: a 3x3 root of stride 1 for pictures of 32 pixels, in place of 7x7 / 2 and a pool / 2.
    """

    def __init__(self, stages: Sequence[int], channels: int, small: bool) -> None:
        super().__init__()
        self.small = small
        self.conv_root = StdConv(3, channels, 3) if small else StdConv(3, channels, 7, 2)
        self.gn_root = GroupNorm(channels)
        units: list[nn.Module] = []
        self.outputs, self.stride = channels, 1 if small else 4
        for i, count in enumerate(stages):
            for j in range(count):
                stride = 2 if i and not j else 1
                units.append(ResidualUnit(self.outputs, channels * 2**i, stride))
                self.outputs, self.stride = 4 * channels * 2**i, self.stride * stride
        self.units = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, h, w) -> (b, outputs, h / stride, w / stride)."""
        x = F.relu(self.gn_root(self.conv_root(x)))
        if not self.small:
            x = F.max_pool2d(same(x, 3, 2), 3, 2)  # x is not negative, so zeros around it do no harm
        return self.units(x)


class ViT(nn.Module):
    """Eqs. 1 to 4. Without blocks (depth 0) and with a stem it is the ResNet that a hybrid begins with.

    Args:
        resolution: pixels along a side of the picture.
        patch: p; of a hybrid, in places of the stem's last feature map.
        channels: of the picture; a stem takes three.
        pool: what the head sees: the class token or the mean of all patches (Appendix D.3).
        positions: kind of embedding (Appendix D.4); position_layers: added to the input, or in every block too,
            with a table of its own or one that all share.
        stages, stem_channels, small_root: ResNet before the patches (Section 3.1, hybrid), see `ResNet`; None: none.
        pre_logits: a hidden tanh layer in the head (pre-training, Section 3.1).
        drop_path: largest share of branches left out, rising from 0 over the blocks.
    """

    def __init__(
        self,
        *,
        resolution: int,
        patch: int,
        d: int,
        depth: int,
        heads: int,
        mlp: int,
        classes: int,
        channels: int = 3,
        pool: Literal["token", "mean"] = "token",
        positions: Positions = "1d",
        position_layers: Literal["input", "every", "shared"] = "input",
        stages: Sequence[int] | None = None,
        stem_channels: int = 64,
        small_root: bool = False,
        pre_logits: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        dialect: str = "vision-transformer",
    ) -> None:
        super().__init__()
        self.dialect, self.pool, self.dropout, self.position_layers = DIALECTS[dialect], pool, dropout, position_layers
        self.name = dialect
        self.stem = ResNet(stages, stem_channels, small_root) if stages is not None else None
        inputs, stride = (self.stem.outputs, self.stem.stride) if self.stem else (channels, 1)
        if resolution % (patch * stride):
            raise UserError(f"{resolution} pixels do not divide into patches of {patch * stride}")
        self.patch_pixels, self.g = patch * stride, resolution // (patch * stride)
        self.embedding = nn.Conv2d(inputs, d, patch, patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, d)) if pool == "token" else None
        self.tokens = self.g**2 + (pool == "token")
        tables = 0 if positions in ("none", "relative") else depth if position_layers == "every" else 1
        if positions == "2d":  # D / 2 for the column and D / 2 for the row; the class token is learned anyhow
            self.tables = nn.ParameterList([torch.empty(2, self.g, d // 2) for _ in range(tables)])
        else:
            self.tables = nn.ParameterList([torch.empty(1, self.tokens, d) for _ in range(tables)])
        self.blocks = nn.ModuleList(
            Block(
                d,
                heads,
                mlp,
                self.tokens,
                dropout,
                attention_dropout,
                drop_path * i / max(1, depth - 1),
                positions == "relative",
                self.dialect,
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(d, self.dialect.eps)
        self.pre_logits = nn.Linear(d, d) if pre_logits else None
        self.head = nn.Linear(d, classes)

    @property
    def encoder(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def position_table(self, layer: int = 0) -> Tensor:
        """What is added to the tokens, (1, n, d)."""
        table = self.tables[min(layer, len(self.tables) - 1)]
        if table.shape[0] == 1:
            return table
        column, row = (t.to(table.dtype) for t in table)  # (g, d / 2) each
        grid = torch.cat([column.expand(self.g, -1, -1), row[:, None].expand(-1, self.g, -1)], -1)
        grid = grid.reshape(1, self.g**2, -1)
        return F.pad(grid, (0, 0, 1, 0)) if self.class_token is not None else grid

    def tokenised(self, x: Tensor) -> Tensor:
        """z_0 (Eq. 1) without the positions of a `position_layers` that is not "input": (b, n, d)."""
        if self.stem is not None:
            x = self.stem(x)
        p = self.embedding.stride[0]  # one product of the patches, which is faster than the convolution
        z = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        z = F.linear(z, self.embedding.weight.flatten(1), self.embedding.bias)  # (b, g * g, d)
        if self.class_token is not None:
            z = torch.cat([self.class_token.expand(len(z), -1, -1).to(z.dtype), z], 1)
        if len(self.tables) and self.position_layers == "input":
            z = z + self.position_table()
        return F.dropout(z, self.dropout, self.training)

    def _at(self, layer: int, z: Tensor) -> Tensor:
        inside = len(self.tables) and self.position_layers != "input"
        return z + self.position_table(layer) if inside else z

    def features(self, x: Tensor) -> Tensor:
        """y (Eq. 4): what the head sees, (b, d)."""
        z = self.tokenised(x)
        for i, block in enumerate(self.encoder):
            z = block(self._at(i, z))
        if self.class_token is not None:
            return self.norm(z[:, 0])
        return self.norm(z).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, h, w) -> logits (b, classes)."""
        y = self.features(x)
        if self.pre_logits is not None:
            y = torch.tanh(self.pre_logits(y))
        return self.head(y)

    @torch.no_grad()
    def attentions(self, x: Tensor) -> list[Tensor]:
        """a of every block, (b, heads, n, n)."""
        z, found = self.tokenised(x), []
        for i, block in enumerate(self.encoder):
            z = self._at(i, z)
            found.append(block.attention.weights(block.norm1(z)))
            z = block(z)
        return found

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Start from random weights, by the dialect's rules; the paper's are the code's (models_vit.py)."""
        code, dialect = self.name, self.dialect
        for module in self.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
            elif isinstance(module, nn.Conv2d | nn.Linear):
                inputs = module.weight[0].numel()
                if code == "vision-transformer":
                    if isinstance(module, nn.Conv2d):  # flax's default, LeCun normal
                        sd = inputs**-0.5 / 0.87962566  # the deviation of a normal cut off at two deviations
                        nn.init.trunc_normal_(module.weight, 0.0, sd, -2 * sd, 2 * sd, generator)
                    else:
                        outputs = inputs if module.out_features == 3 * inputs else module.out_features
                        bound = math.sqrt(6 / (inputs + outputs))  # Xavier, each of q, k, v on its own
                        module.weight.uniform_(-bound, bound, generator=generator)
                elif code == "compact-transformers":
                    sd = math.sqrt(2 / inputs) if isinstance(module, nn.Conv2d) else 0.02
                    module.weight.normal_(0.0, sd, generator=generator)
                else:
                    module.weight.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
                if module.bias is not None:
                    if code == "vision-transformer" or (
                        code == "compact-transformers" and isinstance(module, nn.Linear)
                    ):
                        module.bias.zero_()
                    else:  # torch's default
                        module.bias.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
        for block in self.encoder:
            if code == "torch":  # nn.MultiheadAttention: Xavier, q, k and v as one matrix; no biases at first
                bound = math.sqrt(6 / (4 * block.attention.qkv.in_features))
                block.attention.qkv.weight.uniform_(-bound, bound, generator=generator)
                for layer in (block.attention.qkv, block.attention.out):
                    layer.bias.zero_()
            if code == "vision-transformer":
                for layer in (block.mlp1, block.mlp2):
                    layer.bias.normal_(0.0, 1e-6, generator=generator)
            if block.attention.distances is not None:
                block.attention.distances.normal_(0.0, dialect.position_sd, generator=generator)
        for table in self.tables:
            table.normal_(0.0, dialect.position_sd, generator=generator)
        if self.class_token is not None:
            self.class_token.normal_(0.0, dialect.class_sd, generator=generator)
        for module in self.modules():
            if isinstance(module, ResidualUnit):
                module.gn3.weight.zero_()
        if code == "vision-transformer":
            self.head.weight.zero_()


def interpolated(table: Tensor, tokens: int) -> Tensor:
    """A position table (1, n, d) for another number of tokens (Section 3.2).

    Bilinear between the corners of the grid, as `scipy.ndimage.zoom(order=1)` does for the code (checkpoint.py).
    """
    old = math.isqrt(table.shape[1])
    new = math.isqrt(tokens)
    first = table.shape[1] - old**2  # the class token's row, which stays
    if tokens - new**2 != first:
        raise ValueError(f"a table of {table.shape[1]} rows does not fit {tokens} tokens")
    grid = table[:, first:].unflatten(1, (old, old)).permute(0, 3, 1, 2)  # (1, d, g, g)
    grid = F.interpolate(grid, size=(new, new), mode="bilinear", align_corners=True)
    return torch.cat([table[:, :first], grid.flatten(2).mT], 1)
