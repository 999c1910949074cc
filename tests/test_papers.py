"""The contract every paper keeps, over all papers found."""

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.claims import as_config, load, presets
from common.cli import launch, parse
from common.errors import UserError
from common.paths import PAPERS, ROOT, paper_names
from common.records import Record, read
from tools.board import BLOCK

PAPER = pytest.mark.parametrize("paper", paper_names())


def smoke(paper: str, folder: Path, *more: str) -> None:
    """A smoke run in this process."""
    with pytest.raises(SystemExit) as stop:
        launch(paper, ["--preset", "smoke", "--device", "cpu", "--output-dir", str(folder), *more])
    assert stop.value.code == 0


def records_of(folder: Path) -> list[Record]:
    return [read(path) for path in sorted(folder.glob("**/records/*.json"))]


def what_was_measured(folder: Path) -> list[dict]:
    """Everything in the records but the circumstances."""
    keep = {"seed", "metrics", "curves", "config", "data", "status"}
    return [record.model_dump(include=keep) for record in records_of(folder)]


def final_weights(folder: Path) -> dict[str, str]:
    """Hash of every newest checkpoint's content."""
    newest = {}
    for checkpoints in sorted(folder.glob("**/checkpoints*")):
        path = max(checkpoints.glob("step-*"))
        digest = hashlib.sha256((path / "state.pt").read_bytes()).hexdigest()
        newest[str(checkpoints.relative_to(folder))] = f"{path.name} {digest}"
    assert newest
    return newest


@PAPER
def test_presets_are_complete_frozen_and_explained(paper: str) -> None:
    known = presets(paper)
    assert {"laptop", "smoke"} <= known.keys()
    config = next(iter(known.values()))
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen
    assert {type(preset) for preset in known.values()} == {type(config)}
    json.dumps([as_config(preset) for preset in known.values()])
    source = (PAPERS / paper / "config.py").read_text(encoding="utf-8")
    for field in dataclasses.fields(config):
        line = next(line for line in source.splitlines() if line.strip().startswith(f"{field.name}:"))
        assert "  # " in line, f"{field.name} has no trailing comment (it is the help text)"


@PAPER
def test_claims_name_presets_that_exist_and_data_that_is_declared(paper: str) -> None:
    facts, known = load(paper), presets(paper)
    assert facts.paper.name == paper
    declared = {data.name for data in facts.data}
    for claim in facts.claim:
        for side in claim.measured_by():
            for preset in side.presets:
                assert preset == "audit" or preset in known, f"{claim.id}: {preset}"
    for name, preset in known.items():
        dataset = getattr(preset, "dataset", None)
        if dataset is not None and not dataset.startswith("synthetic/"):
            assert dataset in declared, f"preset {name}: {dataset}"
    for unsaid in facts.unsaid:
        for pattern in unsaid.claims:
            assert any(__import__("fnmatch").fnmatchcase(c.id, pattern) for c in facts.claim), pattern


@PAPER
def test_readme_has_the_commands_and_the_generated_block(paper: str) -> None:
    text = (PAPERS / paper / "README.md").read_text(encoding="utf-8")
    assert all(marker in text for marker in BLOCK)
    assert "repro claim" in text


@PAPER
def test_audit_answers_every_count_that_needs_no_data(paper: str) -> None:
    import importlib

    counted = importlib.import_module(f"papers.{paper}.audit").audit(None)[0]
    assert counted
    assert all(isinstance(value, int | float) for value in counted.values())


@PAPER
def test_smoke_ends_finite_and_repeats(paper: str, tmp_path: Path) -> None:
    smoke(paper, tmp_path / "a", "--seed", "1")
    smoke(paper, tmp_path / "b", "--seed", "1", "--deterministic")
    first = what_was_measured(tmp_path / "a")
    assert first == what_was_measured(tmp_path / "b")
    assert [record["status"] for record in first] == ["finished"]
    assert final_weights(tmp_path / "a") == final_weights(tmp_path / "b")
    assert all(record["curves"] for record in first)


@PAPER
def test_a_seed_does_not_depend_on_its_company(paper: str, tmp_path: Path) -> None:
    smoke(paper, tmp_path / "together", "--seed", "0-2")
    smoke(paper, tmp_path / "alone", "--seed", "1")
    together = {record.seed: record for record in records_of(tmp_path / "together")}
    (alone,) = records_of(tmp_path / "alone")
    assert together.keys() == {0, 1, 2}
    if paper == "vae":  # on some processors the sums of a stack are cut otherwise than those of a single net
        assert together[1].metrics == pytest.approx(alone.metrics, rel=1e-6, abs=1e-6)
    else:
        assert together[1].metrics == alone.metrics
    assert together[0].metrics != alone.metrics or together[0].curves != alone.curves


