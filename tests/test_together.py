"""Several processes at once: no corruption, no work done twice; one that dies takes the others with it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.paths import ROOT
from common.records import read

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def at_once(program: str, arguments: Sequence[Sequence[str]]) -> list[tuple[int, str, str]]:
    """Run a program several times side by side: exit code, standard output and error of each."""
    command = [sys.executable, "-c", program]
    started = [
        subprocess.Popen([*command, *more], cwd=ROOT, env=ENVIRONMENT, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for more in arguments
    ]  # fmt: skip
    said = [process.communicate(timeout=500) for process in started]
    return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


CLAIM = """
import sys
from pathlib import Path
import common.paths
folder = Path(sys.argv[1])
common.paths.RUNS, common.paths.RECORDS = folder / "runs", folder / "records"
import common.records
import tools.measure
common.records.load_all.__defaults__ = (None, common.paths.RECORDS)
run = tools.measure.subprocess.Popen
REDIRECTED = "import sys; from pathlib import Path; import common.paths; " \\
    f"common.paths.RUNS = Path({str(folder / 'runs')!r}); common.paths.RECORDS = Path({str(folder / 'records')!r}); " \\
    "from common.cli import launch; launch('lstm', sys.argv[1:])"
def started(command, **more):
    return run([sys.executable, "-c", REDIRECTED, *command[3:]], **more)
tools.measure.subprocess.Popen = started
from tools.repro import main
main(["claim", "lstm/table9/6a", "--seeds", "2", "--set", "max_sequences=400", "--set", "report_sequences=300",
      "--set", "test_sequences=64", "--set", "window_sequences=100"])
"""


def test_two_measurements_of_a_claim_do_its_work_once(tmp_path: Path) -> None:
    done = at_once(CLAIM, [[str(tmp_path)]] * 2)
    assert [code for code, *_ in done] == [0, 0], done
    assert sum(error.count("table9-6a: seeds 0-1") for *_, error in done) == 1
    assert len(list((tmp_path / "runs/lstm").glob("table9-6a-*"))) == 1
    kept = sorted((tmp_path / "records").rglob("*.json"))
    assert [read(path).seed for path in kept] == [0, 1]


JUDGE = """
import sys
from pathlib import Path
from accelerate import Accelerator
from common import extractors
from common.cli import parse
from common.run import Run
folder = Path(sys.argv[1])
run = Run(parse("vae", ["--preset", "smoke"]), Accelerator(cpu=True), "single", [0], folder)
print(extractors.classifier(run, "synthetic/8x8x1", folder / "judges").fingerprint)
"""


def test_what_runs_share_is_prepared_once(tmp_path: Path) -> None:
    done = at_once(JUDGE, [[str(tmp_path)]] * 3)
    assert [code for code, *_ in done] == [0, 0, 0], done
    assert sum(error.count("once on this machine") for *_, error in done) == 1
    assert len({out for _, out, _ in done}) == 1


BOARD = """
import shutil, sys
from pathlib import Path
import common.paths
import tools.board
from common.paths import ROOT
folder = Path(sys.argv[1])
written = []
def changed(path, content, write=tools.board.write_atomically):
    written.append(path)
    write(folder / path.relative_to(ROOT), content)
tools.board.write_atomically = changed
tools.board._text = lambda path: (folder / path.relative_to(ROOT)).read_text() \
    if (folder / path.relative_to(ROOT)).exists() else ""
tools.board.plots.write = lambda judged: []
tools.board.judge_all = lambda papers=None, judge=tools.board.judge_all: judge(["gcn", "vae"])
tools.board.write()
print(len(written))
"""


def test_two_boards_write_each_page_once(tmp_path: Path) -> None:
    done = at_once(BOARD, [[str(tmp_path)]] * 2)
    assert [code for code, *_ in done] == [0, 0], done
    first, second = sorted(int(out) for _, out, _ in done)
    assert (first, second > 5) == (0, True)
    assert not list(tmp_path.rglob("*.tmp"))
    assert json.loads((tmp_path / "leaderboards/results.json").read_text())


DIES = """
import os, sys
import common.checkpoint
import papers.vae.train
from common.cli import launch
from common.errors import UserError
from common.run import Run
steps = Run.steps
def dying(self, total, state, every=None):
    for step in steps(self, total, state, every):
        yield step
        if step == 2 and self.accelerator.process_index == 1:
            if sys.argv[1] == "killed":
                os.kill(os.getpid(), 9)
            if sys.argv[1] == "wrong":
                raise UserError("the second process cannot go on")
            raise ZeroDivisionError("a fault in the second process")
