"""Several GPUs and clusters: what the README and `tools/slurm.sh` say is what accelerate and a scheduler take."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from common.claims import presets
from common.cli import parse
from common.errors import STOPPED
from common.paths import PAPERS, ROOT
from tests.test_papers import records_of

SCRIPT = ROOT / "tools" / "slurm.sh"
SRUN = """#!/bin/bash
# A scheduler of one node: every option is one that srun has; the tasks run side by side, the largest code is theirs.
while [[ $1 == --* ]]; do
  case $1 in --kill-on-bad-exit=0 | --wait=60) shift ;; *) echo "srun: unknown option $1" >&2; exit 1 ;; esac
done
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & tasks[i]=$!; done
most=0
for task in "${tasks[@]}"; do code=0; wait "$task" || code=$?; ((code > most)) && most=$code; done
exit "$most"
"""
SCONTROL = """#!/bin/bash
case $1 in show) echo localhost ;; requeue) echo "$2" >> "$REQUEUED" ;; *) exit 1 ;; esac
"""


def launches(text: str) -> list[list[str]]:
    """The arguments of every `accelerate launch` in a text, without comments."""
    lines = [line.partition("   #")[0] for line in text.splitlines()]
    return [shlex.split(found[1]) for line in lines if (found := re.search(r"accelerate launch ([^`)]*)", line))]


@pytest.mark.parametrize("file", [ROOT / "README.md", *sorted(PAPERS.glob("*/README.md"))], ids=lambda p: p.parent.name)
def test_accelerate_and_the_papers_take_the_commands_of_the_readmes(file: Path) -> None:
    for arguments in launches(file.read_text(encoding="utf-8").replace("...", "")):
        options = launch_command_parser().parse_args(arguments)
        name = options.training_script.replace("/", ".").removesuffix(".py")
        assert bool(options.module) == ("/" not in options.training_script)
        paper = re.fullmatch(r"papers\.([a-z0-9]+)\.train", name)
        assert paper, arguments
        parse(paper[1], options.training_script_args)
        if options.config_file:
            assert (ROOT / options.config_file).is_file()


def test_the_readme_has_a_command_for_several_gpus() -> None:
    assert any("--config_file" in one for one in launches((ROOT / "README.md").read_text(encoding="utf-8")))


def test_accelerate_reads_its_configuration() -> None:
    config = load_config_from_file(str(ROOT / "tools" / "accelerate.yaml"))
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (1, 4, "no")
    assert str(config.distributed_type) == "DistributedType.MULTI_GPU"


def test_the_job_asks_for_a_process_a_gpu_and_a_warning_that_runs_hear() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.M))
    known = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal", "requeue"}
    assert asked.keys() == known | {"open-mode", "output"}
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    name, seconds = asked["signal"].split("@")
    assert hasattr(signal, f"SIG{name}")
    assert int(seconds) >= 60
    assert f'"$code" -eq {STOPPED}' in text
    for words in re.findall(r"sbatch (?:--\S+ \d+ )?tools/slurm\.sh ([a-z0-9]+) (--[^#\n\"]*)", text):
        parse(words[0], words[1].split())
        assert words[1].split()[1] in presets(words[0])


def test_a_job_that_is_warned_saves_goes_back_into_the_queue_and_ends(tmp_path: Path) -> None:
    for name, content in (
        ("srun", SRUN),
        ("scontrol", SCONTROL),
        ("python", f'#!/bin/bash\nexec {sys.executable} "$@"\n'),
    ):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    job = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "REQUEUED": str(tmp_path / "requeued"),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_NTASKS": "2",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    argv = ["vae", "--preset", "smoke", "--device", "cpu", "--train-steps", "1000", "--checkpoint-minutes", "0"]
    run = tmp_path / "runs" / "vae" / "slurm-4711"

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(["bash", SCRIPT, *argv], cwd=tmp_path, env=job, stderr=subprocess.PIPE, text=True)

    first = started()
    while not list(run.glob("checkpoints/step-*")) and first.poll() is None:
        time.sleep(0.02)
    tasks = [p for p in psutil.Process(first.pid).children(recursive=True) if "papers.vae.train" in p.cmdline()]
    assert len([p for p in tasks if "-c" not in p.cmdline()]) == 2
    for task in tasks:
        if "-c" not in task.cmdline():
            task.send_signal(signal.SIGUSR1)
    said = first.communicate(timeout=120)[1]
    assert first.returncode == STOPPED, said
    assert (tmp_path / "requeued").read_text().split() == ["4711"]
    assert not records_of(run)
    second = started()
    said = second.communicate(timeout=300)[1]
    assert second.returncode == 0, said
    assert (tmp_path / "requeued").read_text().split() == ["4711"]
    (record,) = records_of(run)
    assert record.processes == 2
