"""Measuring claims: runs for missing seeds, audits, the queue of open claims, and what this machine can reach."""

import contextlib
import importlib
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.claims import Claim, Data, Side, config_differences, deviations, load, presets
from common.cli import format_seeds, parse
from common.data import hub
from common.errors import STOPPED, UserError
from common.paths import ROOT, RUNS, data_dir, paper_names
from common.records import Record, accept, alone, load_all, read
from tools.rows import judge_paper, runnable
from tools.verdicts import Verdict, judge


@dataclass(frozen=True)
class Way:
    """How a claim is to be measured.

    Attributes:
        seeds: how many; as many as the claim asks if None.
        fresh: run all of them anew, and judge by these runs alone.
        cut_down: run the claim's cut-down presets in place of the paper's; such runs deviate.
        changes: FIELD=VALUE, over the presets; such runs deviate too.
        device, mirror: as the paper's script takes them.
    """

    seeds: int | None = None
    fresh: bool = False
    cut_down: bool = False
    changes: tuple[str, ...] = ()
    device: str = "auto"
    mirror: str | None = None

    @property
    def fields(self) -> list[str]:
        """The changes as the script's arguments; raises a UserError for what is not FIELD=VALUE."""
        words = []
        for change in self.changes:
            name, equals, value = change.partition("=")
            if not (name and equals):
                raise UserError(f"--set {change!r} should read FIELD=VALUE, e.g. --set batch_size=64")
            words += [f"--{name.replace('_', '-')}", *value.split(",")]
        return words


def measure(claim: Claim, way: Way) -> tuple[Verdict, float]:
    """Run what a claim still needs; returns its verdict and the seconds spent now.

    Raises:
        UserError: the claim cannot be run here, or its run failed.
    """
    begun = time.monotonic()
    if claim.kind == "count":
        return judge(claim, [audit(claim.paper, way.mirror, record=not way.fresh)]), time.monotonic() - begun
    if not runnable(claim):
        raise UserError(f"{claim.id} has no preset here: {claim.note or 'it is listed, and cannot be run yet'}")
    sides = claim.measured_by()
    if way.cut_down and not all(side.cut_down for side in sides):
        raise UserError(f"{claim.id} has no cut-down presets; leave out --cut-down")
    wanted = range(way.seeds or claim.seeds_asked)
    records = [] if way.fresh else list(load_all(claim.paper))
    ran = False
    for preset in dict.fromkeys(side.cut_down[0] if way.cut_down else side.preset for side in sides):
        config = parse(claim.paper, ["--preset", preset, *way.fields]).config
        if not set(wanted) - recorded_seeds(records, preset, config):
            continue
        with contextlib.nullcontext() if way.fresh else alone(f"{claim.paper}-{preset}"):
            if not way.fresh:  # another process may have recorded some of them
                records = [*{record.hash: record for record in (*records, *load_all(claim.paper))}.values()]
            have = recorded_seeds(records, preset, config)
            missing = [seed for seed in wanted if seed not in have]
            if missing:
                ran = True
                records += run(claim.paper, preset, missing, way)
    return judge(claim, records), time.monotonic() - begun if ran else 0.0


def recorded_seeds(records: Iterable[Record], preset: str, config: Any) -> set[int]:
    """Seeds with a record of the preset, made by exactly this configuration."""
    return {r.seed for r in records if r.preset == preset and not config_differences(config, r.config)}


