"""One process and several make the same 20 updates: the quick version of `tests/processes.py`, and the long one."""

import json
import subprocess
import sys

import pytest

from common.paths import ROOT, paper_names


def compared(*arguments: str) -> list[dict]:
    command = [sys.executable, "-m", "tests.processes", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def agree(line: dict) -> None:
    """Losses within float32's rounding as it grows over 20 updates; seeds that train side by side, exactly."""
    assert line["apart"] <= (0 if line["sharded"] else 1e-4), line
    assert line["metrics apart"] <= (0 if line["sharded"] else 1e-3), line
    assert line["shares apart"] <= (0 if line["sharded"] else 6), line  # points: two of 37 samples


@pytest.mark.parametrize("paper", paper_names())
def test_two_processes_agree_with_one(paper: str) -> None:
    (line,) = compared("--papers", paper, "--processes", "1", "2")
    agree(line)


WRONG = """
import sys
from tests.processes import main
from common.run import Run
Run.share = lambda self, batch, dim=0: batch.chunk(self.part[1], dim)[0]  # every process takes the first one's part
main(sys.argv[1:])
"""


def test_a_wrong_share_of_the_batch_is_seen() -> None:
    command = [sys.executable, "-c", WRONG, "--papers", "vae", "--processes", "1", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["apart"] > 0.01


@pytest.mark.long
def test_four_processes_agree_with_one() -> None:
    lines = compared("--processes", "1", "2", "4")
    assert {(line["paper"], line["processes"]) for line in lines} == {(p, n) for p in paper_names() for n in (2, 4)}
    for line in lines:
        agree(line)
