"""Sheets of pictures that a run leaves in its folder."""

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor


def sheet(pictures: Tensor, columns: int) -> Tensor:
    """(n, c, h, w) in [0, 1], row after row -> (rows * h, columns * w, c) uint8; an incomplete row ends in black."""
    n, c, h, w = pictures.shape
    rows = -(-n // columns)
    full = pictures.new_zeros(rows * columns, c, h, w)
    full[:n] = pictures.clamp(0, 1)
    tiles = (full.cpu() * 255).round().byte().view(rows, columns, c, h, w)
    return tiles.permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)


def save(path: Path, pictures: Tensor, columns: int) -> None:
    """Write a sheet as PNG, grey (c = 1) or in colour (c = 3)."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = sheet(pictures, columns).numpy()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)


def over_time(path: Path, sheets: Sequence[Path], width: int, most: int = 20) -> None:
    """Write the left `width` pixels of sheets of one size side by side, early to late; of many only some, and the last.

    What a run drew at fixed latents as training went on, in one picture.
    """
    from PIL import Image

    chosen = [*sheets[:-1][:: math.ceil(len(sheets) / most)], *sheets[-1:]]
    parts = [Image.open(sheet) for sheet in chosen]
    made = Image.new(parts[0].mode, (width * len(parts), parts[0].height))
    for i, part in enumerate(parts):
        made.paste(part.crop((0, 0, width, part.height)), (width * i, 0))
    made.save(path)