def run(paper: str, preset: str, seeds: list[int], way: Way) -> list[Record]:
    """Run a paper's script, and read the records it leaves.

    Raises:
        UserError: the script failed (it has said why).
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{preset}-", dir=_made(RUNS / paper)))
    command = [sys.executable, "-m", f"papers.{paper}.train", "--preset", preset, "--seed", format_seeds(seeds)]
    command += ["--device", way.device, "--output-dir", str(folder), *([] if way.fresh else ["--record"])]
    command += [*(["--data-dir", way.mirror] if way.mirror else []), *way.fields]
    print(f"{paper} {preset}: seeds {format_seeds(seeds)}", file=sys.stderr, flush=True)
    # The script speaks on standard error (2): standard output belongs to the table, or the JSON, of `repro`.
    with subprocess.Popen(command, cwd=ROOT, stdout=2) as process:
        before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))  # it saves, and stops
        try:
            code = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    if code:
        if not list(folder.glob("**/step-*")):
            shutil.rmtree(folder, ignore_errors=True)
            sys.exit(code)  # its own message says why
        again = f"python -m papers.{paper}.train --resume {folder}"
        if code == STOPPED:
            print(f"the run of {preset} was asked to stop; go on with {again}", file=sys.stderr)
            sys.exit(STOPPED)
        raise UserError(f"the run of {preset} ended early (exit {code}); go on with {again}")
    return [read(path) for path in sorted(folder.glob("**/records/*.json"))]


# ---- records made again


def verify(claim: Claim, mirror: str | None) -> list[tuple[Record, list[str]]]:
    """Repeat a committed run of each of a claim's presets, made on a platform like this one; nothing is kept.

    Returns:
        Each record of these runs with the differences of what came out now; none where all bits agree.

    Raises:
        UserError: the claim has no such record, its preset has changed since, or it measures time.
    """
    found: list[tuple[Record, list[str]]] = []
    reasons: list[str] = []
    for preset in dict.fromkeys(name for side in claim.measured_by() for name in side.presets):
        records = [record for record in load_all(claim.paper) if record.preset == preset]
        reasons += [reason for record in records if (reason := elsewhere(record))]
        here = [record for record in records if not elsewhere(record)]
        if preset == "audit" and here:  # counts that have changed since have a newer record
            found.append((here[-1], differences(here[-1], audit(claim.paper, mirror, record=False))))
        elif here:
            first = min(here, key=lambda record: record.wall_seconds)
            run = [record for record in here if (record.started, record.config) == (first.started, first.config)]
            again = {record.seed: record for record in repeat(run, mirror)}
            found += [(record, differences(record, again[record.seed])) for record in run]
    if not found:
        why = f"; one made elsewhere: {reasons[0]}" if reasons else ""
        raise UserError(f"{claim.id} has no record that could be repeated here{why}")
    return found


def elsewhere(record: Record) -> str:
    """Why a record cannot be expected to repeat here bit for bit; empty where it can."""
    import torch

    from common.machine import device_name

    def here(name: str) -> str:
        try:
            return platform.python_version() if name == "python" else version(name)
        except PackageNotFoundError:
            return "missing"

    if record.compiled:
        return "it was compiled"
    names = {"device": (record.device, device_name(torch.device("cpu")))}
    names |= {name: (there, here(name)) for name, there in record.versions.items()}
    return ", ".join(f"{name} {there}, here {now}" for name, (there, now) in names.items() if there != now)


def repeat(run: list[Record], mirror: str | None) -> list[Record]:
    """The run that left these records again, in a temporary folder: seeds that share a log are trained together.

    Raises:
        UserError: its preset has changed since.
        SystemExit: the run failed (it has said why).
    """
    record, seeds = run[0], format_seeds([record.seed for record in run])
    words = []
    for name, value in record.overrides.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    changed = config_differences(parse(record.paper, ["--preset", record.preset, *words]).config, record.config)
    if changed:
        raise UserError(f"preset {record.preset} has changed since ({', '.join(changed)}): nothing to compare with")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={record.processes}"]
    command = [sys.executable, *(launcher if record.processes > 1 else []), "-m", f"papers.{record.paper}.train"]
    command += ["--preset", record.preset, "--seed", seeds, "--device", "cpu", "--deterministic", *words]
    command += [*(["--precision", record.precision] if record.precision != "no" else [])]
    command += [*(["--data-dir", mirror] if mirror else [])]
    environment = os.environ | {"OMP_NUM_THREADS": str(record.threads), "ACCELERATE_USE_CPU": "true"}
    print(
        f"{record.paper} {record.preset}: seeds {seeds} again ({record.wall_seconds:.0f} s then)",
        file=sys.stderr,
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        command += ["--output-dir", f"{folder}/run"]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=2)
        if done.returncode:
            sys.exit(done.returncode)
        return [read(path) for path in Path(folder).glob("run/**/records/*.json")]


def differences(record: Record, again: Record) -> list[str]:
    """What differs between two records in what was read and measured, each as one line."""
    lines = []
    for kind in ("data", "metrics"):
        before, now = getattr(record, kind), getattr(again, kind)
        lines += [
            f"{kind}: {name} {before.get(name)} → {now.get(name)}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
    for name in sorted(record.curves.keys() | again.curves.keys()):
        before, now = (made.curves.get(name, [[], []]) for made in (record, again))
        if before != now:
            pairs = zip(zip(*before, strict=True), zip(*now, strict=True), strict=False)
            step = next((old[0] for old, new in pairs if old != new), "its end")
            lines.append(f"curve {name} differs from step {step} on")
    return lines


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


def queue(device: str, minutes: float | None, mirror: str | None) -> tuple[list[Open], int]:
    """What is open and can be run here, cheapest first, and how many claims wait for data that is not here.

    Claims measured by the same presets stand together. A data set out of reach is replaced by its stand-in, if any.
    """
    together: dict[tuple[str, ...], Open] = {}
    online, blocked = hub.reachable(), 0
    for paper in paper_names():
        records = list(load_all(paper))
        for claim, verdict in judge_paper(paper, records):
            if verdict.settled or claim.reach != "open" or not runnable(claim):
                continue
            stand_in = _stand_in(claim, mirror, online)
            if stand_in is None:
                blocked += 1
                continue
            asked = verdict.seeds_needed or claim.seeds_asked
            if verdict.name == "undecided":
                asked = 2 * verdict.n
            wanted = list(dict.fromkeys(side.preset for side in claim.measured_by()))
            missing = (
                [asked - verdict.n]
                if claim.kind == "count"
                else [
                    len(set(range(asked)) - recorded_seeds(records, preset, _with(claim.paper, preset, stand_in)))
                    for preset in wanted
                ]
            )
            if max(missing) <= 0:
                continue  # more seeds would not settle it
            key = (claim.paper, *wanted)
            if key in together:
                together[key].claims.append(claim)
                continue
            whole = claim.cpu_minutes if device == "cpu" else claim.gpu_minutes
            share = sum(missing) / (claim.seeds_asked * len(missing))
            cost = 0.1 if claim.kind == "count" else None if whole is None else whole * share
            if claim.kind == "count":
                text = f"repro audit {claim.paper} --record"
            else:
                text = f"repro claim {claim.id}"
                text += f" --seeds {asked}" if asked > claim.seeds_asked else ""
                text += " --device cuda" if device == "cuda" else ""
                text += f" --set dataset={stand_in}" if stand_in else ""
            together[key] = Open([claim], verdict.name, cost, max(missing), text)
    items = [item for item in together.values() if minutes is None or (item.minutes or math.inf) <= minutes]
    return sorted(items, key=lambda item: (item.minutes or math.inf, item.claims[0].id)), blocked


def _with(paper: str, preset: str, stand_in: str) -> Any:
    """The preset, on the stand-in where there is one."""
    config = presets(paper)[preset]
    return replace(config, dataset=stand_in) if stand_in else config


def _stand_in(claim: Claim, mirror: str | None, online: bool) -> str | None:
    """The data set to take in place of a claim's own: "" where that is within reach, None where neither is."""
    declared = {data.name: data for data in load(claim.paper).data}
    found = ""
    for name in {getattr(presets(claim.paper).get(side.preset), "dataset", "") for side in claim.measured_by()}:
        data = declared.get(name)
        if data is None or _state(data, mirror, online) not in ("missing", "gated"):
            continue
        other = declared.get(data.stand_in or "")
        if other is None or _state(other, mirror, online) in ("missing", "gated"):
            return None
        found = other.name
    return found


