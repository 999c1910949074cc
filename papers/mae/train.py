"""Pre-train a masked autoencoder, then put its encoder to the test: linear probes, fine-tuning whole or in part."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("mae")

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data import images
from common.data.augment import ImageBatches, blend, normalise
from common.data.batches import Batches
from common.data.stream import ImageStream
from common.ema import EMA
from common.errors import UserError
from common.fit import stop_unless_finite
from common.metrics import mean_of, mean_over
from common.optim import Schedule, decay_groups, half_cosine, one_cycle
from common.random import generator, integer
from common.run import Run
from papers.mae import data
from papers.mae.audit import build
from papers.mae.config import IMAGENET, TIMED, Config
from papers.mae.model import MAE, Classifier, Dropout, Encoder, Probe, initialise, initialise_head, noise, votes
from papers.mae.sample import save_reconstructions
from papers.mae.timing import time_steps

SEEDS = "single"  # one seed after the other; processes share each batch
EVALUATED, SHOWN = 250, 8  # pictures at a time; test pictures drawn in the run's folder
Batch = tuple[Tensor, Tensor]  # x (b, 3 or 1, h, w), y (b,)


# ---- pictures


class Whole:
    """A small set on the device, values from -1 to 1 (vordmekh: 0 to 1). What is not trained on is for validation."""

    def __init__(self, cfg: Config, run: Run) -> None:
        self.cfg, self.run = cfg, run
        self.levels = (0.0, 255.0) if cfg.dialect == "vordmekh" else (127.5, 127.5)  # mean and scale
        read = images.load(cfg.dataset, run.data_dir)
        run.read(cfg.dataset, read.fingerprint)
        side = read.train.shape[1]
        if side != cfg.resolution or read.train.shape[3] != cfg.channels:
            raise UserError(
                f"{cfg.dataset} has pictures of {side} pixels, not {cfg.resolution}, or not {cfg.channels} channel(s)"
            )
        n, last = cfg.train_images, cfg.test_images
        if n > len(read.train) or last > len(read.test):
            raise UserError(f"{cfg.dataset} has {len(read.train)} training and {len(read.test)} test pictures only")
        self.splits = {
            "train": (read.train[:n], read.train_labels[:n]),
            "validation": (read.train[n:], read.train_labels[n:]),
            "test": (read.test[:last], read.test_labels[:last]),
        }
        self.splits = {name: (x.to(run.device), y.to(run.device)) for name, (x, y) in self.splits.items()}

    def batches(self, name: str, batch_size: int, kind: str) -> Any:
        """step -> this process's part of a batch."""
        if kind == "strong":
            raise UserError("tune_augment strong needs a streamed set; take fixed or none")
        x, y = self.splits["train"]
        seed, (mean, scale) = integer(self.run.seeds[0], name), self.levels
        return ImageBatches(
            x, y, batch_size, seed, margin=4 if kind == "fixed" else 0, flip=kind != "none", mean=mean, scale=scale,
            transform=data.random_boxes(len(x), seed, x.device) if kind == "random" else None, share=self.run.share,
            drop_last=name == "pretraining" or drops_last(self.cfg),
        )  # fmt: skip

    def pictures(self, split: str, chosen: slice) -> Batch:
        x, y = self.splits[split]
        return normalise(x[chosen], *self.levels), y[chosen]

    def mean(self, split: str, value: Callable[[Tensor, Tensor, int], Tensor]) -> float:
        """Mean of value(x, y, place of the first one), (b,), over a split."""
        n = len(self.splits[split][0])
        return mean_over(self.run, n, EVALUATED, lambda part: value(*self.pictures(split, part), part.start)).item()

    def features(self, name: str, encoder: Encoder) -> Callable[[int], Batch]:
        """step -> features and labels; without augmentation they are taken once."""
        y = self.splits["train"][1]
        batches = Batches(
            len(y), self.cfg.linear_batch_size, [integer(self.run.seeds[0], name)], self.run.device,
            drop_last=drops_last(self.cfg),
        )  # fmt: skip
        all_of_them = cache(lambda: self.all_features(encoder))

        def batch(step: int) -> Batch:
            index = self.run.share(batches.index(step)[0])
            return all_of_them()[index], y[index]

        return batch

    def all_features(self, encoder: Encoder) -> Tensor:
        """Of the training pictures, (n, d)."""
        parts = (slice(i, i + EVALUATED) for i in range(0, len(self.splits["train"][1]), EVALUATED))
        return torch.cat([frozen(self.run, encoder, self.pictures("train", part)[0]) for part in parts])


