"""Train neural Turing machines, and the LSTM they are compared with, on the five tasks; every seed has its own net."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("ntm")

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from common.errors import UserError
from common.paths import ROOT
from common.random import generator
from common.run import Run
from common.threads import each
from papers.ntm import data, kernel
from papers.ntm.config import PRESETS, Config
from papers.ntm.data import Batch
from papers.ntm.model import NTM, Net, RMSProp
from papers.ntm.sample import save_pictures

SEEDS = "sharded"
ROUNDS = 10  # of training between two points of the learning curve; progress and checkpoints come in rounds
CHUNK = 100  # sequences of an evaluation at once
COSTS = ("cost", "errors", "marker_errors")  # bits, wrong bits, wrong bits of the last channel; of a sequence


def shape_of(cfg: Config) -> Net:
    """The net of a configuration.

    Raises:
        UserError: the fields do not go together.
    """
    least = {"heads": 0, "shift_reach": 0} | dict.fromkeys(
        ("hidden", "layers", "rows", "columns", "batch_size", "report_sequences", "eval_sequences"), 1
    )
    for name, bound in least.items():
        if getattr(cfg, name) < bound:
            raise UserError(f"{name} {getattr(cfg, name)}: it must be at least {bound}")
    if cfg.controller == "feedforward" and not cfg.heads:
        raise UserError("a feed-forward net without heads has no memory at all: set heads, or controller lstm")
    if 2 * cfg.shift_reach >= cfg.rows:
        raise UserError(f"shift_reach {cfg.shift_reach} goes around a memory of {cfg.rows} rows")
    task = data.task(cfg.dataset)
    return Net(
        task.inputs, task.outputs, cfg.hidden, cfg.layers, int(cfg.controller == "lstm"), cfg.heads, cfg.rows,
        cfg.columns, cfg.shift_reach, int(cfg.key_add == "tanh"), cfg.clip_emitted,
    )  # fmt: skip


def start(cfg: Config, seeds: Sequence[int]) -> NTM:
    """The nets as training begins with them."""
    model = NTM(shape_of(cfg), len(seeds))
    model.initialise([generator(seed, "init") for seed in seeds], cfg.memory_init, cfg.forget_bias)
    return model


def compile_apart() -> None:
    """See to it that compiled code comes from numba's cache, where another process has put it.

    Code as it has just been compiled and the same from the cache differ in the last bits. A run's numbers must not
    depend on whether it is the first one after an installation.
    """
    source = Path(kernel.__file__)
    ready = Path(str(kernel.run.stats.cache_path)) / f"kernel-{source.stat().st_mtime_ns}-{numba.__version__}.ready"
    if not ready.exists():
        ready.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{ready}.lock"):
            if not ready.exists():
                subprocess.run(
                    [sys.executable, "-c", "from papers.ntm.train import warm; warm()"], cwd=ROOT, check=True
                )
                ready.touch()


def warm() -> None:
    """Compile all that a run on a CPU needs, by using it."""
    cfg = PRESETS["smoke"]
    nets, batches = Compiled(cfg, [0], apart=False), [data.sequences(data.task(cfg.dataset), ("warm",), range(5))]
    nets.train(batches, 0)
    nets.cost(batches)


class Compiled:
    """Nets on a CPU: `kernel`, a thread a seed."""

    def __init__(self, cfg: Config, seeds: Sequence[int], apart: bool = True) -> None:
        if apart:
            compile_apart()
        model = start(cfg, seeds)
        self.net, self.batch_size = model.net, cfg.batch_size
        self.rule = kernel.Rule(
            int(cfg.optimizer == "adam"), cfg.lr, cfg.decay, cfg.momentum, cfg.eps, cfg.clip_value, cfg.clip_norm
        )
        theta = model.theta.detach().numpy().copy()
        moments, left_out = np.zeros((len(seeds), 3, theta.shape[1]), theta.dtype), np.zeros((len(seeds), 1), np.int64)
        self.state: dict[str, Any] = {"theta": theta, "moments": moments, "left_out": left_out}
        self.offsets, self.gradient = kernel.offsets(self.net), np.zeros_like(theta)
        self.tapes: dict[int, kernel.Tape] = {}

    def train(self, batches: Sequence[Batch], updates: int) -> np.ndarray:
        """Go on with each seed's sequences after so many updates: what each cost, (s, n, 3)."""
        return self._run(batches, self.batch_size, updates)

    def cost(self, batches: Sequence[Batch]) -> np.ndarray:
        """What each seed's sequences cost without learning, (s, n, 3)."""
        return self._run(batches, 0, 0)

    def _run(self, batches: Sequence[Batch], batch_size: int, updates: int) -> np.ndarray:
        said = np.zeros((len(batches), len(batches[0].steps), 3))

        def one(i: int) -> None:
            theta, moments, left_out = (value[i] for value in self.state.values())
            kernel.run(
                self.net, self.rule, theta, self.offsets, self._tape(i, batches[i]), self.gradient[i], moments,
                left_out, updates, batch_size, *batches[i], said[i],
            )  # fmt: skip

        each(one, [(i,) for i in range(len(batches))])
        return said

    def _tape(self, i: int, batch: Batch) -> kernel.Tape:
        if i not in self.tapes or self.tapes[i].p.shape[0] < batch.x.shape[1]:
            self.tapes[i] = kernel.make_tape(self.net, batch.x.shape[1], self.state["theta"].dtype)
        return self.tapes[i]

    def model(self) -> NTM:
        """The nets as a torch module."""
        model = NTM(self.net, len(self.state["theta"]))
        with torch.no_grad():
            model.theta.copy_(torch.from_numpy(self.state["theta"]))
        return model


