"""Speed: each paper's work beside the best that others offer, in one process, taking turns; records and their table.

What is measured is in `papers/<name>/speed.py`. Absolute times are one machine's at one moment, and others may be at
work on it; ratios of turns taken one after the other in one process survive that.
"""

import ctypes
import gc
import hashlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import UserError
from common.paths import LEADERBOARDS, PAPERS, ROOT, paper_names
from common.records import write_atomically

SPEED = LEADERBOARDS / "speed"
TURNS = 9
TURN_SECONDS = 0.15  # a contender repeats a short step until its turn lasts so long
OURS = "ours"


class Contender(BaseModel):
    """One way to do the work, and what it took."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="`ours`, or the peer's")
    source: str = Field(description="package and version, or checkout and commit")
    same: bool = Field(description="whether it does the same work; where not, it is shown and not counted")
    note: str = ""
    seconds: list[float] = Field(min_length=1, description="of one step, turn by turn")
    memory_mib: float | None = Field(description="most memory of the second step, on top of net and inputs")
    parameters: int = Field(ge=0, description="numbers that an update changes")
    flops: float = Field(ge=0, description="of its products and convolutions, as torch's counter sees them")

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Grown(BaseModel):
    """How our step grows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str
    sizes: list[int] = Field(min_length=2)
    seconds: list[float] = Field(description="of one step, the least of several")
    memory_mib: list[float | None]


class SpeedRecord(BaseModel):
    """One race: immutable, one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    paper: str = Field(pattern=r"^[a-z0-9]+$")
    case: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    what: str
    dtype: Literal["float32", "bfloat16"]
    clock: Literal["processor", "wall"] = Field(description="processor time of the process, or the clock on the wall")
    threads: int = Field(ge=1)
    load: list[float] = Field(description="load average before and after: what else the machine did")
    peaks: dict[str, float] = Field(description="measured here and now: FLOP/s of products, convolutions; bytes/s")
    floor_seconds: float = Field(ge=0, description="FLOPs over those peaks, and the optimiser's bytes over memory's")
    contenders: list[Contender] = Field(min_length=1, description="ours first")
    absent: dict[str, str] = Field(description="peers that were not here, and how to get them")
    growth: Grown | None
    commit: str
    dirty: bool | None
    versions: dict[str, str]
    device: str
    started: str = Field(description="UTC, ISO 8601")
    hash: str = ""

    def digest(self) -> str:
        fields = self.model_dump(mode="json", exclude={"hash"})
        return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def to_json(self) -> str:
        """One top-level field a line."""
        fields = self.model_dump(mode="json") | {"hash": self.digest()}
        lines = (f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in fields.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def file_name(self) -> str:
        when = "".join(c for c in self.started[:19] if c.isdigit())
        return f"{self.paper}-{self.case}-{when}.json"

    @property
    def ours(self) -> Contender:
        return self.contenders[0]

    @property
    def rivals(self) -> list[Contender]:
        """Those who do the same work, fastest first."""
        return sorted((c for c in self.contenders[1:] if c.same), key=lambda c: c.median)

    @property
    def fraction(self) -> float | None:
        """Of the floor: 1 where no time is spent but on what must be computed."""
        return self.floor_seconds / self.ours.median if self.floor_seconds else None

    def ratio(self, peer: Contender) -> tuple[float, float, float]:
        """The peer's time over ours, turn by turn: (lower quartile, median, upper quartile); above 1 we are faster."""
        ratios = sorted(p / o for p, o in zip(peer.seconds, self.ours.seconds, strict=True))
        if len(ratios) < 2:
            return ratios[0], ratios[0], ratios[0]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, middle, high


# ---- measuring


@dataclass(frozen=True)
class Way:
    """How to measure: turns, threads, whether peers race, whether growth is measured."""

    turns: int = TURNS
    threads: int = 1
    peers: bool = False
    growth: bool = False


