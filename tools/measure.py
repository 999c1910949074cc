"""Measuring claims: runs for missing seeds, audits, the queue of open claims, and what this machine can reach."""

import importlib
import math
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.claims import Claim, Side, config_differences, deviations, load, presets
from common.cli import format_seeds
from common.data import hub
from common.errors import UserError
from common.paths import ROOT, RUNS, data_dir, paper_names
from common.records import Record, accept, load_all, read
from tools.rows import judge_all, runnable
from tools.verdicts import Verdict, judge


def measure(claim: Claim, seeds: int | None, fresh: bool, device: str, mirror: str | None) -> tuple[Verdict, float]:
    """Run what a claim still needs; returns its verdict and the seconds spent now.

    Raises:
        UserError: the claim cannot be run here, or its run failed.
    """
    begun = time.monotonic()
    if claim.kind == "count":
        return judge(claim, [audit(claim.paper, mirror, record=not fresh)]), time.monotonic() - begun
    if not runnable(claim):
        raise UserError(f"{claim.id} has no preset here: {claim.note or 'it is listed, and cannot be run yet'}")
    wanted = range(seeds or claim.seeds_asked)
    records = [] if fresh else list(load_all(claim.paper))
    ran = False
    for preset in dict.fromkeys(side.preset for side in claim.measured_by()):
        have = recorded_seeds(records, preset)
        missing = [seed for seed in wanted if seed not in have]
        if missing:
            ran = True
            records += run(claim.paper, preset, missing, device, mirror, record=not fresh)
    return judge(claim, records), time.monotonic() - begun if ran else 0.0


def recorded_seeds(records: Iterable[Record], preset: str) -> set[int]:
    """Seeds with a record made exactly by the preset as it stands today."""
    return {r.seed for r in records if r.preset == preset and not config_differences(r.paper, preset, r.config)}


