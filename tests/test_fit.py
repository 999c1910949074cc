"""The plain loop: learns, resumes bit for bit, and writes what it logged."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from common.claims import load
from common.cli import launch, parse
from common.data.batches import Batches
from common.ema import EMA
from common.errors import UserError
from common.fit import fit
from common.optim import warmup_cosine
from common.paths import ROOT, paper_names
from common.records import PICTURE_BYTES, read
from common.run import Run
from tools.verdicts import judge

STEPS = 30
PRESET = "table2-gcn-cora"


def train(folder: Path, stop_at: int | None = None) -> tuple[torch.nn.Module, EMA, Run]:
    """Linear regression with Adam, warm-up and a moving average."""
    folder.mkdir(exist_ok=True)
    run = Run(parse("gcn", ["--preset", "smoke", "--checkpoint-minutes", "0"]), Accelerator(cpu=True),
              "single", [0], folder)  # fmt: skip
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    y = x @ torch.arange(5.0)[:, None]
    model = torch.nn.Linear(5, 1)
    ema = EMA(model, 0.9)
    batches = Batches(64, 16, [0])

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        index = run.share(batches.index(step)[0])
        return x[index], y[index]

    def loss(model, batch, step):  # type: ignore[no-untyped-def]
        if step == stop_at:
            raise KeyboardInterrupt
        value = (model(batch[0]) - batch[1]).square().mean()
        return value, {"loss": value}

    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    fit(run, model, optimizer, batch, loss, STEPS, schedule=warmup_cosine(5, STEPS), log_every=3,
        state={"ema": ema}, after_step=lambda step: ema.update(model))  # fmt: skip
    return model, ema, run


def test_it_learns_and_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    model, ema, run = train(tmp_path / "whole")
    run.picture("dot", "A dot").write_bytes(b"dot")
    run.picture("huge", "Too much").write_bytes(bytes(PICTURE_BYTES + 1))
    (record,) = run.finish([{"loss": 1.0}])
    assert list(record.pictures) == ["dot"]
    assert (tmp_path / "whole/records" / record.picture_file("dot")).read_bytes() == b"dot"
    steps, losses = record.curves["loss"]
    assert steps == [*range(0, STEPS, 3), STEPS - 1]
    assert losses[-1] < 0.1 * losses[0]  # type: ignore[operator]
    assert read(next((tmp_path / "whole" / "records").glob("*.json"))).metrics == {"loss": 1.0}
    assert record.steps_per_second

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "torn", stop_at=17)
    resumed, resumed_ema, _ = train(tmp_path / "torn")
    for a, b in ((model, resumed), (ema.model, resumed_ema.model)):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(p, q)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "torn")]
    assert logs[0] == logs[1]


def test_groups_with_a_constant_rate_and_clipped_gradients(tmp_path: Path) -> None:
    run = Run(parse("gcn", ["--preset", "smoke"]), Accelerator(cpu=True), "single", [0], tmp_path)
    a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    model = torch.nn.ParameterList([a, b])
    optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b], "constant": True}], lr=1.0)

    def loss(model, batch, step):  # type: ignore[no-untyped-def]
        return (300 * model[0] + 400 * model[1]).sum() / 2**0.5, {}

    fit(run, model, optimizer, lambda step: None, loss, 2, schedule=lambda step: 0.1**step, clip_norm=1.0)
    assert a.tolist() == pytest.approx([-1.1 * 0.6 / 2**0.5] * 2)
    assert b.tolist() == pytest.approx([-2.0 * 0.8 / 2**0.5] * 2)


def test_a_metric_that_is_not_finite_is_a_record_too(tmp_path: Path) -> None:
    _, _, run = train(tmp_path / "run")
    (record,) = run.finish([{"loss": float("nan"), "accuracy": 3.0}])
    assert record.status == "diverged"
    assert record.metrics == {"loss": None, "accuracy": 3.0}


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_numbers_that_go_bad_stop_the_run_before_they_reach_the_weights(bad: str, tmp_path: Path) -> None:
    run = Run(parse("gcn", ["--preset", "smoke", "--checkpoint-minutes", "0"]), Accelerator(cpu=True),
              "single", [3], tmp_path)  # fmt: skip
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)

    def loss(model, batch, step):  # type: ignore[no-untyped-def]
        value = model(torch.ones(1)).sum()
        if step == 4:  # the gradient of a square root is infinite at 0, its value is not
            value = value * torch.nan if bad == "loss" else (value - value.detach()).sqrt()
        return value, {"loss": value}

    with pytest.raises(UserError) as stop:
        fit(run, model, torch.optim.SGD(model.parameters(), lr=0.125), lambda step: None, loss, 9, log_every=1)
    said = str(stop.value)
    assert said.startswith(f"{'the loss' if bad == 'loss' else 'a gradient'} is not finite (learning rate 0.125)")
    assert "at step 4, in batch 4 of seed 3; the update was not made; last checkpoint: " in said
    assert said.endswith("checkpoints at step 4; the record says diverged")
    assert model.weight.item() == 0.5
    (path,) = (tmp_path / "records").glob("*.json")
    record = read(path)
    assert record.status == "diverged"
    assert record.metrics == {"loss": None}
    assert len(record.curves["loss"][0]) == 4


@pytest.mark.parametrize("paper", paper_names())
def test_no_paper_goes_on_with_numbers_that_are_none(
    paper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A weight is spoilt after two updates: the third is not made, or seeds that train side by side end as diverged."""
    steps, mode = Run.steps, importlib.import_module(f"papers.{paper}.train").SEEDS

    def spoilt(self, total, state, every=None):  # type: ignore[no-untyped-def]
        for step in steps(self, total, state, every):
            yield step
            if step == 1:
                spoil(state)

    monkeypatch.setattr(Run, "steps", spoilt)
    with pytest.raises(SystemExit) as stop:
        launch(paper, ["--preset", "smoke", "--device", "cpu", "--output-dir", str(tmp_path)])
    (record,) = (read(path) for path in tmp_path.glob("**/records/*.json"))
    assert record.status == "diverged"
    if mode == "single":
        assert stop.value.code == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert re.search(r"is not finite \(learning rate [^)]+\) at step 2, in batch 2 of seed 0; .* diverged$", said)