def cases(paper: str) -> Any:
    """The paper's `speed.py`.

    Raises:
        UserError: no such paper, or it says nothing about speed.
    """
    if paper not in paper_names():
        raise UserError(f"no paper {paper!r}; choose from {', '.join(paper_names())}")
    if not (PAPERS / paper / "speed.py").exists():
        raise UserError(f"{paper} has no speed.py, so nothing of it is timed")
    return importlib.import_module(f"papers.{paper}.speed")


def timed_papers() -> list[str]:
    return [paper for paper in paper_names() if (PAPERS / paper / "speed.py").exists()]


def race(paper: str, case_name: str, way: Way, say: Callable[[str], None] = lambda text: None) -> SpeedRecord:
    """Run one case: contenders take turns, then each goes through a process of its own for its memory."""
    import torch

    from common import machine
    from common.speed import Missing

    settle(way.threads)
    found = cases(paper)
    case = found.CASES[case_name]
    started, load = datetime.now(UTC), [os.getloadavg()[0]]
    steps, absent = {OURS: case.ours()}, {}
    for name, peer in case.peers.items() if way.peers else ():
        try:
            steps[name] = peer.build()
        except (ImportError, Missing) as error:
            absent[name] = str(error)
    seconds = turns(steps, way)
    say(f"{paper}/{case_name}: " + ", ".join(f"{k} {1e3 * statistics.median(v):.3g} ms" for k, v in seconds.items()))
    measured = peaks(way.threads, case.dtype)
    counts = {name: flops(step.run) for name, step in steps.items()}
    needed = case.flops or counts[OURS]
    contenders = []
    for name, step in steps.items():
        peer = case.peers.get(name)
        contenders.append(
            Contender(
                name=name,
                source=origin_of(peer.source) if peer else "this repository",
                same=peer.same if peer else True,
                note=peer.note if peer else "",
                seconds=[float(f"{s:.6g}") for s in seconds[name]],
                memory_mib=in_a_process("memory", paper, case_name, name, way.threads),
                parameters=step.parameters,
                flops=sum(counts[name]),
            )
        )
    return SpeedRecord(
        paper=paper,
        case=case_name,
        what=case.what,
        dtype=case.dtype,
        clock=clock_of(way.threads)[0],
        threads=way.threads,
        load=[round(v, 2) for v in (*load, os.getloadavg()[0])],
        peaks={name: float(f"{value:.4g}") for name, value in measured.items()},
        floor_seconds=floor(needed, steps[OURS].parameters, case.optimizer, measured),
        contenders=contenders,
        absent=absent,
        growth=grow(paper, way) if way.growth else None,
        versions=machine.library_versions(),
        device=machine.device_name(torch.device("cpu")),
        started=started.isoformat(timespec="seconds"),
        **machine.origin(paper),
    )


def settle(threads: int) -> None:
    """The process as a run has it."""
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # as `common.run` does; peers gain by it too
    torch.manual_seed(0)


def clock_of(threads: int) -> tuple[Literal["processor", "wall"], Callable[[], float]]:
    """One thread is timed by the processor, which does not count while others have it; several by the wall."""
    return ("processor", time.process_time) if threads == 1 else ("wall", time.perf_counter)


def turns(steps: dict[str, Any], way: Way) -> dict[str, list[float]]:
    """Seconds of a step, turn by turn, in each contender's own number of repetitions."""
    from common.machine import keep_pages

    clock = clock_of(way.threads)[1]
    repeats: dict[str, int] = {}
    for name, step in steps.items():  # the warm-up: two steps of each, or three short ones
        keep_pages(name == OURS)
        step.run()
        begun = clock()
        step.run()
        if clock() - begun < TURN_SECONDS:
            begun = clock()
            step.run()
        repeats[name] = max(1, min(200, round(TURN_SECONDS / max(clock() - begun, 1e-6))))
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(way.turns):
        order = list(steps.items())
        for name, step in order if turn % 2 == 0 else reversed(order):
            keep_pages(name == OURS)  # as `common.run` has it; a peer's script leaves the allocator alone
            if repeats[name] > 1:
                step.run()
            begun = clock()
            for _ in range(repeats[name]):
                step.run()
            found[name].append((clock() - begun) / repeats[name])
    return found