def run(paper: str, preset: str, seeds: list[int], device: str, mirror: str | None, record: bool) -> list[Record]:
    """Run a paper's script, and read the records it leaves.

    Raises:
        UserError: the script failed (it has said why).
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{preset}-", dir=_made(RUNS / paper)))
    command = [sys.executable, "-m", f"papers.{paper}.train", "--preset", preset, "--seed", format_seeds(seeds)]
    command += ["--device", device, "--output-dir", str(folder), *(["--record"] if record else [])]
    command += ["--data-dir", mirror] if mirror else []
    print(f"{paper} {preset}: seeds {format_seeds(seeds)}", file=sys.stderr, flush=True)
    # The script speaks on standard error (2): standard output belongs to the table, or the JSON, of `repro`.
    code = subprocess.run(command, cwd=ROOT, stdout=2).returncode
    if code:
        if not list(folder.glob("**/step-*")):
            shutil.rmtree(folder, ignore_errors=True)
            sys.exit(code)  # its own message says why
        raise UserError(
            f"the run of {preset} ended early (exit {code}); go on with "
            f"python -m papers.{paper}.train --resume {folder}"
        )
    return [read(path) for path in sorted(folder.glob("**/records/*.json"))]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def audit(paper: str, mirror: str | None, record: bool) -> Record:
    """The counts of a paper as a record of the preset `audit`; `record` puts it on the leaderboard where it is news."""
    from datetime import UTC, datetime

    from common import machine

    begun, started = time.monotonic(), datetime.now(UTC)
    before = [audited for audited in load_all(paper) if audited.preset == "audit"]
    module = importlib.import_module(f"papers.{paper}.audit")
    counts, data = module.audit(data_dir(mirror))
    metrics: dict[str, float | None] = {name: float(value) for name, value in counts.items()}
    import torch

    spoken = {
        claim.id: deviations(claim, Side(label="ours", preset="audit", metric=claim.metric), {}, data)
        for claim in load(paper).claim
        if claim.kind == "count" and claim.metric in metrics
    }
    made = Record(
        paper=paper,
        preset="audit",
        overrides={},
        config={},
        seed=len(before),
        stacked=1,
        status="finished",
        claims=list(spoken),
        deviations=spoken,
        metrics=metrics,
        curves={},
        data=data,
        precision="no",
        processes=1,
        started=started.isoformat(timespec="seconds"),
        wall_seconds=round(time.monotonic() - begun, 3),
        steps_per_second=None,
        **machine.origin(paper),
        **machine.circumstances(torch.device("cpu")),
    )
    if record and not (before and before[-1].metrics == made.metrics):
        accept(made)
    return made


@dataclass(frozen=True)
class Open:
    """Claims that the same runs would settle."""

    claims: list[Claim]
    verdict: str
    minutes: float | None  # what is still to be spent; None where nobody has estimated it
    seeds_missing: int
    command: str


def queue(device: str, minutes: float | None) -> list[Open]:
    """What is open and can be run, cheapest first; claims measured by the same presets stand together."""
    together: dict[tuple[str, ...], Open] = {}
    for judged in judge_all().values():
        for claim, verdict in judged:
            if verdict.settled or claim.reach != "open" or not runnable(claim):
                continue
            asked = verdict.seeds_needed or claim.seeds_asked
            if verdict.name == "undecided":
                asked = 2 * verdict.n
            missing = max(asked - verdict.n, 0) if not verdict.deviations else 0
            if not missing:
                continue  # more seeds would not settle it
            key = (claim.paper, *dict.fromkeys(side.preset for side in claim.measured_by()))
            if key in together:
                together[key].claims.append(claim)
                continue
            whole = claim.cpu_minutes if device == "cpu" else claim.gpu_minutes
            cost = 0.1 if claim.kind == "count" else None if whole is None else whole * missing / claim.seeds_asked
            if claim.kind == "count":
                text = f"repro audit {claim.paper} --record"
            else:
                more = f" --seeds {asked}" if asked > claim.seeds_asked else ""
                text = f"repro claim {claim.id}{more}{' --device cuda' if device == 'cuda' else ''}"
            together[key] = Open([claim], verdict.name, cost, missing, text)
    items = [item for item in together.values() if minutes is None or (item.minutes or math.inf) <= minutes]
    return sorted(items, key=lambda item: (item.minutes or math.inf, item.claims[0].id))


def examine(mirror: str | None) -> dict[str, Any]:
    """What `repro doctor` reports."""
    import torch

    from common.machine import device_name

    versions = {"python": platform.python_version()}
    for name in (
        "torch",
        "accelerate",
        "datasets",
        "transformers",
        "torch-geometric",
        "numba",
        "numpy",
        "scipy",
        "tyro",
    ):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing: set up with `make test`, or pip install -c constraints.txt -e ."
    devices = [device_name(torch.device("cpu"))]
    devices += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    local, online = data_dir(mirror), hub.reachable()
    sets = []
    for paper in paper_names():
        facts = load(paper)
        for data in facts.data:
            if data.name.startswith(("generated/", "synthetic/")):
                state = "made by the program"
            elif local and _in_mirror(local, data.name):
                state = "in the local mirror"
            elif data.reach == "gated":
                state = "gated"
            else:
                state = "on the network" if online else "missing"
            blocked = state in ("missing", "gated")
            blocks = [c.id for c in facts.claim if blocked and _needs(c, data.name)]
            sets.append({"name": data.name, "paper": paper, "state": state, "source": data.source, "blocks": blocks})
    return {"versions": versions, "devices": devices, "mirror": str(local or ""), "hub": online, "data": sets}


def _in_mirror(local: Path, name: str) -> bool:
    return any((local / folder).is_dir() for folder in (f"hub/{name}", name, name.replace("Planetoid", "planetoid")))


def _needs(claim: Claim, name: str) -> bool:
    known = presets(claim.paper)
    return any(getattr(known.get(side.preset), "dataset", None) == name for side in claim.measured_by())