def spoil(state: Any) -> None:
    """Make a weight of everything that learns not a number."""
    for value in state.values():
        if isinstance(value, dict):
            spoil(value)
        elif isinstance(value, torch.nn.Module):
            with torch.no_grad():
                for parameter in value.parameters():
                    parameter.fill_(torch.nan)
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            value.fill(np.nan)


FLUSHED = """
import sys
import torch
import papers.gcn.train
from common.cli import launch

def products(cfg, run):
    torch.set_num_threads(4)
    x = torch.full((1 << 20,), 1e-37, requires_grad=True)  # spread over all threads; 1e-39 is no normal float32
    y = torch.ones(1 << 20, requires_grad=True)
    (y * 1e-37 * 0.01).sum().backward()
    assert not (0.01 * x).any()
    assert not y.grad.any()
    assert (x + y.grad).all()

papers.gcn.train.train = products
launch("gcn", ["--preset", "smoke", "--device", "cpu", "--output-dir", sys.argv[1]])
"""


def test_values_below_the_smallest_normal_number_are_zero_in_every_thread_of_a_run(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FLUSHED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_diverged_run_is_a_run_of_its_claims(tmp_path: Path) -> None:
    command = parse("gcn", ["--preset", PRESET])
    with pytest.raises(UserError, match=r"last checkpoint: none yet; the record says diverged$"):
        Run(command, Accelerator(cpu=True), "single", [0], tmp_path).diverge(0, "the loss is not finite")
    (record,) = (read(path) for path in tmp_path.glob("records/*.json"))
    spoken = [c for c in load("gcn").claim if any(PRESET in side.presets for side in c.measured_by())]
    assert spoken
    assert record.claims == [claim.id for claim in spoken]
    assert {side.metric for c in spoken for side in c.measured_by() if PRESET in side.presets} == record.metrics.keys()
    assert set(record.metrics.values()) == {None}
    for claim in spoken:
        verdict = judge(claim, [record])
        assert all(side.failed == side.runs == 1 for side in verdict.sides if side.runs)