class _Untracked(nullcontext[None]):
    parents = frozenset({"Global"})


def flops(run: Callable[[], object]) -> tuple[float, float]:
    """Floating-point operations of (matrix products, convolutions) in a call, by torch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Untracked()  # type: ignore[assignment]  # its hooks refuse the gradient of a penalty
    with counter:
        run()
    by_operation = {str(op): n for op, n in counter.get_flop_counts().get("Global", {}).items()}
    convolutions = sum(n for op, n in by_operation.items() if "conv" in op)
    return float(sum(by_operation.values()) - convolutions), float(convolutions)


def floor(needed: tuple[float, float], parameters: int, optimizer: str, measured: dict[str, float]) -> float:
    """Seconds that the work takes where nothing is lost: operations at the measured peaks, and the update's traffic."""
    from common.speed import WORDS

    products, convolutions = needed
    compute = products / measured["matmul"] + convolutions / measured["convolution"]
    return compute + 4 * WORDS[optimizer] * parameters / measured["memory"]


@cache
def peaks(threads: int, dtype: str) -> dict[str, float]:
    """What this machine reaches now: FLOP/s of large products and convolutions, and bytes/s of a large copy."""
    import torch
    import torch.nn.functional as F

    kind, clock = getattr(torch, dtype), clock_of(threads)[1]
    a, b = (torch.randn(1024, 1024).to(kind) for _ in range(2))
    x = torch.randn(16, 128, 28, 28).to(kind, memory_format=torch.channels_last)
    w = torch.randn(128, 128, 3, 3).to(kind, memory_format=torch.channels_last)
    source = torch.randn(2**25)
    target = torch.empty_like(source)

    def best(work: Callable[[], object]) -> float:
        work()
        taken = []
        for _ in range(7):
            begun = clock()
            work()
            taken.append(clock() - begun)
        return min(taken)

    with torch.no_grad():
        return {
            "matmul": 2 * 1024**3 / best(lambda: a @ b),
            "convolution": 2 * 16 * 28 * 28 * 128 * 128 * 9 / best(lambda: F.conv2d(x, w, padding=1)),
            "memory": 2 * 4 * 2**25 / best(lambda: target.copy_(source)),
        }


def grow(paper: str, way: Way) -> Grown:
    """Least seconds of several steps, and memory, at every size."""
    growth, clock = cases(paper).GROWTH, clock_of(way.threads)[1]
    seconds, memory = [], []
    for size in growth.sizes:
        step = growth.step(size)
        step.run()
        taken: list[float] = []
        while len(taken) < 2 or (len(taken) < 30 and sum(taken) < 0.5):
            begun = clock()
            step.run()
            taken.append(clock() - begun)
        seconds.append(float(f"{min(taken):.4g}"))
        memory.append(in_a_process("growth", paper, str(size), "", way.threads))
    return Grown(what=growth.what, sizes=list(growth.sizes), seconds=seconds, memory_mib=memory)


def origin_of(source: str) -> str:
    """`transformers 5.23.0`, or a checkout's folder and commit."""
    from common.speed import PEERS

    try:
        return f"{source.replace('_', '-')} {version(source)}"
    except PackageNotFoundError:
        path = Path(os.environ.get(PEERS, "")) / source
        done = subprocess.run(["git", "-C", str(path), "log", "-1", "--format=%h"], capture_output=True, text=True)
        return f"{source} {done.stdout.strip()}".strip()


# ---- memory: a process for each contender


