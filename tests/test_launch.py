"""Several real processes: they are there, share batches and evaluations, and agree with one."""

import textwrap
from pathlib import Path

PROGRAM = """
import sys
import torch
from accelerate import Accelerator
from common.batchnorm import BatchNorm
from common.metrics import mean_over
from common.run import Run, leave
from common.cli import parse

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == int(sys.argv[1]), accelerator.num_processes
command = parse("vae", ["--preset", "smoke"])
run = Run(command, accelerator, "stacked", [0, 1], __import__("pathlib").Path(sys.argv[2]))
batch = torch.arange(2 * 6.0).reshape(2, 6)
part = run.share(batch, dim=1)
assert part.shape == (2, 6 // accelerator.num_processes)
total = accelerator.reduce(part.sum(1), reduction="sum")
assert torch.equal(total, batch.sum(1))
data = torch.arange(2 * 23.0).reshape(2, 23)
for size in (1, 5, 23, 100):
    assert torch.allclose(mean_over(run, 23, size, lambda s: data[:, s]), data.double().mean(1))
# Batch normalisation sees the same groups however many processes hold the batch; one process alone is the oracle.
x = torch.randn(12, 3, 4, generator=torch.Generator().manual_seed(0))
weights = torch.linspace(-1, 1, x.numel()).view(x.shape)
for group in (None, 12, 6, 4):
    if group and group % (12 // accelerator.num_processes) and 12 // accelerator.num_processes % group:
        continue
    norm = BatchNorm(3, group)
    mine = run.share(x).clone().requires_grad_()
    y = norm(mine)
    (y * run.share(weights)).sum().backward()
    run.average_buffers(norm)
    whole = x.clone().requires_grad_()
    oracle = torch.nn.BatchNorm1d(3)
    groups = [oracle(part) for part in whole.split(group or 12)]
    (torch.cat(groups) * weights).sum().backward()
    for a, b in ((y, run.share(torch.cat(groups))), (mine.grad, run.share(whole.grad))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    total = accelerator.reduce(norm.weight.grad, reduction="sum")
    torch.testing.assert_close(total, oracle.weight.grad, rtol=1e-4, atol=1e-5)
    if (group or 12) == 12:
        torch.testing.assert_close(norm.running_var, oracle.running_var)
sharded = Run(command, accelerator, "sharded", [0, 1, 2], run.folder)
assert sharded.seeds == [0, 1, 2][accelerator.process_index :: accelerator.num_processes]
print("done", accelerator.process_index)
leave(accelerator)
"""


def test_processes_share_batches_and_count_samples(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(PROGRAM))
    for n in (1, 2, 3):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"] if n > 1 else []
        done = subprocess.run(
            [sys.executable, *launcher, str(file), str(n), str(tmp_path)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("done") == n


def test_a_batch_that_does_not_divide_is_one_line(tmp_path: Path, script) -> None:  # type: ignore[no-untyped-def]
    arguments = ("--preset", "smoke", "--batch-size", "7", "--output-dir", str(tmp_path / "run"))
    done = script("papers.vae.train", *arguments, processes=2)
    assert done.returncode != 0
    assert done.stderr.count("error: ") >= 1
    assert "does not divide among 2 processes" in done.stderr


def test_an_option_that_cannot_be_honoured_is_refused(tmp_path: Path, script) -> None:  # type: ignore[no-untyped-def]
    for option in (("--compile",), ("--precision", "bf16")):
        done = script("papers.vae.train", "--preset", "smoke", *option, "--output-dir", str(tmp_path / option[0]))
        assert done.returncode == 2
        assert done.stderr.strip().splitlines()[-1] == (
            "error: vae trains in its own way: leave out --compile and --precision"
        )