class Streamed:
    """ImageNet: decoded ahead by threads."""

    def __init__(self, cfg: Config, run: Run) -> None:
        self.cfg, self.run, self.n = cfg, run, cfg.test_images
        self.levels = [255 * torch.tensor(v, device=run.device) for v in (data.MEAN, data.SD)]
        view = data.evaluation_view(cfg.resolution)
        self.test = ImageStream(cfg.dataset, "validation", run.data_dir, self.n, EVALUATED, view)
        run.read(cfg.dataset, self.test.fingerprint())

    def batches(self, name: str, batch_size: int, kind: str) -> Any:
        stream = ImageStream(
            self.cfg.dataset, "train", self.run.data_dir, self.cfg.train_images, batch_size,
            data.training_view(kind, self.cfg.resolution), seed=integer(self.run.seeds[0], name), share=self.run.share,
        )  # fmt: skip
        return lambda step: self.prepared(*stream(step))

    def prepared(self, x: Tensor, y: Tensor) -> Batch:
        return normalise(x.to(self.run.device), *self.levels), y.to(self.run.device)

    def mean(self, split: str, value: Callable[[Tensor, Tensor, int], Tensor]) -> float:
        rank, world = self.run.part

        def values() -> Iterator[Tensor]:
            for i, batch in enumerate(self.test.once(rank, world)):
                yield value(*self.prepared(*batch), (rank + i * world) * EVALUATED)

        with torch.no_grad():
            return mean_of(self.run, values(), self.n).item()

    def pictures(self, split: str, chosen: slice) -> Batch:
        """The first ones of the test split."""
        x, y = self.prepared(*next(self.test.once()))
        return x[chosen], y[chosen]

    def features(self, name: str, encoder: Encoder) -> Callable[[int], Batch]:
        batches = self.batches(name, self.cfg.linear_batch_size, "probe")

        def batch(step: int) -> Batch:
            x, y = batches(step)
            return torch.cat([frozen(self.run, encoder, part) for part in x.split(EVALUATED)]), y

        return batch


@torch.no_grad()
def frozen(run: Run, encoder: Encoder, x: Tensor) -> Tensor:
    """Features of an encoder that does not learn, float32."""
    with run.accelerator.autocast():
        return encoder.features(x).float()


# ---- phases


def drops_last(cfg: Config) -> bool:
    """Whether training with labels leaves out an epoch's last, smaller batch."""
    return cfg.dialect != "vordmekh"


def labelled_updates(cfg: Config, batch_size: int) -> int:
    """Updates an epoch of training with labels."""
    return cfg.train_images // batch_size if drops_last(cfg) else -(-cfg.train_images // batch_size)


def dropout(cfg: Config, run: Run, name: str, step: int) -> Dropout | None:
    if not cfg.dropout:
        return None
    return Dropout(cfg.dropout, run.seeds[0], name, "dropout", step, device=run.device, part=run.part)


class LARS(torch.optim.Optimizer):
    """Momentum, each matrix's gradient scaled to a thousandth of the matrix's norm (code: lars.py); no decay here."""

    def __init__(self, parameters: Any, lr: float, momentum: float = 0.9, trust: float = 0.001) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                change = p.grad
                if p.ndim > 1:
                    ratio = group["trust"] * p.norm() / change.norm()
                    change = change * torch.where((ratio > 0) & ratio.isfinite(), ratio, 1.0)
                held = self.state[p].setdefault("momentum", torch.zeros_like(p))
                held.mul_(group["momentum"]).add_(change)
                p.sub_(group["lr"] * held)


