"""Section 5.1: a linear L2-SVM on what the discriminator's convolutions see, its C chosen on held-out pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.batchnorm import BatchNorm
from common.random import generator
from common.svm import l2_svm
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
