"""What a trained network looks at (Section 4.5, Figures 6 and 7, Appendices D.7 and D.8), in numbers and pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from papers.vit.model import ViT


def patch_attention(model: ViT, weights: Tensor) -> Tensor:
    """a between patches alone, (b, heads, g * g, g * g); each row sums to one again."""
    first = model.tokens - model.g**2
    between = weights[..., first:, first:]
    return between / between.sum(-1, keepdim=True)


def distances(g: int, pixels: int) -> Tensor:
    """Pixels between the centres of every two patches, (g * g, g * g)."""
    at = torch.stack(torch.meshgrid(torch.arange(g), torch.arange(g), indexing="ij"), -1).reshape(-1, 2).float()
    return torch.cdist(at, at) * pixels


def attention_distance(model: ViT, weights: Sequence[Tensor]) -> Tensor:
    """Pixels between a query patch and where it looks, weighted by attention (D.7): (b, layers, heads)."""
    apart = distances(model.g, model.patch_pixels).to(weights[0].device)
    return torch.stack([(patch_attention(model, a) * apart).sum(-1).mean(-1) for a in weights], 1)


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """Attention of the output to the input tokens (D.8): heads averaged, residuals as identity, layers multiplied.

    Returns:
        (b, n, n); rows sum to one.
    """
    total: Tensor | None = None
    for a in weights:
        mean = a.mean(1)
        mean = 0.5 * mean + 0.5 * torch.eye(mean.shape[-1], device=mean.device)
        total = mean if total is None else mean @ total
    assert total is not None
    return total


def similarity(model: ViT) -> Tensor:
    """Cosine similarity of every two patches' position embeddings (Figure 7, middle), (g * g, g * g)."""
    table = model.position_table()[0, model.tokens - model.g**2 :].detach().float()
    table = table / table.norm(dim=-1, keepdim=True)
    return table @ table.T


def similarity_metrics(model: ViT) -> dict[str, float]:
    """Mean similarity of near and far patches, and of those in one row or column and of the others as far apart."""
    values, apart = similarity(model).cpu(), distances(model.g, 1)
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(model.g), torch.arange(model.g), indexing="ij"))
    line = (y[:, None] == y) | (x[:, None] == x)
    beyond = (apart >= 2) & (apart <= max(3, model.g / 2))  # equally far on both sides of the comparison
    return {
        "position_similarity_near": float(values[apart == 1].mean()),
        "position_similarity_far": float(values[apart >= model.g / 2].mean()),
        "position_similarity_line": float(values[line & beyond].mean()),
        "position_similarity_off_line": float(values[~line & beyond].mean()),
    }


def save_pictures(
    path: Callable[[str, str], Path], model: ViT, images: Tensor, x: Tensor, mean_distance: Tensor | None
) -> None:
    """PNG files: similarity of positions, rollout over some pictures, distances per head.

    Args:
        path: (name, what there is to see) -> where to write, as `Run.picture`.
        images: (b, h, w, c) uint8 as seen; x: the same, normalised; mean_distance: (layers, heads).
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    g = model.g
    if len(model.tables):
        figure = Figure(figsize=(6, 6))
        values = similarity(model).cpu().numpy().reshape(g, g, g, g)
        tiles = np.full((g * (g + 1) - 1,) * 2, np.nan)
        for i in range(g):
            for j in range(g):
                tiles[i * (g + 1) : i * (g + 1) + g, j * (g + 1) : j * (g + 1) + g] = values[i, j]
        axes = figure.add_subplot()
        shown = axes.imshow(tiles, vmin=-1, vmax=1, cmap="viridis")
        axes.set(xticks=[], yticks=[], xlabel="patch column", ylabel="patch row", title="Position embedding similarity")
        figure.colorbar(shown, label="cosine similarity", shrink=0.8)
        shows = "Cosine similarity of each place's position embedding to all others"
        figure.savefig(path("positions", shows), dpi=80, bbox_inches="tight")
    if mean_distance is not None:
        figure = Figure(figsize=(6, 4))
        axes = figure.add_subplot()
        for layer, heads in enumerate(mean_distance.cpu().numpy(), 1):
            axes.scatter([layer] * len(heads), sorted(heads), c=np.arange(len(heads)), cmap="viridis", s=20)
        axes.set(xlabel="layer", ylabel="mean attention distance (pixels)", ylim=(0, None))
        axes.set_xticks(range(1, len(mean_distance) + 1))
        shows = "Mean attention distance of every head, by layer"
        figure.savefig(path("attention-distance", shows), dpi=80, bbox_inches="tight")
        seen = rollout(model.attentions(x))
        first = model.tokens - g**2
        maps = (seen[:, 0, 1:] if first else seen.mean(1)).reshape(-1, 1, g, g)
        maps = torch.nn.functional.interpolate(maps, size=images.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
        maps = maps / maps.amax((1, 2), keepdim=True)
        figure = Figure(figsize=(1.3 * len(images), 2.8))
        for i, (image, attended) in enumerate(zip(images.cpu().numpy(), maps.cpu().numpy(), strict=True)):
            for row, picture in enumerate((image, (image * attended[..., None]).astype(np.uint8))):
                axes = figure.add_subplot(2, len(images), row * len(images) + i + 1)
                axes.imshow(picture, interpolation="nearest", cmap="gray")
                axes.set_axis_off()
        shows = "Test pictures, and below them what the class token attends to through all layers"
        figure.savefig(path("rollout", shows), dpi=80, bbox_inches="tight")
