"""Schedules, groups, moving averages, and metrics that count their samples."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.cost import multiply_adds, parameters, slope
from common.ema import EMA
from common.metrics import mean_over
from common.optim import decay_groups, stages, warmup_cosine


def test_stages_and_warmup() -> None:
    steps = stages([10, 20], [1.0, 0.1, 0.01])
    assert [steps(s) for s in (0, 9, 10, 19, 20, 99)] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    cosine = warmup_cosine(4, 12)
    assert [cosine(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert cosine(8) == pytest.approx(0.5)
    assert cosine(12) == pytest.approx(0.0)
    assert cosine(99) == pytest.approx(0.5 * (1 + math.cos(math.pi)))


def test_biases_and_gains_do_not_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    decayed, spared = decay_groups(model, 0.1)
    assert [p.shape for p in decayed["params"]] == [(4, 3)]
    assert len(spared["params"]) == 3
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)


def test_the_shadow_follows_the_closed_form() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    ema = EMA(model, 0.9)
    torch.nn.init.constant_(model.weight, 1.0)
    for _ in range(5):
        ema.update(model)
    assert ema.model.weight.item() == pytest.approx(1 - 0.9**5)


@pytest.mark.parametrize(("n", "batch_size"), [(22, 5), (1, 8), (16, 16), (7, 1)])
def test_the_mean_counts_every_sample_once(n: int, batch_size: int) -> None:
    run = SimpleNamespace(part=(0, 1), device="cpu")
    data = torch.arange(2 * n, dtype=torch.float32).reshape(2, n)
    assert torch.allclose(mean_over(run, n, batch_size, lambda s: data[:, s]), data.double().mean(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="values for"):
        mean_over(run, n, batch_size, lambda s: data[:, :0])  # type: ignore[arg-type]


def test_growth_is_a_slope_of_logarithms() -> None:
    assert slope([1, 10, 100], [3, 300, 30_000]) == pytest.approx(2)
    assert slope([2, 4], np.array([8.0, 8.0])) == pytest.approx(0)


def test_counts_of_a_model() -> None:
    with torch.device("meta"):
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4))
    assert parameters(net) == 4 * 3 * 9 + 4 + 8  # running statistics are buffers
    assert multiply_adds(net, 5) == 25 * 4 * 3 * 9