def in_a_process(kind: str, paper: str, what: str, contender: str, threads: int) -> float | None:
    """Mebibytes, by a process of its own; None where the system does not say."""
    program = "import sys; from tools.bench import of_memory; of_memory(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, kind, paper, what, contender, str(threads)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"the memory of {paper} {what} {contender} was not measured: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def of_memory(kind: str, paper: str, what: str, contender: str, threads: str) -> None:
    """Print the growth of this process's resident memory, at its highest, over what it was before the first step.

    A step goes first: what importing and compiling takes for a while does not count, for the system lets the peak be
    reset. What stays of compiling does. Numba imports most of itself, 60 MiB, at its first call: that is a library, as
    those are that a peer's builder imports.
    """
    from numba.core.registry import cpu_target

    from common.machine import keep_pages

    cpu_target.target_context.refresh()

    settle(int(threads))
    found = cases(paper)
    if kind == "growth":
        step = found.GROWTH.step(int(what))
    else:
        case = found.CASES[what]
        step = case.ours() if contender == OURS else case.peers[contender].build()
    if not Path("/proc/self/clear_refs").exists():
        print("null")
        return
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # or a step would live on what building it has freed
    before = resident("VmRSS")
    if contender in (OURS, ""):
        keep_pages()
    step.run()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step.run()
    print(round(max(0.0, resident("VmHWM") - before), 1))


