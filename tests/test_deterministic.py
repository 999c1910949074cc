"""`--deterministic` refuses what does not repeat. It changes no bit on a CPU: `test_smoke_ends_finite_and_repeats`."""

import json
from pathlib import Path

import pytest
import torch

import papers.gcn.train
from common.claims import presets
from tests.test_damage import contents, refused
from tests.test_papers import smoke

FLAG = ("--device", "cpu", "--deterministic")


def test_it_is_refused_with_a_compiler_a_clock_or_an_operation_that_varies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ("--output-dir", str(tmp_path / "run"))
    line = refused(capsys, "vit", "--preset", "smoke", "--compile", *FLAG, *out)
    assert line.endswith("--deterministic: a compiler may choose another kernel each time; leave out --compile")
    timed = next(name for name, cfg in presets("gcn").items() if cfg.edges)
    line = refused(capsys, "gcn", "--preset", timed, *FLAG, *out)
    assert line == f"error: --deterministic: {timed} measures time, which never repeats; leave it out"
    monkeypatch.setattr(
        papers.gcn.train, "train", lambda cfg, run: torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    )
    line = refused(capsys, "gcn", "--preset", "smoke", *FLAG, "--output-dir", str(tmp_path / "varies"))
    assert line == "error: --deterministic: put_ does not have a deterministic implementation; leave it out"
    assert not torch.are_deterministic_algorithms_enabled()


def test_it_does_not_go_on_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smoke("gcn", tmp_path, "--deterministic")
    file = tmp_path / "run.json"
    saved = json.loads(file.read_text())
    versions = saved["platform"]["versions"]
    saved["platform"]["versions"] = versions | {"torch": "1.0"}
    file.write_text(json.dumps(saved))
    before = contents(tmp_path)
    line = refused(capsys, "gcn", "--resume", str(tmp_path))
    assert f"--deterministic: {tmp_path} began elsewhere (versions" in line
    assert contents(tmp_path) == before
    saved["argv"].remove("--deterministic")
    file.write_text(json.dumps(saved))
    smoke_again(tmp_path)
    assert f"{tmp_path} began elsewhere (versions" in capsys.readouterr().err


def smoke_again(folder: Path) -> None:
    from common.cli import launch

    with pytest.raises(SystemExit) as stop:
        launch("gcn", ["--resume", str(folder)])
    assert stop.value.code == 0