Run.steps = dying
if sys.argv[1] == "apart":
    common.checkpoint.load = lambda folder, state: (int(os.environ["RANK"]), 0.0)
launch("vae", sys.argv[2:])
"""
SMOKE = ["--preset", "smoke", "--device", "cpu"]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.mark.parametrize("way", ["killed", "wrong", "fault", "apart"])
def test_one_process_that_dies_ends_the_others_with_its_message(way: str, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(DIES)
    done = subprocess.run(
        [*TORCHRUN, "--standalone", "--nproc_per_node=2", str(file), way, *SMOKE,
         "--output-dir", str(tmp_path / "run")],
        cwd=ROOT, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode != 0
    said = {"killed": "Signal 9 (SIGKILL)", "wrong": "error: the second process cannot go on",
            "fault": "ZeroDivisionError: a fault in the second process",
            "apart": "error: the processes found checkpoints of steps [0, 1]"}[way]  # fmt: skip
    assert said in done.stderr
    assert not list((tmp_path / "run").glob("records/*"))


def namespaces() -> bool:
    """Make two network namespaces joined by a cable, where this may be done."""
    if os.geteuid() or not shutil.which("ip"):
        return False
    script = """set -e
        ip netns add repro1; ip netns add repro2
        ip link add repro1 netns repro1 type veth peer name repro2 netns repro2
        for n in 1 2; do
            ip -n repro$n addr add 10.77.0.$n/24 dev repro$n; ip -n repro$n link set repro$n up
            ip -n repro$n link set lo up
        done"""
    return subprocess.run(["sh", "-c", script], capture_output=True).returncode == 0


@pytest.mark.long
def test_two_machines_meet_and_agree_with_one(tmp_path: Path) -> None:
    """Machines are network namespaces, where root may make them; else two launchers on loopback."""
    apart = namespaces()
    arguments = ["-m", "papers.vae.train", *SMOKE, "--train-steps", "20", "--output-dir"]
    machines = []
    try:
        for n in (1, 2):
            inside = ["ip", "netns", "exec", f"repro{n}"] if apart else []
            own = f"10.77.0.{n}" if apart else "127.0.0.1"
            meet = [f"--rdzv_endpoint={'10.77.0.1' if apart else '127.0.0.1'}:29577", "--rdzv_backend=c10d"]
            meet += [f"--rdzv_conf=is_host={int(n == 1)}"]  # a name service would tell them
            launcher = [*TORCHRUN, "--nnodes=2", "--nproc_per_node=1", "--rdzv_id=repro", f"--local_addr={own}", *meet]
            card = {"GLOO_SOCKET_IFNAME": f"repro{n}" if apart else "lo"}
            machines.append(
                subprocess.Popen([*inside, *launcher, *arguments, str(tmp_path / "two")], cwd=ROOT,
                                 env=ENVIRONMENT | card, text=True, stderr=subprocess.PIPE)
            )  # fmt: skip
        said = [machine.communicate(timeout=500)[1] for machine in machines]
        assert [machine.returncode for machine in machines] == [0, 0], said
    finally:
        for n in (1, 2) if apart else ():
            subprocess.run(["ip", "netns", "del", f"repro{n}"])
    subprocess.run([sys.executable, *arguments, str(tmp_path / "one")], cwd=ROOT, env=ENVIRONMENT, check=True)
    one, two = (read(next((tmp_path / name).glob("records/*.json"))) for name in ("one", "two"))
    assert (one.processes, two.processes) == (1, 2)
    for name, value in one.metrics.items():
        assert two.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
