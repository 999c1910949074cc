"""What translated pictures are worth: labels by nearest colour, a segmenter for photos, errors to the true partners."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.metrics import mean_over
from common.random import generator
from common.run import Run
from papers.cyclegan.data import Domains, scaled

DIVERSE = 64  # test pictures whose translations are compared with each other
SEGMENTER_STEPS = 300


def nearest_colour(pictures: Tensor, palette: Tensor) -> Tensor:
    """(b, 3, h, w) in [-1, 1] -> the class of each pixel, (b, h, w)."""
    colours = palette.to(pictures) / 127.5 - 1  # (classes, 3)
    pixels = pictures.movedim(1, -1)
    squared = -2 * pixels @ colours.T + colours.square().sum(1)  # without the pixel's own square
    return squared.argmin(-1)


def confusion(truth: Tensor, guess: Tensor, classes: int) -> Tensor:
    """Pixels of each true class (rows) taken for each class (columns), of each picture: (classes^2, b)."""
    both = (truth * classes + guess).flatten(1)
    return torch.stack([torch.bincount(each, minlength=classes**2) for each in both], 1).double()


def scores(counts: Tensor) -> dict[str, float]:
    """Per-pixel accuracy, per-class accuracy and class IoU (pix2pix, eval_cityscapes/util.py), as fractions.

    Besides, the accuracy under the best exchange of classes: trees and buildings are sometimes swapped (Section 6).
    """
    from scipy.optimize import linear_sum_assignment

    counts = counts.cpu()
    right, true, guessed = counts.diag(), counts.sum(1), counts.sum(0)
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    return {
        "pixel_accuracy": (right.sum() / counts.sum()).item(),
        "class_accuracy": (right / true.clamp_min(1)).mean().item(),
        "class_iou": (right / (true + guessed - right).clamp_min(1)).mean().item(),
        "pixel_accuracy_permuted": (counts.numpy()[rows, columns].sum() / counts.sum()).item(),
    }


class Segmenter(nn.Sequential):
    """Photo -> a score for each class and pixel. Small; it takes the place of the paper's FCN-8s."""

    def __init__(self, classes: int, width: int = 24) -> None:
        layers: list[nn.Module] = []
        for channels, reach in ((3, 1), (width, 2), (width, 4)):
            layers += [nn.Conv2d(channels, width, 3, padding=reach, dilation=reach), nn.ReLU(True)]
        super().__init__(*layers, nn.Conv2d(width, classes, 1))


def trained_segmenter(photos: Tensor, classes: Tensor, n: int, device: torch.device) -> Segmenter:
    """Trained on labelled scenes of its own, the same for every seed."""
    numbers = generator("segmenter")
    net = Segmenter(n)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                p.normal_(0, (2 / p[0].numel()) ** 0.5, generator=numbers)
            else:
                p.zero_()
    net.to(device)
    photos, classes = photos.to(device), classes.to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003, fused=True)
    for _ in range(SEGMENTER_STEPS):
        chosen = torch.randint(len(photos), (16,), generator=numbers).to(device)
        loss = functional.cross_entropy(net(scaled(photos[chosen])), classes[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return net


def diversity(pictures: Tensor) -> Tensor:
    """Mean absolute difference between every two of them: 0 where a network gives one picture for all inputs."""
    return torch.pdist(pictures.flatten(1).float(), p=1).mean() / pictures[0].numel()


def evaluate(run: Run, domains: Domains, G: nn.Module, F: nn.Module) -> dict[str, float]:
    """All metrics of G: X -> Y and F: Y -> X on the test pictures, whose batches the processes share out."""
    device = run.device
    n = min(len(domains.test_x), len(domains.test_y))
    x, y = scaled(domains.test_x[:n].to(device)), scaled(domains.test_y[:n].to(device))

    def errors(part: slice) -> Tensor:
        fake_y, fake_x = G(x[part]), F(y[part])
        pairs = [(F(fake_y), x[part]), (G(fake_x), y[part])]
        if domains.pairs:
            pairs += [(fake_y, y[part]), (fake_x, x[part]), (x[part], y[part])]
        differences = [(a - b).flatten(1) / 2 for a, b in pairs]  # pictures in [0, 1]
        values = [d.abs().mean(1) for d in differences]
        values += [-10 * d.square().mean(1).clamp_min(1e-10).log10() for d in differences[2:4]]
        return torch.stack(values)

    names = ["cycle_l1_x", "cycle_l1_y"] + (["l1_y", "l1_x", "copied_l1", "psnr_y", "psnr_x"] if domains.pairs else [])
    metrics = dict(zip(names, mean_over(run, n, 10, errors).tolist(), strict=True))
    if domains.pairs:  # what is gained over leaving the picture as it is
        for to in ("x", "y"):
            metrics[f"gain_{to}"] = 1 - metrics[f"l1_{to}"] / metrics["copied_l1"]
    for to, net, source, target in (("y", G, x, y), ("x", F, y, x)):
        made = torch.cat([net(part) for part in source[:DIVERSE].split(16)])
        metrics[f"diversity_{to}"] = (diversity(made) / diversity(target[:DIVERSE])).item()
    if domains.palette is None or not domains.pairs:
        return metrics

    palette, classes = domains.palette.to(device), len(domains.palette)

    def counted(guess: Callable[[slice], Tensor]) -> dict[str, float]:
        def of(part: slice) -> Tensor:
            return confusion(nearest_colour(y[part], palette), guess(part), classes)

        table = (mean_over(run, n, 10, of) * n).view(classes, classes)
        return scores(table[:-1, :-1] if domains.void else table)

    ending = "" if domains.labelled is None else "_drawn"
    labels = counted(lambda part: nearest_colour(G(x[part]), palette))
    metrics |= {name + ending: value for name, value in labels.items()}
    if domains.labelled is not None:
        with torch.enable_grad():
            segmenter = trained_segmenter(*domains.labelled, classes, device)
        photos = counted(lambda part: segmenter(F(y[part])).argmax(1))
        metrics |= {f"segmenter_{name}_drawn": value for name, value in photos.items()}
        real = counted(lambda part: segmenter(x[part]).argmax(1))
        metrics["segmenter_pixel_accuracy_of_photos"] = real["pixel_accuracy"]
    return metrics


def contact_sheet(inputs: Tensor, rows: Tensor) -> np.ndarray:
    """Fixed inputs above what becomes of them over time.

    Args:
        inputs: (2, k, side, side, 3) uint8, of X and of Y; rows: (times, 2, k, side, side, 3), G(x) and F(y).

    Returns:
        ((1 + times) * (side + 2), 2 * k * (side + 2), 3) uint8
    """
    sheet = torch.cat([inputs[None], rows]).flatten(1, 2)  # (1 + times, 2 k, side, side, 3)
    framed = functional.pad(sheet, (0, 0, 0, 2, 0, 2), value=255)
    t, k, height, width, _ = framed.shape
    return framed.transpose(1, 2).reshape(t * height, k * width, 3).numpy()
