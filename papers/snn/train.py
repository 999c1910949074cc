"""Train spiking networks: one, or a grid of learning rates and steepnesses, for all seeds of a run together."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("snn")

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from common.data.batches import Batches
from common.errors import UserError
from common.metrics import mean_over
from common.optim import half_cosine
from common.run import Run
from papers.snn.config import Config
from papers.snn.data import Data, Split, bernoulli, latencies, load
from papers.snn.model import SMORMS3, Network, Neuron, Penalties, Times, log_scores, losses
from papers.snn.pictures import save_pictures

SEEDS = "stacked"  # one stack holds all seeds and cells; processes share each batch
ENCODERS = 32  # spiking neurons per channel (spytorch Tutorial 5)
BATCH = 250  # of an evaluation that takes all samples


def build(cfg: Config, copies: int, inputs: tuple[int, ...], device: torch.device | str = "cpu") -> Network:
    """The stack of nets a configuration describes."""
    gain, readout_gain = (1 - cfg.decay_mem, 1 - cfg.decay_readout) if cfg.leak_gain else (1.0, 1.0)
    hidden = Neuron(
        cfg.decay_mem, cfg.decay_syn, gain, cfg.threshold, cfg.start[0], cfg.reset, cfg.lags[0], cfg.lags[1], 1,
        cfg.reset_gradient, cfg.recurrent_gradient, cfg.surrogate,
    )  # fmt: skip
    readout = hidden._replace(decay=cfg.decay_readout, gain=readout_gain, start=cfg.start[1], lag=cfg.lags[2])
    if cfg.loss == "max":
        readout = readout._replace(reset="none")
    if cfg.encoding == "encoders" and (len(inputs) > 1 or cfg.bias):
        raise UserError("encoding encoders needs recordings and layers without biases: use spytorch-t5's data set")
    if cfg.encoding in ("times", "latency") and (cfg.bias or "C" in cfg.net):
        raise UserError(f"encoding {cfg.encoding} needs dense layers without biases: set bias False and another net")
    if cfg.recurrent and "C" in cfg.net:
        raise UserError("recurrent connections are for dense layers: set recurrent False, or another net")
    return Network(
        copies, inputs, cfg.net, hidden, readout, cfg.steps, recurrent=cfg.recurrent, bias=cfg.bias,
        batch_norm=cfg.batch_norm, encoders=ENCODERS if cfg.encoding == "encoders" else 0, device=device,
    )  # fmt: skip


def make_optimizer(cfg: Config, net: Network, lr: float) -> torch.optim.Optimizer:
    if cfg.optimizer == "smorms3":
        return SMORMS3(net.parameters(), lr)
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(net.parameters(), lr, momentum=0.9)
    betas = (0.9, cfg.beta2)
    if cfg.optimizer == "adamax":
        return torch.optim.Adamax(net.parameters(), lr, betas)
    return torch.optim.Adam(net.parameters(), lr, betas, fused=True)


def multiplier(cfg: Config, epoch: int) -> float:
    """Of the learning rate."""
    if cfg.schedule == "cosine":
        return half_cosine(epoch, cfg.epochs)
    return 0.1 ** (max(0, epoch - 1) // 40) if cfg.schedule == "tenth-40" else 1.0  # lowered at the end of epoch 40


class Inputs:
    """What the nets are fed: samples of a split by number, in the encoding of the configuration."""

    def __init__(self, cfg: Config, run: Run, data: Data) -> None:
        pictures = data.train.x.dtype == torch.uint8
        fits = {"times": data.train.x.dtype == torch.int32, "encoders": data.train.x.is_floating_point()}
        if not fits.get(cfg.encoding, pictures):
            raise UserError(f"encoding {cfg.encoding} does not fit {cfg.dataset}; see the presets")
        if cfg.encoding == "encoders" and data.train.x.shape[1] != cfg.steps:
            raise UserError(f"{cfg.dataset} has {data.train.x.shape[1]} steps, not {cfg.steps}: set --steps")
        self.cfg, self.run, self.shape = cfg, run, data.inputs
        splits = {"train": data.train, "validation": data.validation, "test": data.test}
        self.x = {name: self._prepared(split).to(run.device) for name, split in splits.items() if split}
        self.y = {name: split.y.to(run.device) for name, split in splits.items() if split}

    def _prepared(self, split: Split) -> Tensor:
        return latencies(split.x, self.cfg.steps) if self.cfg.encoding == "latency" else split.x

    def __call__(self, split: str, index: Tensor, seeds: list[int], step: int) -> tuple[Tensor | Times, Tensor]:
        """Samples index (s, b) of a split, random where the code is: then a function of seed, split and step."""
        x, y = self.x[split][index], self.y[split][index]
        if self.cfg.encoding in ("times", "latency"):
            return Times(x), y
        if self.cfg.encoding == "encoders":
            return x, y
        if self.cfg.encoding == "bernoulli":
            x = torch.stack([bernoulli(v, self.cfg.steps, seed, split, step) for v, seed in zip(x, seeds, strict=True)])
        else:
            x = x[:, :, None].float() / 255
        return x.unflatten(-1, self.shape), y


class Grid:
    """All nets of a run: for each learning rate a stack of every seed with every steepness, in this order."""

    def __init__(self, cfg: Config, run: Run, inputs: Inputs) -> None:
        self.cfg, self.run, self.inputs = cfg, run, inputs
        self.world = run.part[1]
        self.seeds = [seed for seed in run.seeds for _ in cfg.beta]
        self.betas = [beta for _ in run.seeds for beta in cfg.beta]
        self.nets, self.optimizers = [], []
        for lr in cfg.lr:
            net = build(cfg, len(self.seeds), inputs.shape, run.device)
            net.initialise(self.seeds, cfg.init, *cfg.init_scale, 1 / cfg.steps)
            net.to(run.device)
            self.nets.append(net)
            self.optimizers.append(make_optimizer(cfg, net, lr))
        self.penalties = Penalties(cfg.lower, cfg.upper, *cfg.batch_penalty)
        # a core's cache holds one net's states; a GPU takes the whole stack
        self.together = 1 if run.device.type == "cpu" else len(self.seeds)

    @property
    def state(self) -> dict[str, Any]:
        pairs = enumerate(zip(self.nets, self.optimizers, strict=True))
        return {f"lr-{i}": {"net": net, "optimizer": optimizer} for i, (net, optimizer) in pairs}

    def parts(self, x: Tensor | Times, y: Tensor) -> Iterator[tuple[slice, Tensor | Times, Tensor]]:
        """The stack in the pieces that go through at once: (which nets, their inputs, their labels)."""
        many = len(self.cfg.beta)
        owner = torch.arange(len(self.run.seeds), device=y.device).repeat_interleave(many)
        for first in range(0, len(self.seeds), self.together):
            part = slice(first, first + self.together)
            chosen = owner[part] if self.together > 1 else slice(first // many, first // many + 1)
            yield part, Times(x.when[chosen]) if isinstance(x, Times) else x[chosen], y[chosen]

    def example(self, n: int = 4) -> tuple[dict[str, Tensor], Tensor | Times, Tensor]:
        """The first net's tensors, and some test samples for it."""
        index = torch.arange(n, device=self.run.device)[None]
        x, y = self.inputs("test", index, self.run.seeds[:1], 0)
        return {name: v.detach()[:1] for name, v in self.nets[0].tensors().items()}, x, y[0]

    def everyone(self, value: Tensor) -> Tensor:
        return self.run.mean(value) * self.world

    def ascend(self, x: Tensor | Times, y: Tensor, epoch: int) -> Tensor:
        """One update of every net; returns their losses, (lr, s)."""
        shown = []
        for net, optimizer, lr in zip(self.nets, self.optimizers, self.cfg.lr, strict=True):
            net.train()
            tensors, learned = net.tensors(), dict(net.named_parameters())
            for p in net.parameters():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            values = []
            for part, xs, ys in self.parts(x, y):
                leaves = {name: v.detach()[part].requires_grad_(name in learned) for name, v in tensors.items()}
                trace = net(leaves, xs, self.betas[part])
                value = losses(trace, ys, self.cfg.loss).mean(1)
                if trace.counts:
                    value = value + self.penalties(trace.counts, self.everyone, self.world)
                value.sum().backward()
                values.append(value.detach())
                for name, p in learned.items():
                    p.grad[part] = leaves[name].grad  # type: ignore[index, assignment]
            if self.world > 1:
                flat = self.run.mean(torch.cat([p.grad.flatten() for p in net.parameters()]))  # type: ignore[union-attr]
                for p, g in zip(net.parameters(), flat.split([p.numel() for p in net.parameters()]), strict=True):
                    p.grad.copy_(g.view_as(p))  # type: ignore[union-attr]
            for group in optimizer.param_groups:
                group["lr"] = lr * multiplier(self.cfg, epoch)
            optimizer.step()
            self.run.average_buffers(net)
            shown.append(self.run.mean(torch.cat(values)))
        return torch.stack(shown)

    @torch.no_grad()
    def measure(self, split: str) -> Tensor:
        """(4, lr, s): percent right, loss, rate of the hidden neurons in Hz, percent of them silent in a sample."""
        cfg, n = self.cfg, len(self.inputs.y[split])
        size = BATCH if cfg.evaluated == "all" else cfg.batch_size
        if cfg.evaluated == "whole batches":
            n -= n % size

        def of(chosen: slice) -> Tensor:
            index = torch.arange(chosen.start, chosen.stop, device=self.run.device).expand(len(self.run.seeds), -1)
            x, y = self.inputs(split, index, self.run.seeds, chosen.start)
            rows = [self._measured(net, x, y) for net in self.nets]
            # a mean of batch means gives the samples of a small last batch more weight
            weight = n / (math.ceil(n / size) * index.shape[1]) if cfg.evaluated == "mean of batches" else 1.0
            return torch.stack(rows, 1) * weight

        for net in self.nets:
            net.eval()
        return mean_over(self.run, n, size, of)

    def _measured(self, net: Network, x: Tensor | Times, y: Tensor) -> Tensor:
        """(4, s, b)."""
        values = []
        tensors = net.tensors()
        for part, xs, ys in self.parts(x, y):
            trace = net({name: v[part] for name, v in tensors.items()}, xs, self.betas[part])
            right = 100.0 * (log_scores(trace, self.cfg.loss).argmax(-1) == ys)
            count = torch.cat(trace.counts, 2) if trace.counts else torch.zeros(*ys.shape, 1, device=ys.device)
            loss = losses(trace, ys, self.cfg.loss)
            hz = count.mean(2) * 1e3 / (self.cfg.steps * self.cfg.dt)
            values.append(torch.stack([right, loss, hz, 100.0 * (count == 0).float().mean(2)]))
        return torch.cat(values, 1)