class Stacked:
    """Nets on a GPU: `model`, all seeds at once, padded to their longest sequence. Computes what `Compiled` does."""

    def __init__(self, cfg: Config, seeds: Sequence[int], device: torch.device | str) -> None:
        self.cfg, self.net = cfg, start(cfg, seeds).to(device)
        if cfg.optimizer == "adam":
            self.optimizer: Any = torch.optim.Adam(
                [self.net.theta], lr=cfg.lr, betas=(cfg.momentum, cfg.decay), eps=cfg.eps
            )
        else:
            self.optimizer = RMSProp([self.net.theta], cfg.lr, cfg.decay, cfg.momentum, cfg.eps)
        self.left_out = torch.zeros(len(seeds), 1, dtype=torch.int64, device=device)
        self.state: dict[str, Any] = {"theta": self.net, "moments": self.optimizer, "left_out": self.left_out}

    def train(self, batches: Sequence[Batch], updates: int) -> np.ndarray:
        """As `Compiled.train`."""
        theta, b, said = self.net.theta, self.cfg.batch_size, []
        for at in range(0, len(batches[0].steps), b):
            value, costs = self._loss(batches, slice(at, at + b))
            self.optimizer.zero_grad()
            (value / b).backward()
            with torch.no_grad():
                assert theta.grad is not None
                if self.cfg.clip_norm:
                    norm = theta.grad.norm(dim=1, keepdim=True)
                    theta.grad *= (self.cfg.clip_norm / (norm + 1e-6)).clamp(max=1)
                if self.cfg.clip_value:
                    theta.grad.clamp_(-self.cfg.clip_value, self.cfg.clip_value)
            self._step()
            said.append(costs)
        return torch.cat(said, 1).double().cpu().numpy()

    @torch.no_grad()
    def _step(self) -> None:
        """An update of every net whose gradient is a number; the others stay as they are (see `kernel`)."""
        theta = self.net.theta
        assert theta.grad is not None
        unknown = theta.grad.isnan().any(1, keepdim=True)
        self.left_out += unknown
        theta.grad.masked_fill_(unknown, 0)  # Adam's averages begin with this step
        kept = [theta, *(value for value in self.optimizer.state[theta].values() if value.shape == theta.shape)]
        before = [value.clone() for value in kept]
        self.optimizer.step()
        for value, old in zip(kept, before, strict=True):
            value.copy_(torch.where(unknown, old, value))

    @torch.no_grad()
    def cost(self, batches: Sequence[Batch]) -> np.ndarray:
        """As `Compiled.cost`."""
        return self._loss(batches, slice(None))[1].double().cpu().numpy()

    def _loss(self, batches: Sequence[Batch], chosen: slice) -> tuple[Tensor, Tensor]:
        """(sum in nats, what each sequence cost (s, b, 3))."""
        parts = [Batch(*(part[chosen] for part in batch)) for batch in batches]
        longest = max(int(part.steps.max()) for part in parts)
        x, y = (
            torch.stack([nn.functional.pad(torch.from_numpy(a), (0, 0, 0, longest))[:, :longest] for a in arrays])
            for arrays in ([part.x for part in parts], [part.y for part in parts])
        )
        first, steps = (torch.from_numpy(np.stack(a))[..., None] for a in zip(*(p[2:] for p in parts), strict=True))
        t = torch.arange(longest)
        judged = ((t >= first) & (t < steps))[..., None].to(self.net.theta.device)  # (s, b, t, 1)
        x, y = x.to(self.net.theta), y.to(self.net.theta)
        z = self.net(x)
        nats = nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none") * judged
        wrong = ((z > 0) != (y > 0.5)) & judged
        costs = [nats.sum((-2, -1)) / math.log(2), wrong.sum((-2, -1)), wrong[..., -1].sum(-1)]
        return nats.sum(), torch.stack(costs, -1).detach()

    def model(self) -> NTM:
        """The nets as a torch module."""
        return self.net


