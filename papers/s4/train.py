"""Train a net of S4, S4D or dense SSM layers on long sequences, or measure what Tables 1 to 3 claim."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("s4")

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.batches import Batches
from common.errors import UserError
from common.fit import fit
from common.metrics import mean_over
from common.optim import half_cosine, warmup_cosine
from common.random import generator, integer
from common.run import Run
from papers.s4 import data
from papers.s4.audit import build
from papers.s4.config import Config
from papers.s4.model import Transformer, optimiser_groups
from papers.s4.timing import Measurement

SEEDS = "single"  # one seed after the other; processes share each batch
EVALUATED, TRAINING_SAMPLES = 100, 5_000  # samples at a time; training samples whose accuracy is taken at the end
EPOCHS_SHOWN = (1, 10, 20)  # the code's experiments.md says what to expect after these
PLATEAU_FACTOR = 0.2  # code: configs/scheduler/plateau.yaml


def train(cfg: Config, run: Run) -> None:
    """Carry out the experiment a configuration names."""
    if cfg.experiment == "classification":
        classify(cfg, run)
    else:
        measure(cfg, run)


class Task:
    """A set on the device, batch by batch."""

    def __init__(self, cfg: Config, run: Run) -> None:
        self.run = run
        sizes = (cfg.train_samples, cfg.validation_samples, cfg.test_samples)
        self.held = data.load(cfg.dataset, run.data_dir, sizes, cfg.grey, cfg.shrink, cfg.permuted)
        run.read(cfg.dataset, self.held.fingerprint)
        self.x, self.y = ({k: v.to(run.device) for k, v in part.items()} for part in (self.held.x, self.held.y))
        self.lengths = {k: v.to(run.device) for k, v in (self.held.lengths or {}).items()}
        self.mean, self.sd = (255 * torch.tensor(v, device=run.device) for v in (cfg.mean, cfg.sd))
        self.batches = Batches(len(self.y["train"]), cfg.batch_size, run.seeds, run.device)

    def take(self, split: str, index: Tensor | slice, longest: Tensor | None = None) -> tuple[Tensor, Tensor, Any]:
        """x (b, l, c) float or tokens (b, l), y (b,), lengths (b,) or None; l is that of the longest in the batch."""
        x, y = self.x[split][index], self.y[split][index]
        if not self.lengths:
            return (x.float() - self.mean) / self.sd, y, None
        lengths = self.lengths[split][index]
        cut = int(lengths.max() if longest is None else longest)
        return x[:, :cut].long(), y, lengths

    def batch(self, step: int) -> tuple[Tensor, Tensor, Any]:
        """This process's part of a batch, as long as the longest of the whole."""
        index = self.batches.index(step)[0]
        longest = self.lengths["train"][index].max() if self.lengths else None
        return self.take("train", self.run.share(index), longest)

    def accuracy(self, model: torch.nn.Module, split: str, n: int | None = None) -> float:
        """Percent right of the first n samples of a split (all of them if None)."""

        def right(chosen: slice) -> Tensor:
            x, y, lengths = self.take(split, chosen)
            with self.run.accelerator.autocast():
                return (model(x, lengths).argmax(1) == y).float()

        training = model.training
        model.eval()
        found = 100 * float(mean_over(self.run, n or len(self.y[split]), EVALUATED, right))
        model.train(training)
        return found