def _state(data: Data, mirror: str | None, online: bool) -> str:
    """Where a data set is to be had from this machine."""
    local = data_dir(mirror)
    if data.name.startswith(("generated/", "synthetic/")):
        return "made by the program"
    if data.name.startswith("sklearn/"):  # in the package itself
        return "with scikit-learn" if find_spec("sklearn") else "missing"
    if local and any(
        (local / folder).is_dir()
        for folder in (f"hub/{data.name}", data.name, data.name.replace("Planetoid", "planetoid"))
    ):
        return "in the local mirror"
    if data.reach == "gated":
        return "gated"
    return "on the network" if online and not data.name.startswith("local/") else "missing"


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
            state = _state(data, mirror, online)
            blocked = state in ("missing", "gated")
            blocks = [c.id for c in facts.claim if blocked and _needs(c, data.name)]
            sets.append({"name": data.name, "paper": paper, "state": state, "source": data.source, "blocks": blocks})
    found = {"versions": versions, "devices": devices, "threads": torch.get_num_threads()}
    return found | {"mirror": str(local or ""), "hub": online, "data": sets}


def _needs(claim: Claim, name: str) -> bool:
    known = presets(claim.paper)
    return any(getattr(known.get(side.preset), "dataset", None) == name for side in claim.measured_by())