def by_seed(run: Run, values: Tensor) -> Tensor:
    """(..., lr, seeds * beta) -> (seeds, ..., lr * beta)."""
    return values.unflatten(-1, (len(run.seeds), -1)).movedim(-2, 0).flatten(-2)


def cells(cfg: Config, measured: dict[str, Tensor]) -> dict[str, float]:
    """Of a grid: the mean test accuracy of its best cells, and that of each steepness at its best learning rate.

    Best is what validation data says. measured: split -> (4, lr * beta).
    """
    judged, test = measured["validation"][0], measured["test"][0]
    best = judged.argsort(descending=True, stable=True)[: cfg.best_cells]
    metrics = {"test_accuracy": test[best].mean(), "best_cell_accuracy": test[best[0]]}
    for i, beta in enumerate(cfg.beta):
        column = slice(i, None, len(cfg.beta))
        metrics[f"test_accuracy/beta-{beta:g}"] = test[column][judged[column].argmax()]
    metrics["hidden_hz"] = measured["test"][2][best].mean()
    return {name: float(value) for name, value in metrics.items()}


def summary(cfg: Config, measured: dict[str, Tensor], start: Tensor) -> dict[str, float]:
    """The metrics of one seed; measured: split -> (4, cells), start: (cells,)."""
    if len(cfg.lr) * len(cfg.beta) > 1:
        return cells(cfg, measured)
    metrics: dict[str, Tensor] = {}
    for split, values in measured.items():
        metrics |= {f"{split}_accuracy": values[0, 0], f"{split}_loss": values[1, 0]}
    metrics |= {"hidden_hz_at_start": start[0], "hidden_hz": measured["test"][2, 0], "silent": measured["test"][3, 0]}
    return {name: float(value) for name, value in metrics.items()}


