"""Linear support vector machines with a squared hinge."""

import torch
from torch import Tensor


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
