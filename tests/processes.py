"""Train the same 20 updates on one process and on several, and compare losses and metrics.

    python -m tests.processes --processes 1 2 4

The global batch is the same, so only the order in which float32 sums are taken may differ. Evaluation sets have odd
sizes: no number of processes divides them. Where a paper trains seeds side by side ("sharded"), nothing may differ.
"""

import argparse
import importlib
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.paths import paper_names
from common.records import read
from tests.killing import ended, started

UPDATES = 20
SHARES = (
    "accuracy",
    "error",
    "bleu",
    "BLEU",
    "length",
    "ratio",
    "brevity",
    "words",
)  # of samples: a near tie that rounding decides moves them by a whole one
# 20 updates, odd evaluation sizes and batches that four can share, where the preset `smoke` has others; small steps
# where a ReLU, a pooling or batch statistics magnify rounding tenfold an update
CHANGES = {
    "alexnet": "--stage-epochs 3 1 1 --test-images 37 --lr 0.000003",
    "cyclegan": "--batch-size 4 --train-pictures 12 --constant-epochs 4 --decay-epochs 3 --test-pictures 5 --lr 5e-6",
    "dcgan": "--constant-epochs 2 --validation-images 37 --eval-samples 71 --nn-samples 71 --judge-samples 71",
    "ddpm": "--train-steps 20 --nll-images 7 --nll-train-images 5 --samples 11",
    "mae": "--test-images 37",
    "mamba": "--train-steps 20 --test-sequences 7",
    "moe": "--steps 20",
    "resnet": "--train-steps 20 --test-images 37 --lr 0.01 --warmup-lr 0.001",
    "s4": "--epochs 4 --test-samples 37 --validation-samples 23",
    "simclr": "--epochs 3 --lr 2e-5 --test-images 37",
    "snn": "--epochs 7",
    "stylegan": "--batch-sizes 8 --total-images 160 --judge-samples 71 --judge-images 37",
    "vae": "--likelihood-train-images 37 --activity-images 41",
    "vit": "--train-steps 20 --test-images 37",
}


def numbers(folder: Path) -> Iterator[tuple[str, float]]:
    """Losses logged in the first updates, and all metrics: name -> value."""
    for path in sorted(folder.glob("**/records/*.json")):
        record = read(path)
        losses = {name: curve for name, curve in record.curves.items() if not any(share in name for share in SHARES)}
        for name, (steps, values) in (losses or record.curves).items():
            for step, value in zip(steps, values, strict=True):
                if step < UPDATES:  # type: ignore[operator]
                    yield f"{name} at step {step:.0f} of seed {record.seed}", math.nan if value is None else value
        for name, value in record.metrics.items():
            yield f"metric {name} of seed {record.seed}", math.nan if value is None else value


def apart(a: float, b: float) -> float:
    """Relative difference; of numbers below 1 the absolute one."""
    return 0.0 if a == b or (math.isnan(a) and math.isnan(b)) else abs(a - b) / max(1.0, abs(a), abs(b))


def compared(paper: str, processes: Sequence[int], folder: Path) -> Iterator[dict[str, Any]]:
    """Run a paper on the first number of processes and on each other one; where they are farthest apart."""
    sharded = importlib.import_module(f"papers.{paper}.train").SEEDS == "sharded"
    argv = ["--preset", "smoke", "--seed", "0-2", "--device", "cpu", *CHANGES.get(paper, "").split()]
    found: dict[int, dict[str, float]] = {}
    for n in processes:
        said = folder / f"said{n}"
        codes = ended(started(paper, [*argv, "--output-dir", str(folder / str(n))], n, said), None)
        assert codes == [0] * n, said.read_text()
        found[n] = dict(numbers(folder / str(n)))
    first, *others = processes
    losses = [name for name in found[first] if not name.startswith("metric")]
    assert losses
    for n in others:
        assert found[n].keys() == found[first].keys(), found[n].keys() ^ found[first].keys()
        difference = {name: apart(value, found[n][name]) for name, value in found[first].items()}
        loss = max(losses, key=difference.__getitem__)
        metrics = [name for name in difference if name not in losses]
        points = {name: abs(value - found[n][name]) for name, value in found[first].items()}
        share = max((points[name] for name in metrics if any(share in name for share in SHARES)), default=0.0)
        smooth = [name for name in metrics if not any(share in name for share in SHARES)]
        metric = max(smooth, key=difference.__getitem__, default=loss)
        yield {
            "paper": paper, "sharded": sharded, "processes": n, "losses": len(losses), "apart": difference[loss],
            "farthest": loss, "metrics apart": difference[metric], "farthest metric": metric, "shares apart": share,
        }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", nargs="+", default=paper_names())
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    arguments = parser.parse_args(argv)
    for paper in arguments.papers:
        with tempfile.TemporaryDirectory() as folder:
            for line in compared(paper, arguments.processes, Path(folder)):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
