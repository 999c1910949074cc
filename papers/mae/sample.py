"""Pictures, what the encoder saw of them, and what the decoder made of the rest (Figures 2 to 4)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def save_reconstructions(path: Path, x: Tensor, whole: Tensor, masked: Tensor, mean: Any, sd: Any) -> None:
    """Three rows of a PNG file: seen by the encoder, reconstructed (visible patches as they were), the truth.

    Args:
        x, whole: (b, 3, h, w), normalised; masked: (b, 1, h, w), 1 where a pixel was.
        mean, sd: what the values were normalised with, from 0 to 255.
    """
    from PIL import Image

    def pixels(x: Tensor) -> Tensor:
        return (x.permute(0, 2, 3, 1) * sd + mean).round().clamp(0, 255)

    seen = torch.where(masked.permute(0, 2, 3, 1) > 0, 128.0, pixels(x))
    rows = torch.stack([seen, pixels(whole), pixels(x)])  # (3, b, h, w, 3)
    rows = torch.nn.functional.pad(rows, (0, 0, 1, 1, 1, 1), value=255.0)
    three, b, h, w, c = rows.shape
    sheet = rows.permute(0, 2, 1, 3, 4).reshape(three * h, b * w, c)
    scale = max(1, 96 // h)
    sheet = sheet.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    Image.fromarray(sheet.squeeze(2).to(torch.uint8).cpu().numpy()).save(path)  # no third axis for grey
