"""Asked to stop, a run saves its state and leaves with a code of its own; `--resume auto` finds it again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from common import machine
from common.cli import launch, parse
from common.errors import STOPPED
from common.paths import ROOT
from tests.test_papers import final_weights, records_of, smoke, what_was_measured

STEPS = 1000
LONG = ["--preset", "smoke", "--device", "cpu", "--train-steps", str(STEPS), "--checkpoint-minutes", "0"]


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 1), (signal.SIGTERM, 2)])
def test_a_run_asked_to_stop_saves_and_goes_on(number: int, processes: int, tmp_path: Path) -> None:
    """The signal goes to one process; those that share its batch stop after the same step."""
    torn = tmp_path / "torn"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if processes == 2 else []
    command = [sys.executable, *launcher, "-m", "papers.vae.train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    process = subprocess.Popen(
        [*command, *LONG, "--output-dir", str(torn)], cwd=ROOT, env=environment,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(torn.glob("checkpoints/step-*")) and process.poll() is None:
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    ranks = [one for one in workers if "papers.vae.train" in one.cmdline()] if processes == 2 else [process]
    assert len(ranks) == processes
    ranks[-1].send_signal(number)
    _, said = process.communicate(timeout=120)
    assert f"--resume {torn}" in said
    if processes == 1:
        assert process.returncode == STOPPED
        assert len(said.strip().splitlines()) == 1
    else:
        assert f"exitcode  : {STOPPED}" in said
    newest = max(torn.glob("checkpoints/step-*")).name
    assert int(newest.removeprefix("step-")) < STEPS
    assert f"after step {int(newest.removeprefix('step-')) - 1}," in said
    assert not records_of(torn)
    if number == signal.SIGUSR1:
        smoke("vae", tmp_path / "whole", *LONG)
        launched("vae", *LONG, "--resume", "auto", "--output-dir", str(torn))
        assert what_was_measured(torn) == what_was_measured(tmp_path / "whole")
        assert final_weights(torn) == final_weights(tmp_path / "whole")
        assert (torn / "log.jsonl").read_bytes() == (tmp_path / "whole/log.jsonl").read_bytes()


def launched(paper: str, *argv: str) -> None:
    with pytest.raises(SystemExit) as stop:
        launch(paper, list(argv))
    assert stop.value.code == 0


def test_outside_the_loop_a_signal_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import papers.gcn.train

    monkeypatch.setattr(papers.gcn.train, "train", lambda cfg, run: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        launch("gcn", ["--preset", "smoke", "--device", "cpu", "--output-dir", str(tmp_path)])
    assert stop.value.code == STOPPED
    assert signal.getsignal(signal.SIGTERM) is before


def test_auto_finds_the_newest_intact_run_of_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import common.cli
    import common.run

    for module in (common.cli, common.run):
        monkeypatch.setattr(module, "RUNS", tmp_path)
    same = ["--preset", "smoke", "--device", "cpu", "--seed", "0-1", "--resume", "auto"]
    assert parse("gcn", same).options.resume is None
    for name in ("old", "new"):
        smoke("gcn", tmp_path / "gcn" / name, "--seed", "0-1", "--checkpoint-minutes", "0")
    assert parse("gcn", same).options.resume == str(tmp_path / "gcn/new")
    assert parse("gcn", [*same, "--seed", "0"]).options.resume is None
    assert parse("gcn", [*same, "--lr", "0.3"]).options.resume is None
    assert parse("vae", same).options.resume is None
    first, second = sorted((tmp_path / "gcn/new/checkpoints").iterdir())
    (second / "state.pt").write_bytes((second / "state.pt").read_bytes()[:-1])
    for path in (tmp_path / "gcn/new/records").iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match=f"damaged checkpoint passed over, {second.name}"):
        launched("gcn", *same)
    assert len(records_of(tmp_path / "gcn/new")) == 2
    for path in (first, second):
        (path / "state.pt").write_bytes(b"")
    capsys.readouterr()
    assert parse("gcn", same).options.resume == str(tmp_path / "gcn/old")
    said = capsys.readouterr().err
    assert said == f"{tmp_path / 'gcn/new'}: every checkpoint is damaged, passed over\n"


def test_one_process_trains_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smoke("gcn", tmp_path)
    with FileLock(tmp_path / ".lock"):
        for argv in (["--resume", str(tmp_path)], ["--preset", "smoke", "--output-dir", str(tmp_path)]):
            with pytest.raises(SystemExit) as stop:
                launch("gcn", argv)
            assert stop.value.code == 2
            assert "another process trains in" in capsys.readouterr().err
    launched("gcn", "--resume", str(tmp_path))


def test_a_run_that_goes_on_with_other_sources_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources of common/ and of the paper count, others do not."""
    repository, run = tmp_path / "repository", tmp_path / "run"

    def commit(path: str, text: str) -> str:
        file = repository / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@example.org"]
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", text], ["rev-parse", "HEAD"]):
            done = subprocess.run([*git, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def dirty_after(began: str | None) -> tuple[bool | None, str]:
        for file in (run / "records").glob("*"):
            file.unlink()
        saved = json.loads((run / "run.json").read_text())
        if began:
            saved["origin"]["commit"] = began
            (run / "run.json").write_text(json.dumps(saved))
        launched("gcn", "--resume", str(run))
        return records_of(run)[0].dirty, capsys.readouterr().err

    first = commit("common/a.py", "1")
    monkeypatch.setattr(machine, "ROOT", repository)
    smoke("gcn", run)
    capsys.readouterr()
    assert dirty_after(None) == (False, "")
    commit("papers/vae/a.py", "2")
    assert dirty_after(first) == (False, "")
    changed = commit("common/a.py", "3")
    dirty, said = dirty_after(first)
    assert dirty
    assert said == f"{run} began with other sources: its record will say so\n"
    assert dirty_after(changed) == (False, "")
    assert dirty_after("0" * 40)[0]