def train(cfg: Config, run: Run) -> None:
    """Train all cells and seeds, and leave one record per seed."""
    if run.device.type == "cpu":
        torch.set_num_threads(1)  # the time loop is one thread's work
    data = load(cfg.dataset, run.data_dir)
    run.read(cfg.dataset, data.fingerprint)
    if len(cfg.lr) * len(cfg.beta) > 1 and data.validation is None:
        raise UserError(
            f"a grid of lr and beta is judged on validation data, which {cfg.dataset} has not: give one of each"
        )
    if cfg.best_cells > len(cfg.lr) * len(cfg.beta):
        raise UserError(f"--best-cells {cfg.best_cells} of a grid of {len(cfg.lr) * len(cfg.beta)}; take fewer")
    if cfg.batch_norm and run.part[1] > 1:
        raise UserError("batch normalisation here needs the whole batch: launch one process")
    inputs = Inputs(cfg, run, data)
    grid = Grid(cfg, run, inputs)
    outputs = grid.nets[0].blocks[-1].out[0]
    if outputs < data.classes:
        raise UserError(f"--net {cfg.net} ends with {outputs} outputs for {data.classes} classes")
    batches = Batches(len(data.train.y), cfg.batch_size, run.seeds, run.device, drop_last=cfg.drop_last)
    at_start = torch.zeros(len(cfg.lr), len(grid.seeds), dtype=torch.float64, device=run.device)
    total, logged = cfg.epochs * batches.per_epoch, max(1, cfg.epochs * batches.per_epoch // 60)
    for step in run.steps(total, grid.state | {"at_start": at_start}):
        if step == 0:  # the rate before training, which stork's notebook prints
            at_start.copy_(grid.measure("test")[2])
        x, y = inputs("train", batches.index(step), run.seeds, step)
        x = Times(run.share(x.when, 1)) if isinstance(x, Times) else run.share(x, 1)
        loss = grid.ascend(x, run.share(y, 1), step // batches.per_epoch)
        if step % logged == 0 or step == total - 1:
            run.log(step, train_loss=by_seed(run, loss).mean(1))
    splits = ("validation", "test") if len(cfg.lr) * len(cfg.beta) > 1 else ("train", "test")
    measured = {split: by_seed(run, grid.measure(split)) for split in splits}
    first = by_seed(run, at_start)
    if run.main:
        path = run.picture("spikes", "Spike rasters, membranes and readout of a trained net for four test samples")
        save_pictures(path, grid.nets[0], *grid.example(), grid.betas[:1])
    run.finish([summary(cfg, {k: v[i] for k, v in measured.items()}, first[i]) for i in range(len(run.seeds))])
