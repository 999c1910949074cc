"""The plain loop: learns, resumes bit for bit, and writes what it logged."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from common.cli import parse
from common.data.batches import Batches
from common.ema import EMA
from common.fit import fit
from common.optim import warmup_cosine
from common.records import PICTURE_BYTES, read
from common.run import Run

STEPS = 30


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