@dataclass
class Phase:
    """A stretch of a run's steps with a model and an optimiser of its own.

    Attributes:
        loss: (model as `run.wrapped`, step of the phase) -> what to minimise.
        begin: called before the phase's first step; a pure function of what earlier phases have left.
        classify: x -> logits, to be evaluated in the end.
        beta1: step -> Adam's first coefficient, where it changes.
        state: what else changes from step to step, for the checkpoint.
    """

    name: str
    steps: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    loss: Callable[[nn.Module, int], Tensor]
    begin: Callable[[], object] = lambda: None
    classify: Callable[[Tensor], Tensor] | None = None
    ema: EMA | None = None
    beta1: Schedule | None = None
    state: dict[str, Any] = field(default_factory=dict)
    wrapped: Any = field(init=False)

    def prepare(self, run: Run) -> dict[str, Any]:
        """What changes from step to step, for the checkpoint."""
        self.wrapped = run.wrapped(self.model)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return {
            "model": self.model, "optimizer": self.optimizer, **({"ema": self.ema} if self.ema else {}), **self.state,
        }  # fmt: skip

    def update(self, run: Run, step: int, shown_as: int, logged: bool) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.schedule(step)
            if self.beta1 is not None:
                group["betas"] = self.beta1(step), group["betas"][1]
        value = self.loss(self.wrapped, step)
        self.optimizer.zero_grad(set_to_none=True)
        run.accelerator.backward(value)
        stop_unless_finite(run, shown_as, value, self.model, self.optimizer, logged)
        self.optimizer.step()
        run.average_buffers(self.model)
        if self.ema is not None:
            self.ema.update(self.model)
        return value.detach()


def schedule(cfg: Config, epochs: float, warmup_epochs: float, per_epoch: int, floor: float = 0.0) -> Any:
    """step -> multiplier of lr: linear from 0, then half a cosine (code: lr_sched.py); IcarusWizard's once an epoch;
    VordMekh's (with labels) constant."""

    def code(step: int) -> float:
        epoch = step / per_epoch
        if epoch < warmup_epochs:
            return epoch / warmup_epochs
        return half_cosine(epoch - warmup_epochs, epochs - warmup_epochs, floor)

    def icaruswizard(step: int) -> float:
        epoch = step // per_epoch
        return min((epoch + 1) / (warmup_epochs + 1e-8), half_cosine(epoch, epochs))

    return {"mae": code, "icaruswizard": icaruswizard, "vordmekh": lambda step: 1.0}[cfg.dialect]


