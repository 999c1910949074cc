"""`repro card`: what a run left, as a folder ready to push to the Hub: weights, configuration and a model card.

The numbers on the card are those of this run's records alone.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.claims import load
from common.cli import format_seeds, saved_run
from common.errors import UserError
from common.records import Record, read, write_atomically
from tools import exports
from tools.rows import judge_paper

if TYPE_CHECKING:
    from torch import Tensor


def make(paper: str, run: Path, folder: Path) -> list[Path]:
    """Write the weights of a finished run as safetensors, its configuration and its card into a folder.

    Args:
        run: the run's folder.

    Returns:
        The files written; of several checkpoints (seeds that trained one after the other) each has its own weights.

    Raises:
        UserError: no such run, one of another paper, one that is not complete, or one that trains nothing.
    """
    from safetensors.torch import save

    facts, saved = load(paper), saved_run(run)
    if saved["paper"] != paper:
        raise UserError(f"{run} holds a run of {saved['paper']}, not of {paper}")
    records = sorted((read(path) for path in run.glob("**/records/*.json")), key=lambda record: record.seed)
    if not records:
        raise UserError(f"{run} is not complete; go on with: python -m papers.{paper}.train --resume {run}")
    files: dict[str, str | bytes] = {}
    for name, tensors in _weights(run):
        files[name] = save(tensors, metadata={"format": "pt"})
    if not files:
        raise UserError(f"{run} left no weights: preset {records[0].preset} trains no network, or checkpoints are gone")
    files["config.json"] = json.dumps(records[0].config, indent=1) + "\n"
    said = _said(records, list(files)[:-1])
    files["README.md"] = exports.card(facts, judge_paper(paper, records), said, _means(records), records[0].preset)
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]


def _weights(run: Path) -> Iterator[tuple[str, dict[str, "Tensor"]]]:
    """File name -> tensors by their names in the run's state, for each folder of checkpoints.

    What stands in the state by itself, such as costs so far, is the loop's and no weight.
    """
    from common.checkpoint import newest

    found = sorted({path.parent for path in run.glob("**/checkpoints*/step-*")})
    for checkpoints in found:
        state = newest(checkpoints)[2]
        tensors = dict(_tensors({name: part for name, part in state.items() if isinstance(part, dict)}))
        if tensors:
            parts = [checkpoints.parent.name] if checkpoints.parent != run else []
            parts += re.findall(r"-(\d+)$", checkpoints.name)  # seeds that a further process trained
            yield "-".join(["model", *parts]) + ".safetensors", tensors


def _tensors(state: Any, name: str = "") -> Iterator[tuple[str, "Tensor"]]:
    """Every tensor of a saved state but those of optimisers; a copy, for safetensors takes none that share memory."""
    if hasattr(state, "shape"):
        yield name, state.clone().contiguous()
    elif isinstance(state, dict) and "param_groups" not in state:
        for key, value in state.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


def _said(records: list[Record], weights: list[str]) -> list[str]:
    first = records[0]
    seeds = format_seeds([record.seed for record in records])
    together = f" Of the {first.stacked} seeds each has its part of every tensor." if first.stacked > 1 else ""
    return [
        f"An independent reproduction: preset `{first.preset}`, seed {seeds}, commit `{first.commit[:10]}`,",
        f"on {first.device}. Configuration: `config.json`. Weights of the last step:",
        f"{', '.join(f'`{name}`' for name in weights)}, read by `safetensors.torch.load_file`, for the modules of",
        f"`papers/{first.paper}/model.py` under the names the training script gives them.{together}",
    ]


def _means(records: list[Record]) -> dict[str, float]:
    """Every final metric that came out finite: its mean over the seeds."""
    found = {name: [r.metrics[name] for r in records] for name in records[0].metrics}
    return {name: sum(values) / len(values) for name, values in found.items() if None not in values}  # type: ignore[arg-type]
