"""Pictures from a trained model: draws from the prior, or the whole manifold of a two-dimensional latent space."""

from pathlib import Path

import torch

from common.random import generator
from papers.vae.model import VAE, draw


def latent_grid(side: int) -> torch.Tensor:
    """AEVB Figure 4: a regular grid on the unit square through the inverse CDF of the Gaussian, (side^2, 2)."""
    levels = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side).float()
    return torch.cartesian_prod(levels, levels)


def contact_sheet(pictures: torch.Tensor, shape: tuple[int, int], side: int) -> torch.Tensor:
    """(side^2, h * w) in [0, 1] -> (side * h, side * w) uint8."""
    height, width = shape
    rows = pictures.clamp(0, 1).view(side, side, height, width).transpose(1, 2)
    return (rows.reshape(side * height, side * width) * 255).round().to(torch.uint8)


def save_samples(path: Path, model: VAE, shape: tuple[int, int], side: int = 10) -> None:
    """Write the pictures' means for the first seed."""
    from PIL import Image

    device = model.theta.device
    if model.latents == [2]:
        side = 20
        z = latent_grid(side).expand(len(model.seeds), -1, -1).to(device)
    else:
        numbers = [generator(seed, "samples") for seed in model.seeds]
        z = draw(numbers, (side * side, model.latents[-1]), device)
    sheet = contact_sheet(model.dream(z)[0].cpu(), shape, side)
    Image.fromarray(sheet.numpy()).save(path)
