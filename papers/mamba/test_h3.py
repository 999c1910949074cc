"""The H3 paper's small tasks: what is drawn, the two state spaces against their recurrences, the recipe, learning."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from common.random import generator
from papers.mamba import data
from papers.mamba.config import PRESETS
from papers.mamba.h3 import H3, Diagonal, Mixer, Shift, SmallLM, convolution
from papers.mamba.train import schedule

MIXERS = get_args(Mixer)


def small(mixer: Mixer, vocabulary: int = 10, d: int = 8) -> SmallLM:
    model = SmallLM(vocabulary, d, 2, mixer, state=8, places=24, dropout=0.0)
    model.initialise(generator("small"))
    return model


def test_induction_heads_repeat_what_followed() -> None:
    text = data.h3_induction(400, 30, 20, generator(0))
    assert text.shape == (400, 32)
    marks = (text == 18).nonzero()[:, 1].view(400, 2)
    assert (marks[:, 1] == 30).all()
    assert torch.equal(text[:, 31], text.gather(1, marks[:, :1] + 1)[:, 0])
    assert {int(place) for place in marks[:, 0]} == set(range(28))
    assert int(text.max()) == 18  # the second special token is in recall alone, and there never wanted
    with pytest.raises(UserError, match="length of 3"):
        data.h3_induction(1, 2, 20, generator(0))


def test_recall_asks_for_a_key_that_is_there() -> None:
    text = data.h3_recall(400, 20, 10, generator(0))
    assert text.shape == (400, 23)
    assert (text[:, 20] == 8).all()
    for row in text.tolist():
        pairs = dict(zip(row[:20:2], row[1:20:2], strict=True))
        assert all(pairs[key] == value for key, value in zip(row[:20:2], row[1:20:2], strict=True))
        assert pairs[row[21]] == row[22]
        assert set(pairs) <= set(range(4))
        assert set(pairs.values()) <= set(range(4, 8))
    assert torch.equal(text, data.h3_recall(400, 20, 10, generator(0)))
    with pytest.raises(UserError, match="even length"):
        data.h3_recall(1, 21, 10, generator(0))


def test_convolution_is_the_sum_it_stands_for() -> None:
    x, k, skip = torch.randn(2, 9, 3), torch.randn(3, 9), torch.randn(3)
    expected = [skip * x[:, t] + sum((k[:, j] * x[:, t - j] for j in range(t + 1)), torch.zeros(3)) for t in range(9)]
    torch.testing.assert_close(convolution(x, k, skip), torch.stack(expected, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["bilinear", "zoh"])
def test_diagonal_is_its_recurrence(rule: str) -> None:
    layer = Diagonal(3, 4, rule)  # type: ignore[arg-type]
    layer.initialise(generator(rule))
    layer.double()
    A, step = torch.complex(-layer.A_log.exp(), layer.A_imag), layer.log_step.exp()[:, None]
    if layer.B is not None:
        decay = (1 + step * A / 2) / (1 - step * A / 2)
        gain = torch.view_as_complex(layer.B) * step / (1 - step * A / 2)
    else:
        decay = torch.exp(step * A)
        gain = (decay - 1) / A
    C, x = torch.view_as_complex(layer.C), torch.randn(2, 20, 3, dtype=torch.float64)
    h, expected = torch.zeros(2, 3, 4, dtype=torch.complex128), []
    for t in range(20):
        h = decay * h + gain * x[:, t, :, None]
        expected.append(2 * (h * C).sum(-1).real + layer.D * x[:, t])
    torch.testing.assert_close(layer(x), torch.stack(expected, 1))


@pytest.mark.parametrize("length", [5, 13])
def test_shift_is_its_recurrence(length: int) -> None:
    layer = Shift(3, 8)
    layer.initialise(generator("shift"))
    with torch.no_grad():
        layer.B.normal_(generator=generator("B"))
    x = torch.randn(2, length, 3)
    h, expected = torch.zeros(2, 3, 8), []
    for t in range(length):  # every input is written by B and then moves on by a place
        h = F.pad(h, (1, 0))[..., :-1] + layer.B * x[:, t, :, None]
        expected.append((h * layer.C).sum(-1) + layer.D * x[:, t])
    torch.testing.assert_close(layer(x), torch.stack(expected, 1), rtol=1e-5, atol=1e-5)


def test_start_is_the_codes() -> None:
    layer = H3(400, 64)
    for module in (layer.shift, layer.ssm):
        module.initialise(generator("start"))
    assert torch.equal(layer.shift.B[:, 0], torch.ones(400))
    assert float(layer.shift.B.detach().abs().sum()) == 400.0
    assert 0.12 < float(layer.shift.C.detach().abs().max()) <= 0.125
    assert torch.allclose(layer.ssm.A_imag[7] / torch.pi, torch.arange(32.0))
    alone = Diagonal(4, 32, "zoh")
    alone.initialise(generator("start"))
    assert alone.A_imag.shape == (1, 32)
    assert float(alone.A_imag.detach()[0, 0]) == pytest.approx(64 * 63 / torch.pi)
    # a step of ones, held for long, leaves the random C a variance of 1: sum |B / A|^2 = 1 / 2
    wide = Diagonal(20_000, 32, "zoh")
    wide.initialise(generator("start"))
    A = torch.complex(-wide.A_log.exp(), wide.A_imag)
    held = 2 * (torch.view_as_complex(wide.C) / A).sum(-1).real
    assert float(held.detach().var()) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("mixer", MIXERS)
def test_no_mixer_looks_ahead(mixer: Mixer) -> None:
    model, x = small(mixer), torch.randint(10, (1, 20), generator=generator("x"))
    other = x.clone()
    other[:, 12:] = (other[:, 12:] + 1) % 10
    a, b = model(x), model(other)
    torch.testing.assert_close(a[:, :12], b[:, :12])
    assert float((a[:, 12:] - b[:, 12:]).detach().abs().max()) > 1e-4
    torch.testing.assert_close(model(x, last=3), a[:, -3:])


def test_all_decays_but_the_state_spaces() -> None:
    for mixer, spared in (("h3", 2 * 5), ("s4d", 2 * 3), ("attention", 0)):
        model = small(mixer)  # type: ignore[arg-type]
        groups = model.decay_groups(0.1)
        kept = [p for g in groups if not g["weight_decay"] for p in g["params"]]
        assert len(kept) == spared
        assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_schedules_are_safaris() -> None:
    cfg = PRESETS["h3task-h3"]
    at = schedule(cfg)
    assert (cfg.train_steps, cfg.warmup_steps) == (62_800, 6_280)
    assert at(0) == pytest.approx(1e-6 / 5e-4)
    half = 0.1 + 0.9 * 0.5 * (1 + torch.tensor(0.1 * torch.pi).cos().item())  # not 1: the cosine began at step 0
    assert at(6_280) == pytest.approx(half)
    assert at(62_800) == pytest.approx(0.1)
    at = schedule(PRESETS["h3recall-h3"])
    assert [at(0), at(1_570), at(3_140), at(31_400)] == pytest.approx([0.0, 0.5, 1.0, 0.0])


@pytest.mark.parametrize("mixer", ["h3", "s4d"])
def test_learns_to_recall(mixer: Mixer) -> None:
    model = small(mixer, vocabulary=6, d=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(text: Tensor) -> Tensor:
        return F.cross_entropy(model(text[:, :-1], last=1)[:, 0], text[:, -1])

    for step in range(400):
        value = loss(data.h3_recall(64, 6, 6, generator("learn", step)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert float(loss(data.h3_recall(200, 6, 6, generator("held"))).detach()) < 0.15  # it guesses at first: ln 2