def pretraining(cfg: Config, run: Run, source: Whole | Streamed, model: MAE) -> Phase:
    """Table 8; VordMekh's: OneCycleLR of lr and beta1, and the loss, as trained, of the last epoch is kept."""
    per_epoch = cfg.train_images // cfg.batch_size
    steps, one_cycled = cfg.epochs * per_epoch, cfg.dialect == "vordmekh"
    last_epoch = torch.zeros((), dtype=torch.float64, device=run.device)  # sum of its losses
    batches = source.batches("pretraining", cfg.batch_size, cfg.crop)

    def loss(model: nn.Module, step: int) -> Tensor:
        x, _ = batches(step)
        draw = generator(run.seeds[0], "mask", step, device=run.device)
        seen = run.share(noise(cfg.mask, cfg.batch_size, cfg.resolution // cfg.patch, draw))
        value = model(x, seen, dropout(cfg, run, "pretraining", step))
        if one_cycled and step >= steps - per_epoch:
            last_epoch.add_(run.mean(value.detach()))
        return value

    groups = decay_groups(model, cfg.weight_decay)
    if cfg.dialect != "mae":
        groups = [{"params": [p for group in groups for p in group["params"]], "weight_decay": cfg.weight_decay}]
    adamw = partial(torch.optim.AdamW, groups, lr=cfg.lr, fused=True)
    if not one_cycled:
        multiplier = schedule(cfg, cfg.epochs, cfg.warmup_epochs, per_epoch)
        return Phase("pretraining", steps, model, adamw(betas=(0.9, 0.95)), multiplier, loss)
    cycle = partial(one_cycle, cfg.warmup_epochs * per_epoch, steps)
    return Phase(
        "pretraining", steps, model, adamw(betas=(0.95, 0.999)), cycle(start=1 / 25, end=1 / 25e4), loss,
        beta1=cycle(start=0.95, top=0.85, end=0.95), state={"last_epoch": last_epoch},
    )  # fmt: skip


def probing(cfg: Config, run: Run, source: Whole | Streamed, name: str, encoder: Encoder) -> Phase:
    """Table 10: a linear classifier of an encoder's features, `linear` after pre-training, `random` without. VordMekh's
    knows no normalisation and learns by AdamW."""
    per_epoch, plain = labelled_updates(cfg, cfg.linear_batch_size), cfg.dialect == "vordmekh"
    probe = nn.Linear(encoder.d, cfg.classes) if plain else Probe(encoder.d, cfg.classes)
    head = probe if isinstance(probe, nn.Linear) else probe.head
    initialise_head(head, generator(run.seeds[0], name), None if plain else 0.01)
    probe.to(run.device)
    lr = cfg.linear_base_lr * cfg.linear_batch_size / 256
    batch = source.features(name, encoder)

    def loss(model: nn.Module, step: int) -> Tensor:
        features, y = batch(step)
        return F.cross_entropy(model(features).float(), y)

    return Phase(
        name, cfg.linear_epochs * per_epoch, probe,
        torch.optim.AdamW(head.parameters(), lr, weight_decay=cfg.linear_weight_decay, fused=True) if plain
        else LARS(head.parameters(), lr),
        schedule(cfg, cfg.linear_epochs, cfg.linear_epochs / 9, per_epoch), loss,
        classify=lambda x: probe(frozen(run, encoder, x)),
    )  # fmt: skip


def tuning(cfg: Config, run: Run, source: Whole | Streamed, name: str, encoder: Encoder, start: Encoder) -> Phase:
    """Table 9, Section 4.3 or Table 11: `finetune`, `partial-<blocks>` or `scratch`, the last from `start`."""
    try:
        tuned = float(name.removeprefix("partial-")) if name.startswith("partial-") else None
    except ValueError:
        raise UserError(f"evaluation {name!r} should read partial-<blocks>, e.g. partial-0.5") from None
    seed, per_epoch, b = run.seeds[0], labelled_updates(cfg, cfg.tune_batch_size), cfg.tune_batch_size
    model = Classifier(copy.deepcopy(start), cfg.classes, tuned)
    initialise_head(model.head, generator(seed, name), 2e-5 if cfg.dialect == "mae" else None)
    model.to(run.device)
    batches = source.batches(name, b, cfg.tune_augment)
    beta2 = 0.95 if name == "scratch" and cfg.dialect == "mae" else 0.999  # Tables 11 and 9
    layer_decay = 1.0 if name == "scratch" else cfg.layer_decay
    keep = 1 - cfg.drop_path * torch.arange(cfg.depth) / max(1, cfg.depth - 1)

    def loss(model: nn.Module, step: int) -> Tensor:
        x, y = batches(step)
        paths = None
        if cfg.drop_path:
            drawn = torch.rand(b, cfg.depth, 2, generator=generator(seed, name, "paths", step))
            paths = run.share((drawn < keep[:, None]) / keep[:, None]).to(run.device)
        if cfg.tune_augment != "strong":
            return F.cross_entropy(model(x, paths, dropout(cfg, run, name, step)).float(), y)
        rng = np.random.default_rng(integer(seed, name, "mix", step))
        share, portion = blend(cfg.resolution, rng, mixup=0.8, cutmix=1.0)  # Table 9
        logits = model(x + share.to(x.device) * (x.flip(0) - x), paths).float()  # partners: this process's rows
        smooth = [F.cross_entropy(logits, label, label_smoothing=0.1) for label in (y, y.flip(0))]
        return (1 - portion) * smooth[0] + portion * smooth[1]

    return Phase(
        name, cfg.tune_epochs * per_epoch, model,
        torch.optim.AdamW(layer_groups(cfg, model, layer_decay), betas=(0.9, beta2), fused=True),
        schedule(cfg, cfg.tune_epochs, cfg.tune_warmup_epochs, per_epoch, floor=1e-6 / cfg.tune_lr), loss,
        begin=lambda: name == "scratch" or model.encoder.load_state_dict(encoder.state_dict()),
        classify=model,
        ema=EMA(model, cfg.ema) if cfg.ema and name == "scratch" else None,
    )  # fmt: skip


def neighbours(cfg: Config, run: Run, source: Whole, encoder: Encoder) -> Callable[[Tensor], Tensor]:
    """x -> votes of the nearest training pictures, by the cosine of features."""
    known, y = F.normalize(source.all_features(encoder)), source.splits["train"][1]
    return lambda x: votes(F.normalize(frozen(run, encoder, x)), known, y, cfg.neighbours, cfg.classes)


def layer_groups(cfg: Config, model: Classifier, layer_decay: float) -> list[dict[str, Any]]:
    """Each layer learns slower than the next; one-dimensional parameters, class token and positions do not decay
    (code: lr_decay.py)."""
    groups, layers = [], model.layers()
    for i, layer in enumerate(layers):
        lr = cfg.tune_lr * layer_decay ** (len(layers) - 1 - i)
        decaying: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, p in layer:
            if p.requires_grad:
                decays = p.ndim > 1 and name not in ("class_token", "positions")
                decaying[decays or cfg.dialect != "mae"].append(p)
        for decays, chosen in decaying.items():
            if chosen:
                groups.append({"params": chosen, "lr": lr, "weight_decay": cfg.tune_weight_decay if decays else 0.0})
    return groups


# ---- the run


def train(cfg: Config, run: Run) -> None:
    """Pre-train and evaluate in one stream of steps; look at the test split once, in the end."""
    if cfg.dataset == TIMED:
        time_steps(cfg, run)
        return
    source = Streamed(cfg, run) if cfg.dataset == IMAGENET else Whole(cfg, run)
    model = build(cfg)
    initialise(model, generator(run.seeds[0], "weights"))
    start = copy.deepcopy(model.encoder).to(run.device)  # the random encoder
    model.to(run.device)
    phases = [pretraining(cfg, run, source, model)]
    for name in cfg.evaluations:
        if name in ("linear", "random"):
            phases.append(probing(cfg, run, source, name, model.encoder if name == "linear" else start))
        elif name in ("finetune", "scratch") or name.startswith("partial-"):
            phases.append(tuning(cfg, run, source, name, model.encoder, start))
        elif name == "knn":
            if isinstance(source, Streamed):
                raise UserError("evaluation knn needs a set that is kept whole")
        else:
            known = "linear, random, knn, finetune, scratch, partial-<blocks>"
            raise UserError(f"unknown evaluation {name!r} (known: {known})")
    if len(set(cfg.evaluations)) < len(cfg.evaluations):
        raise UserError(f"evaluations {' '.join(cfg.evaluations)}: one is there twice")
    state = {phase.name: phase.prepare(run) for phase in phases if phase.steps}
    step_of = [(phase, step) for phase in phases for step in range(phase.steps)]
    if not step_of:
        raise UserError("nothing to do: neither epochs nor evaluations with epochs of their own")
    for step in run.steps(len(step_of), state):
        phase, at = step_of[step]
        if at == 0:
            phase.begin()
        logged = at % max(1, phase.steps // 100) == 0
        value = phase.update(run, at, step, logged)
        if logged or at == phase.steps - 1:
            run.log(step, **{f"{phase.name}_loss": run.mean(value)})
    run.finish([measured(cfg, run, source, model, phases)])


@torch.no_grad()
def measured(cfg: Config, run: Run, source: Whole | Streamed, model: MAE, phases: list[Phase]) -> dict[str, float]:
    """Accuracies of every evaluation, and the error of reconstruction."""
    metrics: dict[str, float] = {}
    seed, g = run.seeds[0], cfg.resolution // cfg.patch
    classifiers = {}
    for phase in phases:
        phase.model.eval()
        classifiers[phase.name] = phase.ema.model.eval() if phase.ema else phase.classify
        if "last_epoch" in phase.state and phase.steps:
            metrics["train_loss"] = phase.state["last_epoch"].item() / (phase.steps // cfg.epochs)
    if "knn" in cfg.evaluations and isinstance(source, Whole):
        classifiers["knn"] = neighbours(cfg, run, source, model.encoder)
    for name, classify in classifiers.items():

        def correct(x: Tensor, y: Tensor, _: int, classify: Any = classify) -> Tensor:
            with run.accelerator.autocast():
                return (classify(x).argmax(1) == y).float()

        for split in ("validation", "test") if classify else ():
            if split == "test" or (isinstance(source, Whole) and len(source.splits[split][0])):
                metrics[f"{split}_accuracy/{name}"] = 100 * source.mean(split, correct)
    if cfg.epochs:

        def drawn(b: int, at: int) -> Tensor:
            return noise(cfg.mask, b, g, generator(seed, "test mask", at, device=run.device))

        def error(x: Tensor, _: Tensor, at: int) -> Tensor:
            with run.accelerator.autocast():
                return model.losses(x, drawn(len(x), at))

        metrics["test_loss"] = source.mean("test", error)
        if run.main:
            x, _ = source.pictures("test", slice(0, SHOWN))
            alt = "Test pictures: what the encoder saw of them, what the decoder made of that, and the picture"
            whole = model.reconstructed(x, drawn(len(x), 0))
            save_reconstructions(run.picture("reconstructions", alt), x, *whole, *source.levels)
    return metrics