def train(cfg: Config, run: Run) -> None:
    """Train, and leave the metrics of every seed."""
    task = data.task(cfg.dataset)
    run.read(cfg.dataset, data.fingerprint(cfg.dataset))
    if cfg.validation_sequences and cfg.dataset != "generated/ngrams":
        raise UserError("validation_sequences: only the n-grams have a validation set")
    shape_of(cfg)
    if cfg.controller == "none":
        optimum(cfg, run)
        return
    a_round = cfg.report_sequences // ROUNDS
    points = cfg.train_sequences // cfg.report_sequences
    if points < 1 or cfg.report_sequences % (ROUNDS * cfg.batch_size):
        raise UserError(
            f"report_sequences {cfg.report_sequences} must be a multiple of {ROUNDS} batches "
            f"({ROUNDS * cfg.batch_size}) and at most train_sequences ({cfg.train_sequences})"
        )
    sizes = {text: data.parse_size(task, text) for text in cfg.generalise}
    fixed = range(cfg.validation_sequences)
    validation = data.sequences(task, ("validation",), fixed) if fixed else None
    nets = Compiled(cfg, run.seeds) if run.device.type == "cpu" else Stacked(cfg, run.seeds, run.device)
    curve = np.zeros((len(run.seeds), points, len(COSTS)))  # means over the training sequences of a point
    on_validation = np.full((len(run.seeds), points), np.nan)
    state = {**nets.state, "curve": curve, "validation": on_validation}
    for step in run.steps(points * ROUNDS, state):
        numbers, point = range(step * a_round, (step + 1) * a_round), step // ROUNDS
        batches = [data.sequences(task, (seed, "train"), numbers) for seed in run.seeds]
        curve[:, point] += nets.train(batches, numbers.start // cfg.batch_size).mean(1) / ROUNDS
        if (step + 1) % ROUNDS == 0:
            shown = {name: curve[:, point, i] for i, name in enumerate(COSTS[:2])}
            if validation is not None:
                on_validation[:, point] = evaluate(nets, [validation] * len(run.seeds))[:, 0]
                shown["validation_cost"] = on_validation[:, point]
            run.log(step, sequences=numbers.stop, **shown)
    values = curve_metrics(cfg, curve)
    values["updates_left_out"] = torch.as_tensor(nets.state["left_out"])[:, 0].cpu().numpy()
    if validation is not None:
        values["validation_cost"] = on_validation[:, -1]
        values["gap"] = on_validation[:, -1] - data.bayes_cost(validation)
    for text, size in sizes.items():
        tests = [data.sequences(task, (seed, "test", text), range(cfg.eval_sequences), size) for seed in run.seeds]
        found = evaluate(nets, tests)
        values |= {f"{name}_length_{text}": found[:, i] for i, name in enumerate(COSTS[: 3 if len(size) > 1 else 2])}
    if run.main:
        save_pictures(run.picture, nets.model(), task, run.seeds[0], list(sizes.values()))
    run.finish([{name: float(value[i]) for name, value in values.items()} for i in range(len(run.seeds))])


def evaluate(nets: Compiled | Stacked, batches: Sequence[Batch]) -> np.ndarray:
    """Mean costs of each seed on its sequences, (s, 3)."""
    n = len(batches[0].steps)
    parts = [[Batch(*(a[at : at + CHUNK] for a in batch)) for batch in batches] for at in range(0, n, CHUNK)]
    return np.concatenate([nets.cost(part) for part in parts], 1).mean(1)


def curve_metrics(cfg: Config, curve: np.ndarray) -> dict[str, np.ndarray]:
    """What the learning curves (s, points, 3) say: where they end, where they first are near zero, single points."""
    below = curve[..., 0 if cfg.solved == "bits" else 1] < cfg.solved_below
    solved = below.any(1)
    points = np.where(solved, below.argmax(1) + 1, curve.shape[1])
    values: dict[str, Any] = {f"final_{name}": curve[:, -1, i] for i, name in enumerate(COSTS[:2])}
    values |= {"solved": 100.0 * solved, "sequences": points * float(cfg.report_sequences)}
    for at in cfg.cost_at:
        point = (at - 1) // cfg.report_sequences
        if point < curve.shape[1]:
            values[f"cost_at_{at // 1000}k" if at % 1000 == 0 else f"cost_at_{at}"] = curve[:, point, 0]
    return values


def optimum(cfg: Config, run: Run) -> None:
    """The optimal estimator's cost on a validation set; every seed draws its own set."""
    task, found = data.task(cfg.dataset), []
    if cfg.dataset != "generated/ngrams" or not cfg.validation_sequences:
        raise UserError("controller none is the optimal estimator of generated/ngrams: it needs validation_sequences")
    for _ in run.steps(1, {}):
        for seed in run.seeds:
            found.append(data.bayes_cost(data.sequences(task, ("validation", seed), range(cfg.validation_sequences))))
        run.log(0, optimal_cost=found)
    run.finish([{"optimal_cost": value} for value in found])