class Killed(Exception):
    """Stands in for a kill at a chosen step."""


@PAPER
def test_resumed_equals_uninterrupted(paper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from common.run import Run

    whole = tmp_path / "whole"
    smoke(paper, whole, "--seed", "0-1")
    steps = Run.steps

    def killed_after(self, total, state, every=None):  # type: ignore[no-untyped-def]
        for done, step in enumerate(steps(self, total, state, 1), 1):
            yield step
            if done == max(2, total // 3):
                raise Killed

    torn = tmp_path / "torn"
    monkeypatch.setattr(Run, "steps", killed_after)
    with pytest.raises(Killed):
        launch(paper, ["--preset", "smoke", "--device", "cpu", "--output-dir", str(torn), "--seed", "0-1"])
    assert not records_of(torn)
    monkeypatch.undo()
    with pytest.raises(SystemExit) as stop:
        launch(paper, ["--resume", str(torn)])
    assert stop.value.code == 0
    assert what_was_measured(torn) == what_was_measured(whole)
    assert final_weights(torn) == final_weights(whole)
    (lost, *kept) = sorted(torn.glob("**/records/*.json"))  # as if killed while writing records
    before, content = kept[0].read_bytes(), what_was_measured(torn)
    lost.unlink()
    with pytest.raises(SystemExit) as stop:
        launch(paper, ["--resume", str(torn)])
    assert stop.value.code == 0
    assert what_was_measured(torn) == content
    assert kept[0].read_bytes() == before
    logs = [[path.read_text() for path in sorted(folder.glob("**/log.jsonl"))] for folder in (torn, whole)]
    assert logs[0] == logs[1]


@PAPER
@pytest.mark.parametrize("processes", [1, 2])
def test_sigkill_at_a_random_moment_loses_nothing(paper: str, processes: int, tmp_path: Path, script) -> None:  # type: ignore[no-untyped-def]
    common = ["--device", "cpu", "--checkpoint-minutes", "0"]
    whole = script(
        f"papers.{paper}.train", "--preset", "smoke", "--seed", "0-1", "--output-dir", str(tmp_path / "whole"), *common,
        processes=processes,
    )  # fmt: skip
    assert whole.returncode == 0, whole.stderr
    torn = tmp_path / "torn"
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", f"papers.{paper}.train", "--preset", "smoke", "--seed", "0-1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    process = subprocess.Popen(
        [*command, "--output-dir", str(torn), *common],
        cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(torn.glob("**/checkpoints*/step-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.Random(f"{paper}{processes}").uniform(0, 0.5))
    workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for one in (*workers, process):  # workers outlive their launcher, and would go on writing
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(workers)
    resumed = script(f"papers.{paper}.train", "--resume", str(torn), "--device", "cpu", processes=processes)
    assert resumed.returncode == 0, resumed.stderr
    assert what_was_measured(torn) == what_was_measured(tmp_path / "whole")
    assert final_weights(torn) == final_weights(tmp_path / "whole")


@PAPER
def test_mistakes_get_one_line_that_names_the_nearest(paper: str) -> None:
    field = dataclasses.fields(next(iter(presets(paper).values())))[1].name.replace("_", "-")
    with pytest.raises(UserError, match="unknown preset 'smok'; did you mean smoke"):
        parse(paper, ["--preset", "smok"])
    with pytest.raises(UserError, match=f"unknown field --{field}x; did you mean --{field}"):
        parse(paper, [f"--{field}x", "1"])
    with pytest.raises(UserError, match="not a list of seeds"):
        parse(paper, ["--seed", "a"])
    with pytest.raises(UserError, match="no run there"):
        parse(paper, ["--resume", "does-not-exist"])


@PAPER
def test_paper_presets_say_which_data_is_missing(paper: str, script, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    name, preset = next(
        ((n, p) for n, p in presets(paper).items() if "/" in p.dataset and not p.dataset.startswith(("gen", "syn"))),
        (None, None),
    )
    if preset is None:
        assert all(p.dataset.startswith(("generated/", "synthetic/")) for p in presets(paper).values())
        return
    done = script(
        f"papers.{paper}.train", "--preset", name, "--data-dir", str(tmp_path), "--output-dir", str(tmp_path / "run"),
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2
    assert last.startswith("error: ")
    assert preset.dataset.split("/")[-1] in last
    assert "PAPERS_DATA" in last
