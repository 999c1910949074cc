"""Kill runs with SIGKILL at random moments, resume them, and compare each with its uninterrupted twin.

    python -m tests.killing --kills 200

Half of the kills come at a random time, half inside the writing of a checkpoint, a record or a log: before, in the
middle of, or right after a call that writes. A resumed run is killed again, up to four times, before it may end. Runs
are forked from a process that has imported everything and computed nothing, so that a kill costs little.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a forked process has no pool of threads
os.environ["ACCELERATE_USE_CPU"] = "true"

import torch

import common.run  # noqa: F401  (what every run imports)
from common.cli import launch
from common.records import read

PAPERS = ("gcn", "lstm", "ntm", "vae", "resnet", "dcgan", "transformer", "mamba", "moe", "snn")
IN_A_ROW = 4
WRITING = ((os, "fsync"), (os, "rename"), (os, "replace"), (shutil, "rmtree"), (torch, "save"))


class Writing:
    """Counts the calls that write, and kills this very process at one of them."""

    def __init__(self, fatal: int | None, moment: str) -> None:
        self.calls, self.fatal, self.moment = 0, fatal, moment
        for module, name in WRITING:
            setattr(module, name, self._watched(getattr(module, name)))

    def _watched(self, call: Any) -> Any:
        def watched(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            now = self.calls == self.fatal
            if now and self.moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if now and self.moment == "within" and call.__module__ == "torch.serialization":
                saved, file = arguments
                call(saved, whole := io.BytesIO())
                file.write(whole.getvalue()[: whole.tell() // 2])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **named)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return watched


def started(
    paper: str, argv: Sequence[str], processes: int, said: Path, fatal: int | None = None, moment: str = ""
) -> list[int]:
    """Fork the processes of one run; the last one dies at its `fatal`-th write. Returns their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 70
        try:
            descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            if processes > 1:
                where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
                os.environ.update({k: str(v) for k, v in (where | {"WORLD_SIZE": processes}).items()})
            # of processes that share a batch only the main one writes; of sharded seeds each does
            writing = Writing(fatal if rank == 0 else None, moment)
            os._exit = _noting(os._exit, writing, said.with_suffix(f".calls{rank}"))  # type: ignore[assignment]
            try:
                launch(paper, list(argv))
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return children


def _noting(leave: Any, writing: Writing, note: Path) -> Any:
    def noted(code: int) -> None:
        note.write_text(str(writing.calls))
        leave(code)

    return noted


def ended(children: list[int], kill_after: float | None) -> list[int]:
    """Wait for processes, killing all of them after so many seconds, or the rest when one was killed: exit codes."""
    codes: dict[int, int] = {}
    begun = time.monotonic()
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    codes[child] = os.waitstatus_to_exitcode(status)
        late = kill_after is not None and time.monotonic() - begun > kill_after
        if late or any(code < 0 for code in codes.values()):
            for child in children:
                if child not in codes:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
        if time.monotonic() - begun > 900:
            raise TimeoutError(f"processes {children} hang")
        time.sleep(0.005)
    return [codes[child] for child in children]


def left(folder: Path) -> dict[str, Any]:
    """What a finished run leaves, but the circumstances: logs, records, hashes of the newest checkpoints."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("**/log*.jsonl")):
        lines = path.read_text().splitlines()
        assert len(lines) == len(set(lines)), f"{path}: a line is there twice"
        found[str(path.relative_to(folder))] = lines
    for path in sorted(folder.glob("**/records/*.json")):
        keep = {"seed", "metrics", "curves", "config", "data", "status"}
        found[str(path.relative_to(folder))] = json.dumps(read(path).model_dump(include=keep))
    for checkpoints in sorted(folder.glob("**/checkpoints*")):
        newest = max(checkpoints.glob("step-*"))
        found[str(newest.relative_to(folder))] = hashlib.sha256((newest / "state.pt").read_bytes()).hexdigest()
    return found


def trial(paper: str, processes: int, kills: int, folder: Path, rng: random.Random) -> dict[str, Any]:
    """Kill runs of a paper's smoke preset `kills` times; raises an AssertionError where anything is lost."""
    importlib.import_module(f"papers.{paper}.train")
    fresh = ["--preset", "smoke", "--seed", "0-1", "--device", "cpu", "--checkpoint-minutes", "0"]
    said = folder / "said"
    for name in ("first", "whole"):  # the first one may compile, which takes longer than the run
        begun = time.monotonic()
        codes = ended(started(paper, [*fresh, "--output-dir", str(folder / name)], processes, said), None)
        seconds = time.monotonic() - begun
        assert codes == [0] * processes, said.read_text()
    calls = int(said.with_suffix(".calls0").read_text())
    whole = left(folder / "whole")
    assert whole == left(folder / "first")
    at_random = while_writing = chains = saved = half_written = 0
    while at_random + while_writing < kills:
        torn = folder / f"torn{chains}"
        chains += 1
        for attempt in range(IN_A_ROW + 1):
            argv = ["--resume", str(torn), "--device", "cpu", "--checkpoint-minutes", "0"]
            if not (torn / "run.json").exists():
                argv = [*fresh, "--output-dir", str(torn)]
            last = attempt == IN_A_ROW or at_random + while_writing >= kills
            writing = not last and rng.random() < 0.5
            fatal = rng.randint(1, max(calls * 2 // IN_A_ROW, 2)) if writing else None
            children = started(paper, argv, processes, said, fatal, rng.choice(("before", "within", "after")))
            after = None if last or writing else rng.uniform(0.2, 1) * seconds * 2 / IN_A_ROW
            codes = ended(children, after)
            if all(code == 0 for code in codes):
                break
            assert not last, said.read_text()
            assert -signal.SIGKILL in codes, said.read_text()
            while_writing, at_random = while_writing + writing, at_random + (not writing)
            saved += any(torn.glob("**/step-*"))
            half_written += any(path.suffix == ".tmp" for path in torn.glob("**/.*"))
        found = left(torn)
        differ = [name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)]
        assert not differ, f"{paper}, {processes} process(es), {torn}: {differ}"
        shutil.rmtree(torn)
    return {
        "paper": paper, "processes": processes, "kills at random": at_random, "kills while writing": while_writing,
        "with a checkpoint there": saved, "with a file half written": half_written, "runs compared": chains,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", nargs="+", default=PAPERS)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--kills", type=int, default=200, help="in all (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args(argv)
    cases = [(paper, processes) for paper in arguments.papers for processes in arguments.processes]
    for i, (paper, processes) in enumerate(cases):
        share = arguments.kills * (i + 1) // len(cases) - arguments.kills * i // len(cases)
        with tempfile.TemporaryDirectory() as folder:
            rng = random.Random(f"{arguments.seed} {paper} {processes}")
            print(json.dumps(trial(paper, processes, share, Path(folder), rng)), flush=True)


if __name__ == "__main__":
    main()
