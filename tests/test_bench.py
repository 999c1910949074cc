"""Races: every paper says what is timed, floors are counted right, records are kept and shown. Time decides nothing."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.paths import paper_names
from common.speed import PEERS, WORDS, Case, Growth, Missing, Peer, Step, checkout, training
from tools import bench


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """A race flushes denormal numbers; the next test should have them again."""
    yield
    torch.set_flush_denormal(False)


def record(**changes: object) -> bench.SpeedRecord:
    """A race in which a peer took three times as long as we did, and another did less."""
    plain = {"source": "x 1", "same": True, "memory_mib": 10.0, "parameters": 5, "flops": 8.0}
    fields: dict[str, object] = {
        "paper": "gcn",
        "case": "cora",
        "what": "a net",
        "dtype": "float32",
        "clock": "processor",
        "threads": 1,
        "load": [0.5, 0.7],
        "peaks": {"matmul": 1e11, "convolution": 1e11, "memory": 1e10},
        "floor_seconds": 0.5,
        "contenders": [
            bench.Contender(name="ours", seconds=[1.0, 2.0, 1.0], **plain),  # type: ignore[arg-type]
            bench.Contender(name="slow", seconds=[3.0, 6.0, 3.0], **plain | {"memory_mib": 20.0}),  # type: ignore[arg-type]
            bench.Contender(name="less", seconds=[0.1, 0.1, 0.1], note="half", **plain | {"same": False}),  # type: ignore[arg-type]
        ],
        "absent": {"far": "pip install far"},
        "growth": bench.Grown(what="edges", sizes=[1, 2], seconds=[0.1, 0.2], memory_mib=[1.0, None]),
        "commit": "abc",
        "dirty": False,
        "versions": {"torch": "2"},
        "device": "CPU",
        "started": "2026-01-02T03:04:05+00:00",
    }
    made = bench.SpeedRecord(**fields | changes)  # type: ignore[arg-type]
    return made.model_copy(update={"hash": made.digest()})


@pytest.mark.parametrize("paper", bench.timed_papers())
def test_every_paper_says_what_is_timed(paper: str) -> None:
    found = bench.cases(paper)
    assert found.CASES
    assert isinstance(found.GROWTH, Growth)
    assert list(found.GROWTH.sizes) == sorted(set(found.GROWTH.sizes))
    assert len(found.GROWTH.sizes) > 1
    for name, case in found.CASES.items():
        record(paper=paper, case=name, what=case.what)  # names fit the schema
        assert case.optimizer in WORDS
        assert all(peer.note or peer.same for peer in case.peers.values()), "a peer that does other work says which"


def test_papers_with_a_race_are_most_of_them() -> None:
    assert len(bench.timed_papers()) == 18


@pytest.mark.parametrize(("paper", "case"), [("gcn", "cora"), ("vae", "aevb"), ("lstm", "1997"), ("vae", "iwae-k50")])
def test_contenders_change_as_many_parameters(paper: str, case: str) -> None:
    """Small races run, and each contender's update changes its net."""
    found = bench.cases(paper).CASES[case]
    ours = found.ours()
    ours.run()
    for peer in found.peers.values():
        step = peer.build()
        step.run()
        assert step.parameters == ours.parameters


