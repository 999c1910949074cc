"""Section 5.1: a linear L2-SVM on what the discriminator's convolutions see, its C chosen on held-out pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.batchnorm import BatchNorm
from common.random import generator
from papers.dcgan.model import Discriminator

HELD_OUT = 10_000  # training pictures on which C is chosen


@torch.no_grad()
def fix_statistics(model: Discriminator, batches: Sequence[Tensor]) -> None:
    """Give every normalisation the mean of its statistics over batches (code, svhn: `infer_bnorm_stats`)."""
    model.train()
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    for i, x in enumerate(batches):
        for norm in norms:
            norm.momentum = 1 / (i + 1)
        model.maps(x)
    model.eval()


def l2_svm(x: Tensor, y: Tensor, c: float, classes: int = 10, tolerance: float = 1e-3) -> Tensor:
    """min over w, class by class, of |w|² / 2 + C sum max(0, 1 - t w·x)², t = 1 for the class, -1 for the others.

    Newton's method, its system solved by conjugate gradients (as LIBLINEAR does), all classes at once.

    Args:
        x: (n, d), with a column of ones where a bias is wanted (it is regularised too, as in LIBLINEAR).

    Returns:
        (d, classes)
    """
    t = 2.0 * torch.nn.functional.one_hot(y, classes).to(x.dtype) - 1  # (n, classes)
    w = x.new_zeros(x.shape[1], classes)
    xw, first = x.new_zeros(t.shape), None
    for _ in range(50):
        slack = (1 - t * xw).clamp_min(0)
        gradient = w - 2 * c * (x.T @ (t * slack))
        size = gradient.norm(dim=0)
        first = size if first is None else first
        if (size <= tolerance * first).all():
            break
        active = (slack > 0).to(x.dtype)
        step = _solve(x, active, c, -gradient)
        xs, ws = x @ step, (w * step).sum(0)
        before, slope = (w.square().sum(0) / 2 + c * slack.square().sum(0)), (gradient * step).sum(0)
        length = torch.ones_like(size)
        for _ in range(20):  # halve each class's step until its objective falls enough (Armijo)
            loss = c * (1 - t * (xw + length * xs)).clamp_min(0).square().sum(0)
            after = w.square().sum(0) / 2 + length * ws + length**2 * step.square().sum(0) / 2 + loss
            short = after > before + 1e-2 * length * slope
            if not short.any():
                break
            length = torch.where(short, length / 2, length)
        w, xw = w + length * step, xw + length * xs
    return w


def _solve(x: Tensor, active: Tensor, c: float, target: Tensor) -> Tensor:
    """(I + 2C X^T A X) step = target for each class, to a tenth of the target's norm."""
    step, rest = torch.zeros_like(target), target
    way, size = rest, rest.square().sum(0)
    goal = 0.01 * size
    for _ in range(30):
        turned = way + 2 * c * (x.T @ (active * (x @ way)))
        alpha = torch.where(size > goal, size / (way * turned).sum(0).clamp_min(1e-30), 0.0)  # 0: has arrived
        step, rest = step + alpha * way, rest - alpha * turned
        new = rest.square().sum(0)
        if (new <= goal).all():
            break
        way, size = rest + (new / size.clamp_min(1e-30)) * way, new
    return step


def accuracy(w: Tensor, x: Tensor, y: Tensor) -> float:
    """Percent."""
    return 100 * ((x @ w).argmax(1) == y).double().mean().item()


def protocol(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    cs: Sequence[float],
    per_class: int,
    draws: int,
    seed: int,
) -> dict[str, float]:
    """Test accuracy with all labels, and the mean over draws of `per_class` labels a class."""
    x, y = train
    held = max(1, min(HELD_OUT, len(y) // 5))
    fit, validation = (x[:-held], y[:-held]), (x[-held:], y[-held:])

    def best(x: Tensor, y: Tensor) -> float:
        return max(cs, key=lambda c: accuracy(l2_svm(x, y, c), *validation))

    def draw(i: int) -> Tensor:
        order = torch.randperm(len(fit[1]), generator=generator(seed, "labels", i)).to(y.device)
        return torch.cat([order[fit[1][order] == k][:per_class] for k in range(int(y.max()) + 1)])

    chosen = draw(0)
    few = best(fit[0][chosen], fit[1][chosen])
    parts = [draw(i) for i in range(draws)]
    each = [accuracy(l2_svm(fit[0][part], fit[1][part], few), *test) for part in parts]
    return {
        "svm_accuracy": accuracy(l2_svm(x, y, best(*fit)), *test),
        f"svm_accuracy_{per_class}_per_class": sum(each) / draws,
        "svm_features": x.shape[1] - 1.0,
    }
