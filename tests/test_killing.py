"""SIGKILL at random moments loses nothing: the quick version of `tests/killing.py`, and the long one."""

import json
import subprocess
import sys

import pytest

from common.paths import ROOT
from tests.killing import IN_A_ROW


def killed(*arguments: str) -> list[dict]:
    done = subprocess.run([sys.executable, "-m", "tests.killing", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def count(trials: list[dict]) -> int:
    return sum(trial["kills at random"] + trial["kills while writing"] for trial in trials)


def test_kills_of_a_shared_batch_and_of_sharded_seeds() -> None:
    trials = killed("--papers", "vae", "gcn", "--kills", str(4 * IN_A_ROW))
    assert count(trials) == 4 * IN_A_ROW
    assert sum(trial["with a checkpoint there"] for trial in trials)


@pytest.mark.long
def test_two_hundred_kills_of_ten_papers() -> None:
    trials = killed("--kills", "200")
    assert count(trials) == 200
    assert all(trial["with a checkpoint there"] for trial in trials)
    assert any(trial["with a file half written"] for trial in trials)