def test_an_absent_peer_is_said_to_be_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(PEERS, raising=False)
    with pytest.raises(Missing, match="git clone there"):
        checkout("repository", "there")
    (tmp_path / "repository").mkdir()
    monkeypatch.setenv(PEERS, str(tmp_path))
    assert checkout("repository", "there") == tmp_path / "repository"

    class Papers:
        @staticmethod
        def missing() -> Step:
            raise ImportError("no module named far")

    net = torch.nn.Linear(4, 3)
    x = torch.ones(2, 4)

    def build() -> Step:
        return training(net, torch.optim.SGD(net.parameters(), 0.1), lambda: net(x).sum())

    peers = {"here": Peer("torch", build), "far": Peer("far", Papers.missing)}
    module = type("speed", (), {"CASES": {"small": Case("a layer", build, peers, "sgd")}})
    monkeypatch.setattr(bench, "cases", lambda paper: module)
    monkeypatch.setattr(bench, "in_a_process", lambda *_: 1.5)
    monkeypatch.setattr(bench, "TURN_SECONDS", 1e-4)
    found = bench.race("gcn", "small", bench.Way(turns=7, peers=True))
    assert [c.name for c in found.contenders] == ["ours", "here"]
    assert all(len(c.seconds) == 7 for c in found.contenders)
    assert found.absent == {"far": "no module named far"}
    assert found.ours.parameters == 15
    assert found.ours.flops == 2 * (2 * 2 * 4 * 3)  # forward, and the weight's gradient: x has none
    assert found.floor_seconds > 0
    assert [c.name for c in bench.race("gcn", "small", bench.Way(turns=1)).contenders] == ["ours"]


def test_products_and_convolutions_are_counted_apart() -> None:
    x, w, a = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3), torch.ones(5, 6)
    assert bench.flops(lambda: (torch.nn.functional.conv2d(x, w), a @ a.T)) == (2 * 5 * 6 * 5, 2 * 4 * 3 * 2 * 9)


def test_a_gradient_penalty_is_counted() -> None:
    net, x = torch.nn.Linear(4, 3, bias=False), torch.randn(2, 4, requires_grad=True)

    def penalty() -> None:
        (gradient,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()

    one = 2 * 2 * 3 * 4  # forward and the gradient of x; of each, that of both factors
    assert bench.flops(penalty) == (6 * one, 0)


def test_the_floor_adds_operations_and_traffic() -> None:
    peaks = {"matmul": 10.0, "convolution": 5.0, "memory": 28.0}
    assert bench.floor((20.0, 10.0), 3, "adam", peaks) == pytest.approx(2 + 2 + 3)
    assert bench.floor((20.0, 0.0), 3, "none", peaks) == pytest.approx(2)


def test_ratios_are_of_turns_and_only_equal_work_counts() -> None:
    found = record()
    assert [c.name for c in found.rivals] == ["slow"]
    assert found.ratio(found.rivals[0]) == (3.0, 3.0, 3.0)
    assert found.fraction == 0.5
    (row,) = bench.rows([found])
    assert row["ratio"] == 3.0
    assert row["memory_ratio"] == 0.5
    assert "less 0.1 (half)" in row["other peers"]
    assert "far: not here" in row["other peers"]


def test_records_are_immutable_and_the_newest_is_shown(tmp_path: Path) -> None:
    old, new = record(), record(started="2026-02-02T03:04:05+00:00")
    path = bench.keep(old, tmp_path)
    bench.keep(new, tmp_path)
    assert bench.read(path) == old
    with pytest.raises(UserError, match="exists already"):
        bench.keep(old, tmp_path)
    assert bench.newest(tmp_path) == [new]
    bench.render(tmp_path)
    assert bench.check(tmp_path) == []
    assert "| gcn/cora | a net; float32, 1 thread |" in (tmp_path / "README.md").read_text()
    assert bench.render(tmp_path) == []
    changed = json.loads(path.read_text()) | {"threads": 2}
    path.write_text(json.dumps(changed))
    assert "changed since it was written" in bench.check(tmp_path)[0]


def test_unknown_papers_and_cases_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from tools.repro import main

    for arguments, said in ((["nothing"], "no paper 'nothing'"), (["gcn", "--case", "x"], "gcn has no case x")):
        with pytest.raises(SystemExit) as exit_:
            main(["bench", *arguments])
        assert exit_.value.code == 2
        assert said in capsys.readouterr().err


def test_the_committed_records_and_table_are_in_order() -> None:
    assert bench.check() == []
    assert {r.paper for r in bench.newest()} <= set(paper_names())