def schedule(cfg: Config, per_epoch: int, steps: int, progress: dict[str, Tensor]) -> Callable[[int], float]:
    """Multiplier of every learning rate at a step."""
    if cfg.schedule == "cosine":
        return warmup_cosine(cfg.warmup_steps, steps)
    if cfg.schedule == "epoch-cosine":
        return lambda step: half_cosine(step // per_epoch, cfg.epochs)
    if cfg.schedule == "rsqrt":
        return lambda step: min(1.0, step / cfg.warmup_steps) / math.sqrt(max(step, cfg.warmup_steps))
    return lambda step: PLATEAU_FACTOR ** int(progress["drops"])


def make_optimizer(cfg: Config, model: torch.nn.Module) -> torch.optim.Optimizer:
    if isinstance(model, Transformer):
        return torch.optim.AdamW(
            model.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, betas=(0.9, 0.98), eps=1e-9, fused=True
        )
    groups = optimiser_groups(model, cfg.lr, cfg.weight_decay, cfg.kernel_lr, cfg.dt_lr)
    return torch.optim.AdamW(groups, fused=True)


def classify(cfg: Config, run: Run) -> None:
    """Train with one seed; test the best validation epoch (or the last iterate, where the protocol counts steps)."""
    seed, rank = run.seeds[0], run.accelerator.process_index
    task = Task(cfg, run)
    per_epoch = task.batches.per_epoch
    steps = cfg.train_steps or cfg.epochs * per_epoch
    inputs = 0 if task.held.tokens else task.x["train"].shape[-1]
    if cfg.model == "transformer" and not task.held.tokens:
        raise UserError(f"the Transformer reads tokens, {cfg.dataset} has numbers; take another model")
    model = build(cfg, inputs, task.held.tokens, task.x["train"].shape[1], task.held.classes)
    model.initialise(generator(seed, "weights"))
    model.to(run.device)
    optimizer = make_optimizer(cfg, model)
    progress = {
        "best": torch.tensor(-1.0), "best_epoch": torch.tensor(0), "waited": torch.tensor(0), "drops": torch.tensor(0),
        "shown": torch.full((len(EPOCHS_SHOWN),), -1.0),
    }  # fmt: skip
    kept = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def loss(net: torch.nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        x, y, lengths = batch
        torch.manual_seed(integer(seed, "dropout", step, rank))
        logits = net(x, lengths)
        value = F.cross_entropy(logits, y)
        return value, {"train_loss": value, "train_accuracy": 100 * (logits.argmax(1) == y).float().mean()}

    def after_step(step: int) -> None:
        if (step + 1) % per_epoch and step + 1 != steps:
            return
        epoch = -(-(step + 1) // per_epoch)
        accuracy = task.accuracy(model, "validation")
        run.log(step, validation_accuracy=accuracy)
        if epoch in EPOCHS_SHOWN:
            progress["shown"][EPOCHS_SHOWN.index(epoch)] = accuracy
        progress["waited"] += 1
        if accuracy > float(progress["best"]):
            progress["best"].fill_(accuracy)
            progress["best_epoch"].fill_(epoch)
            progress["waited"].zero_()
            for name, value in model.state_dict().items():
                kept[name].copy_(value)
        elif int(progress["waited"]) > cfg.patience:
            progress["waited"].zero_()
            progress["drops"] += 1

    fit(
        run, model, optimizer, task.batch, loss, steps, schedule=schedule(cfg, per_epoch, steps, progress),
        log_every=max(1, steps // 100), state={"progress": progress, "kept": kept}, after_step=after_step,
    )  # fmt: skip
    n = min(TRAINING_SAMPLES, len(task.y["train"]))
    metrics = {"final_train_accuracy": task.accuracy(model, "train", n)}
    if not cfg.train_steps:
        model.load_state_dict(kept)
    shown = dict(zip(EPOCHS_SHOWN, progress["shown"].tolist(), strict=True))
    metrics |= {f"validation_accuracy/epoch{epoch}": value for epoch, value in shown.items() if value >= 0}
    metrics |= {"validation_accuracy": float(progress["best"]), "best_epoch": float(progress["best_epoch"])}
    run.finish([metrics | {"test_accuracy": task.accuracy(model, "test")}])


def measure(cfg: Config, run: Run) -> None:
    """Tables 1 to 3: time and memory at each size."""
    run.timed()
    if len(cfg.sizes) < 2:
        raise UserError(f"{cfg.experiment} fits slopes: give --sizes two numbers or more")
    measurement = Measurement(
        cfg.experiment, cfg.sizes, run.device, cfg.repeats, run.seeds[0], width=cfg.width, state=cfg.state,
        depth=cfg.depth, heads=cfg.heads, mlp=cfg.mlp, batch=cfg.batch_size, length=cfg.length,
    )  # fmt: skip
    table = torch.zeros(len(cfg.sizes), len(measurement.names), dtype=torch.float64)
    for step in run.steps(len(cfg.sizes), {"table": table}, every=1):
        table[step] = torch.tensor(measurement.at(cfg.sizes[step]), dtype=torch.float64)
        run.log(step, size=float(cfg.sizes[step]), **dict(zip(measurement.names, table[step].tolist(), strict=True)))
    run.finish([measurement.summary(table.numpy())])