def resident(name: str) -> float:
    """A line of /proc/self/status in mebibytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise UserError(f"/proc/self/status has no {name}")


# ---- records and their table


def read(path: Path) -> SpeedRecord:
    """Read and check one record.

    Raises:
        UserError: not a record, changed since it was written, or under another's name.
    """
    try:
        record = SpeedRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: not a speed record ({'.'.join(map(str, first['loc']))}: {first['msg']})") from None
    if record.hash != record.digest():
        raise UserError(f"{path}: changed since it was written (its hash differs); restore it from version control")
    if path.name != record.file_name():
        raise UserError(f"{path}: should be named {record.file_name()}")
    return record


def keep(record: SpeedRecord, folder: Path = SPEED) -> Path:
    """Write a record; an existing one is never replaced."""
    path = folder / record.file_name()
    if path.exists():
        raise UserError(f"{path.name} exists already: records are immutable")
    write_atomically(path, record.to_json())
    return path


def recorded(folder: Path) -> list[Path]:
    """Files of records."""
    return sorted(folder.glob("*-*.json"))


def newest(folder: Path = SPEED) -> list[SpeedRecord]:
    """The latest record of each paper, case, device and number of threads, in the order of papers and cases."""
    found: dict[tuple[str, str, str, int], SpeedRecord] = {}
    for path in recorded(folder):
        record = read(path)
        key = (record.paper, record.case, record.device, record.threads)
        if key not in found or found[key].started < record.started:
            found[key] = record
    return [found[key] for key in sorted(found)]


COLUMNS = ("paper", "work", "ours", "best peer", "its time / ours", "memory / its", "of the floor", "other peers")


def rows(records: list[SpeedRecord]) -> list[dict[str, Any]]:
    """A row for each race, as plain data: for the page, for JSON, and, by COLUMNS, for a table."""
    made = []
    for record in records:
        ours, rivals = record.ours, record.rivals
        others = [c for c in record.contenders[1:] if not rivals or c is not rivals[0]]
        best = rivals[0] if rivals else None
        low, middle, high = record.ratio(best) if best else (None, None, None)
        memory = None
        if best and ours.memory_mib is not None and best.memory_mib:
            memory = ours.memory_mib / best.memory_mib
        said = [f"{c.name} {record.ratio(c)[1]:.3g}{'' if c.same else ' (' + c.note + ')'}" for c in others]
        said += [f"{name}: not here" for name in record.absent]
        made.append(
            {
                "paper": f"{record.paper}/{record.case}",
                "work": f"{record.what}; {record.dtype}, {record.threads} thread{'s' * (record.threads > 1)}",
                "ours": time_text(ours.median),
                "best peer": f"{best.name} ({best.source})" if best else "",
                "its time / ours": f"{middle:.2f} ({low:.2f} to {high:.2f})" if best else "",
                "memory / its": "" if memory is None else f"{memory:.2f}",
                "of the floor": "" if record.fraction is None else f"{record.fraction:.2f}",
                "other peers": ", ".join(said),
                "ratio": middle,
                "quartiles": [low, high],
                "memory_ratio": memory,
                "memory_mib": ours.memory_mib,
                "fraction": record.fraction,
                "seconds": ours.median,
                "growth": record.growth.model_dump() if record.growth else None,
            }
        )
    return made


def time_text(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{1e3 * seconds:.3g} ms"


def page(folder: Path = SPEED) -> str:
    """`leaderboards/speed/README.md`."""
    records = newest(folder)
    found = rows(records)
    lines = [
        "<!-- generated by `repro bench --render`; do not edit -->",
        "# Speed",
        "",
        "A training step (where nothing else is said) beside what people would use instead: same sizes, batch,",
        "precision and optimiser, in one process, taking turns after a warm-up. The ratio is the peer's time over",
        "ours, turn by turn: median, and quartiles in brackets; above 1 ours is faster. One thread is timed by the",
        "processor's clock. Ours has the allocator as a run has it (`common.machine.keep_pages`), a peer as it is.",
        "Memory is the resident memory of a process of its own, at its highest, on top of libraries, net and inputs",
        "(what numba imports of itself when it is first used, some 60 MiB, is a library).",
        "The floor is FLOPs over the peaks of products and convolutions measured in the same process, and the",
        "optimiser's traffic over the measured bandwidth; the fraction is floor over time. A record says all of it.",
        "`repro bench PAPER --peers` repeats a row.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(str(row[c]).replace("|", "\\|") for c in COLUMNS) + " |" for row in found),
        "",
    ]
    ratios = [r["ratio"] for r in found if r["ratio"] is not None]
    if ratios:
        ahead, clear = sum(r >= 1 for r in ratios), sum(r >= 1.5 for r in ratios)
        lines += [f"{ahead} of {len(ratios)} races are won, {clear} by half or more.", ""]
    grown = [(r.paper, r.growth) for r in records if r.growth]
    if grown:
        lines += ["## Growth", "", "| paper | size | step | memory |", "|---|---|---|---|"]
        for paper, growth in grown:
            time_, memory = (", ".join(v) for v in growth_text(growth))
            lines.append(
                f"| {paper} | {growth.what} {', '.join(f'{n:,}' for n in growth.sizes)} | {time_} | {memory} |"
            )
        lines.append("")
    circumstances = sorted({f"{r.device}, torch {r.versions.get('torch', '?')}" for r in records})
    lines += [f"Measured on {'; '.join(circumstances)}."] if circumstances else ["Nothing is measured yet."]
    loads = [v for r in records for v in r.load]
    if loads:
        lines.append(f"Others were at work there too: load averages {min(loads):g} to {max(loads):g}.")
    return "\n".join(lines) + "\n"


def growth_text(growth: Grown) -> tuple[list[str], list[str]]:
    return (
        [time_text(s) for s in growth.seconds],
        ["?" if m is None else f"{m:.0f} MiB" for m in growth.memory_mib],
    )


def pages(folder: Path = SPEED) -> dict[Path, str]:
    """Every generated file of the speed leaderboard: path -> content."""
    schema = json.dumps(SpeedRecord.model_json_schema(), indent=1, ensure_ascii=False) + "\n"
    return {folder / "README.md": page(folder), folder / "speed.schema.json": schema}


def render(folder: Path = SPEED) -> list[str]:
    """Write the pages that changed; returns their names."""
    changed = []
    for path, content in pages(folder).items():
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            write_atomically(path, content)
            changed.append(path.name)
    return changed


def check(folder: Path = SPEED) -> list[str]:
    """What is wrong: invalid records, unknown papers, a stale table."""
    problems = []
    for path in recorded(folder):
        try:
            if read(path).paper not in paper_names():
                problems.append(f"{path.name}: no such paper")
        except UserError as error:
            problems.append(str(error))
    if not problems:
        for path, content in pages(folder).items():
            if not path.exists() or path.read_text(encoding="utf-8") != content:
                problems.append(f"{path.name} is stale: repro bench --render")
    return problems
